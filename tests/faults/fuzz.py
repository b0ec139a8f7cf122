"""Search for files that end a reader in anything but its result or a `UsageError`, guided by coverage.

    pip install atheris
    python tests/faults/fuzz.py checkpoint|nc|csv|jsonl|npz|toml|yaml|json SECONDS

The search starts from the hostile files of `corpus` and from intact ones. It ends at the first exception, hang (30 s)
or use of 8 GiB, prints the traceback, and writes the file to the working directory as crash-*, timeout-* or oom-*. It
is no part of the tests: atheris has few platforms, and a search has no fixed end. Add what it finds to `corpus`.
"""

import contextlib
import os
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import corpus  # noqa: E402

NAMES = {"checkpoint": "x.pt", "nc": "x.nc", "json": "run/config.json"}
"""Names of the files; x.KIND for other kinds."""


def seeds(kind, folder):
    """Write the files from which the search starts."""
    files = [(name, write) for part in corpus.PARTS for name, write in part().items() if name.split("/")[0] == kind]
    if kind == "checkpoint":
        (folder / "intact").write_bytes(corpus.intact())
    for number, (_, write) in enumerate(files):
        with tempfile.TemporaryDirectory() as place:
            path = write(Path(place))
            if path.is_file() and path.stat().st_size < 2**20:
                (folder / str(number)).write_bytes(path.read_bytes())
    if kind == "json":
        (folder / "intact").write_text('{"task": "pairs", "model": {"d_model": 16}}')


def main(kind, seconds):
    import atheris

    with atheris.instrument_imports(include=["attnprobe"]):
        import attnprobe.config
        import attnprobe.results
        import attnprobe.sweeps.cells
        import attnprobe.tasks
        import attnprobe.training.checkpoint  # noqa: F401
        from attnprobe.errors import UsageError

    place = Path(tempfile.mkdtemp())
    start, path = place / "seeds", place / NAMES.get(kind, f"x.{kind}")
    start.mkdir()
    path.parent.mkdir(exist_ok=True)
    os.environ["ATTNPROBE_DATA"] = str(place / "data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seeds(kind, start)
    read = corpus.OPEN["run" if kind == "json" else kind]
    opened = path.parent if kind == "json" else path

    def once(content):
        path.write_bytes(content)
        with contextlib.suppress(UsageError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(opened)

    limits = [f"-max_total_time={seconds}", "-timeout=30", "-rss_limit_mb=8192", "-max_len=100000"]
    atheris.Setup([sys.argv[0], *limits, str(start)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])

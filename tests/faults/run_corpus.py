"""Give the files of the corpus to their readers and commands in this process; print one line of JSON for each.

    python tests/faults/run_corpus.py [EVERY] [BEGINNING ...]

Commands get every EVERY-th file (1 by default, 10 minutes in all); the names of files begin with any BEGINNING.
"""

import contextlib
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import corpus

SECONDS = 30
"""Wall-clock seconds after which opening a file counts as a hang; a busy machine needs more than processor time."""
MODULES = (
    "attnprobe.tasks",
    "attnprobe.training.checkpoint",
    "attnprobe.results",
    "attnprobe.sweeps",
    "transformers",
    "attnprobe.model.pretrained",
    "attnprobe.networks.hugging_face",
)
"""Modules that are imported before the first file, since their imports take seconds."""


class Hang(BaseException):
    """Opening a file took too long; not an `Exception`, which readers may turn into an error of their own."""


def on_alarm(*_):
    raise Hang


@contextlib.contextmanager
def measured(found):
    """Stop the block after `SECONDS`, and record how it ended, its processor time and its memory at most."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")

    def megabytes(name):
        if not status.exists():  # not Linux: the peak of the process so far, which a block may not reach again
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        return int(status.read_text().split(f"{name}:")[1].split()[0]) // 1024

    if reset.exists():
        reset.write_text("5")  # the peak starts anew
    before, begin = megabytes("VmRSS"), time.process_time()
    signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(SECONDS)
    try:
        yield
    except Hang:
        found |= {"outcome": "hang"}
    except BaseException as error:
        found |= {"outcome": "crash", "message": "".join(traceback.format_exception(error))[-3000:]}
    finally:
        signal.alarm(0)
    found |= {"seconds": time.process_time() - begin, "megabytes": megabytes("VmHWM") - before}


def read(kind, path):
    """Open a file and return what happened: read, or refused with a message."""
    from attnprobe.errors import UsageError

    found = {"outcome": "read", "message": ""}
    with measured(found), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            corpus.OPEN[kind](path)
        except UsageError as error:
            found |= {"outcome": "refused", "message": str(error)}
    return found


def run(arguments, out):
    """Run a command and return what happened: read, or refused with a message and an exit status."""
    from attnprobe.cli import main

    found, output, errors = {"outcome": "read", "status": 0}, io.StringIO(), io.StringIO()
    folder = ["--out", out] if arguments[0] in corpus.WRITING and "--resume" not in arguments else []
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), measured(found):
        try:
            main([str(argument) for argument in [*arguments, *folder]])
        except SystemExit as stop:
            found |= {"outcome": "refused", "status": stop.code}
    shown = [line.split("\r")[-1] for line in errors.getvalue().split("\n") if not line.startswith("\r")]  # no bars
    found = {"message": "\n".join(shown).strip(), **found}
    found |= {"output": output.getvalue()[:3000], "left": list(map(str, out.rglob("*")))}
    return {"command": " ".join(map(str, arguments)), **found}


def main(every=1, *beginnings):
    for module in MODULES:
        __import__(module)
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        corpus.prepare()
        files = {name: write for part in corpus.PARTS for name, write in part().items()}
        for number, (name, write) in enumerate(files.items()):
            if not name.startswith(beginnings or ""):
                continue
            kind, place = name.split("/")[0], Path(folder) / str(number)
            place.mkdir()
            path = write(place)
            found = [read(kind, path)]
            commands = corpus.COMMANDS[kind](path) if number % every == 0 else []
            if found[0]["outcome"] == "read":
                commands = [given for given in commands if given[0] not in corpus.SLOW]
            found += [run(given, place / f"out{number}") for number, given in enumerate(commands)]
            for each in found:
                print(json.dumps({"name": name, **each, "trapped": Path("trapped").exists()}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1, *sys.argv[2:])

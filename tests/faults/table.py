"""Measure what faults do to runs, sweeps, results, reports and data, and write one table.

    python tests/faults/table.py                 # all rows: half an hour to an hour, CPU only
    python tests/faults/table.py --tries 3 --out /tmp/table.csv

A try survives if the work ends bit-identically to undisturbed work (everything except times and provenance is
compared), after the command was repeated or resumed where the fault stopped it; or if the fault is refused in one line
that names the file, with exit status 2 (130 and 143 for signals) and no incomplete files left. It is lost if neither
holds, and silently wrong if a command ends well, or a file is read, with other content.

Rows that the table already has are kept, so that an interrupted measurement goes on; remove the file to measure again.
Commands run in forks of this process, which has imported everything, so that random moments are moments of work. Kills
hit the workers of a sweep as well. A full disk is a small tmpfs or, if none can be mounted, a limit of the file size.
"""

import argparse
import csv
import dataclasses
import errno
import functools
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import xarray as xr

import attnprobe as ap
from attnprobe.cli import main
from attnprobe.errors import UsageError
from attnprobe.files import write_atomic
from attnprobe.report.write import write_checkpoint
from attnprobe.results import open_result
from attnprobe.tables import MEASURES
from attnprobe.tasks import build, folder
from attnprobe.tasks.listops import ListOps
from attnprobe.training.loop import resume, train
from attnprobe.training.metrics import DamageWarning
from attnprobe.training.run import Run

HERE = Path(__file__).parent
COLUMNS = ("fault", "object", "tries", "survived", "lost", "silently wrong")
OPTIONS = {"n": 8, "alphabet": 4, "classes": 2, "train_size": 64, "test_size": 40}
SETTINGS = {"steps": 12, "pretrain_steps": 8, "evaluations": 4, "checkpoints": 2, "batch_size": 16, "d_model": 16}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
TRAIN = ["train", "--task", "pairs", *FLAGS, "--task-options", *(str(x) for item in OPTIONS.items() for x in item)]
SWEEP = "[base]\ntask = 'pairs'\n" + "".join(f"{name} = {value}\n" for name, value in SETTINGS.items())
SWEEP += "".join(f"task_options.{name} = {value}\n" for name, value in OPTIONS.items()) + "[grid]\nseed = [0, 1]\n"
OUT = "out/x"
"""Output of every command, relative to the folder of its try."""
ACTED = "acted"
"""File that says that the fault of a try happened."""
FEWEST = 0.005
"""Seconds that a command runs at least before it is disturbed."""


# --- comparison


def fingerprint(value: Any) -> str:
    """Hash plain values, arrays and tensors, bit by bit."""
    digest = hashlib.sha256()
    if isinstance(value, dict):
        digest.update("".join(f"{name!r}:{fingerprint(entry)}" for name, entry in value.items()).encode())
    elif isinstance(value, list | tuple):
        digest.update("".join(map(fingerprint, value)).encode())
    elif isinstance(value, np.ndarray | torch.Tensor):
        array = np.asarray(value)
        is_text = array.dtype.kind == "O"
        digest.update(f"{array.dtype}{array.shape}".encode() + (repr(array.tolist()).encode() if is_text else b""))
        digest.update(b"" if is_text else array.tobytes())
    else:
        digest.update(repr(value).encode())
    return f"{type(value).__name__} {digest.hexdigest()}"


def of_checkpoint(path: Path) -> str:
    checkpoint = ap.load(path)
    names = [field.name for field in dataclasses.fields(checkpoint) if field.name not in ("path", "provenance")]
    entries = {name: getattr(checkpoint, name) for name in names}
    plain = {name: dataclasses.asdict(entries[name]) for name in ("config", "data")}
    return fingerprint({**entries, **plain})


def of_result(path: Path) -> str:
    result: xr.Dataset = open_result(path)
    result.attrs.pop("provenance", None)
    return fingerprint(result.to_dict(data="array"))


def of_run(where: Path) -> dict[str, str]:
    """Return the fingerprint of every file of a run."""
    run = Run(where)
    content = {str(path.relative_to(where)): of_checkpoint(path) for path in sorted(where.rglob("*.pt"))}
    others = {path.name: "" for path in sorted(where.iterdir()) if path.suffix not in (".lock", ".pt")}
    settings = dataclasses.asdict(run.config)
    known = {"config.json": fingerprint(settings), "finished.json": repr(run.finished), "took.json": ""}
    return content | others | {"metrics.jsonl": run.metrics_path.read_text()} | known


def of_results(where: Path) -> dict[str, str]:
    """Return the fingerprint of every file of measures or of a report."""
    paths = [path for path in sorted(where.rglob("*")) if path.is_file() and path.suffix != ".part"]
    return {str(path.relative_to(where)): of_file(path) for path in paths}


def of_file(path: Path) -> str:
    """Return the fingerprint of a result, a figure or a page, without the time at which it was made."""
    if path.suffix == ".nc":
        return of_result(path)
    return fingerprint(re.sub(rb"created: [^\n]*", b"", path.read_bytes()))


def of_sweep(where: Path) -> dict[str, Any]:
    """Return the fingerprints of a sweep's table, plan and runs."""
    texts = {name: (where / name).read_text() for name in ("sweep.csv", "sweep.json")}
    return texts | {path.parent.name: of_run(path.parent) for path in sorted(where.glob("*/config.json"))}


# --- commands


@dataclass(frozen=True, eq=False)
class Command:
    """A command that is disturbed, and how its output is compared."""

    name: str
    arguments: list[str]
    content: Callable[[Path], dict[str, Any]]
    """Fingerprints of the files of an output folder."""
    resumes: bool = False
    """Whether ``--resume`` goes on instead of the same command."""
    whole: bool = True
    """Whether every file that has its name is final, also after a kill."""
    statuses: tuple[int, ...] = (2,)
    """Exit statuses after a file cannot be written."""

    def again(self, place: Path) -> list[str]:
        """Return the arguments that go on after a fault."""
        begun = (place / OUT / "config.json").exists()
        return ["train", "--resume", OUT] if self.resumes and begun else self.arguments


def start(arguments: list[str], place: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Run a command in a fork of this process, in a session of its own, and return its process id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setsid()
        os.chdir(place)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        prepare()
        main(arguments)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def wait(process: int) -> int:
    """Return the exit status of a process; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(arguments: list[str], place: Path, prepare: Callable[[], None] = lambda: None) -> int:
    return wait(start(arguments, place, prepare))


def ended(command: Command, place: Path, expected: dict[str, Any]) -> str:
    """Go on after a fault, and return the outcome."""
    if run(command.again(place), place):
        return "lost"
    return "survived" if command.content(place / OUT) == expected else "silently wrong"


def is_named(command: Command, place: Path, status: int) -> bool:
    """Return whether a command that could not write ended in one line that names the file, without incomplete files."""
    printed = (place / "stdout").read_text() + (place / "stderr").read_text()
    lines = [line for line in printed.splitlines() if line.startswith(("attnprobe: ", "failed: "))]
    named = lines and all("out" in line and "cannot be" in line for line in lines)
    return bool(named and status in command.statuses and "Traceback" not in printed and not incomplete(place))


def incomplete(place: Path) -> list[Path]:
    return list((place / "out").rglob("*.part"))


class Subjects:
    """Undisturbed work, made when it is first needed, and folders for tries."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.made = scratch, 0
        os.environ[folder.VARIABLE] = str(scratch / "data")

    def place(self) -> Path:
        """Return a new folder for a try, with what commands read."""
        shutil.rmtree(self.scratch / f"try-{self.made}", ignore_errors=True)
        self.made += 1
        place = self.scratch / f"try-{self.made}"
        (place / "out").mkdir(parents=True)
        (place / "sweep.toml").write_text(SWEEP)
        (place / "x.pt").symlink_to(self.run.checkpoint_paths[-1])
        return place

    @functools.cached_property
    def config(self) -> Any:
        return ap.configure("pairs", recipe="spt", task_options=OPTIONS, **SETTINGS)

    @functools.cached_property
    def run(self) -> Run:
        """A finished run; training it here makes forks fast, too."""
        return train(self.config, self.scratch / "run", progress=False)

    @functools.cached_property
    def warm(self) -> None:
        """Measure and draw in this process, so that its forks need not import."""
        for name in MEASURES:
            write_checkpoint(name, self.run.checkpoints[-1], self.scratch / "warm", {"sequences": 4, "nulls": 1})

    @functools.cached_property
    def unfinished(self) -> Path:
        """Folder of a run that stopped one step before its end."""

        def stop(step: int) -> None:
            if step == self.config.total_steps - 1:
                raise InterruptedError

        try:
            train(self.config, self.scratch / "unfinished", progress=False, on_step=stop)
        except InterruptedError:
            pass
        return self.scratch / "unfinished"

    @functools.cached_property
    def former(self) -> Path:
        """Folder of files that an earlier version wrote."""
        shutil.unpack_archive(HERE.parent / "former_files.tar.gz", self.scratch / "former", filter="data")
        return self.scratch / "former"

    @functools.cached_property
    def result(self) -> Path:
        self.undisturbed(COMMANDS["proximity"])
        return self.scratch / "proximity.out" / "x" / "proximity.nc"

    @functools.cached_property
    def sweep(self) -> Path:
        self.undisturbed(COMMANDS["sweep"])
        return self.scratch / "sweep.out" / "x"

    @functools.cache  # noqa: B019
    def undisturbed(self, command: Command) -> tuple[dict[str, Any], float, int]:
        """Return the content, seconds and size of undisturbed work."""
        place = self.place()
        if command.arguments[0] in MEASURES or command.arguments[0] == "report":
            self.warm  # noqa: B018
        begin = time.monotonic()
        if run(command.arguments, place):
            raise RuntimeError((place / "stderr").read_text())
        seconds = time.monotonic() - begin
        kept = self.scratch / f"{command.name}.out"
        shutil.copytree(place / "out", kept)
        size = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
        return command.content(place / OUT), seconds, size


def measure(name: str) -> Command:
    return Command(name, [name, "x.pt", "--sequences", "4", "--nulls", "1", "--out", OUT], of_results)


COMMANDS = {
    "train": Command("train", [*TRAIN, "--out", OUT], of_run, resumes=True, whole=False),
    **{name: measure(name) for name in MEASURES},
    "report": Command("report", ["report", "x.pt", "--out", OUT], of_results),
    "sweep": Command("sweep", ["sweep", "sweep.toml", "--out", OUT], of_sweep, whole=False, statuses=(1, 2)),
}
Outcomes = Callable[[Subjects, int, np.random.Generator], Iterator[str]]


# --- kills and signals


def at_random(command: Command, number: int) -> Outcomes:
    """Send a signal at random moments of a command, and go on; moments after its end are drawn again."""

    def outcomes(subjects: Subjects, tries: int, rng: np.random.Generator) -> Iterator[str]:
        expected, seconds, _ = subjects.undisturbed(command)
        for _ in range(tries):
            status = 0
            while status == 0:
                place = subjects.place()
                process = start(command.arguments, place)
                time.sleep(rng.uniform(FEWEST, seconds))
                os.killpg(process, number)
                status = wait(process)
            is_kill = number == signal.SIGKILL
            if status != (-number if is_kill else 128 + number) or (not is_kill and incomplete(place)):
                yield "lost"
            elif command.whole and not command.content(place / OUT).items() <= expected.items():
                yield "silently wrong"
            else:
                yield ended(command, place, expected)

    return outcomes


def before_operation(place: Path, number: int, act: Callable[[], None]) -> None:
    """Act before the operations of this process on the output, from one on: opening to write, naming and making."""
    count, inside = 0, str(place / "out")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            path, writes = arguments[0] if arguments else None, event in ("os.rename", "os.mkdir", "os.truncate")
        if writes and isinstance(path, str | bytes) and os.path.abspath(os.fsdecode(path)).startswith(inside):
            count += 1
            if count == number:
                os.close(os.open(place / ACTED, os.O_CREAT))
            if count >= number:
                act()

    sys.addaudithook(hook)


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_operations(command: Command, act: Callable[[], None]) -> Outcomes:
    """Act from the first, second, ... operation on files on, until a command has no more of them."""

    def outcomes(subjects: Subjects, tries: int, rng: np.random.Generator) -> Iterator[str]:
        expected, _, _ = subjects.undisturbed(command)
        for number in range(1, tries + 1):
            place = subjects.place()
            status = run(command.arguments, place, functools.partial(before_operation, place, number, act))
            if not (place / ACTED).exists():
                return
            good = status == -signal.SIGKILL if act is kill_self else is_named(command, place, status)
            yield ended(command, place, expected) if good else "lost"

    return outcomes


def full_disk(command: Command) -> Outcomes:
    """Run a command on a disk that is too small for its output, and go on when there is room."""

    def outcomes(subjects: Subjects, tries: int, rng: np.random.Generator) -> Iterator[str]:
        expected, _, size = subjects.undisturbed(command)
        for _ in range(tries):
            place, status = subjects.place(), 0
            room = int(rng.integers(1, size))
            mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(place / "out")]
            mounted = subprocess.run(mount, capture_output=True).returncode == 0
            limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (room, room))
            try:
                status = run(command.arguments, place, (lambda: None) if mounted else limit)
                if status and not is_named(command, place, status):
                    yield "lost"
                    continue
                if mounted:
                    subprocess.run(["mount", "-o", "remount,size=1g", str(place / "out")], check=True)
                yield ended(command, place, expected) if status else "survived"
            finally:
                if mounted:
                    subprocess.run(["umount", str(place / "out")], check=True)

    return outcomes


# --- two at once


def two_results(subjects: Subjects, tries: int, rng: np.random.Generator) -> Iterator[str]:
    """Write two different results of one name; every file must be that of one of them."""
    first = COMMANDS["proximity"]
    commands = [
        dataclasses.replace(first, name=f"seed-{seed}", arguments=[*first.arguments, f"--seed={seed}"])
        for seed in range(2)
    ]
    one, two = (subjects.undisturbed(command)[0] for command in commands)
    for _ in range(tries):
        place = subjects.place()
        processes = [start(command.arguments, place) for command in commands]
        if any([wait(process) for process in processes]) or incomplete(place):
            yield "lost"
            continue
        found = of_results(place / OUT)
        good = found.keys() == one.keys() and all(found[name] in (one[name], two[name]) for name in found)
        yield "survived" if good else "silently wrong"


def two_runs(subjects: Subjects, tries: int, rng: np.random.Generator) -> Iterator[str]:
    """Train twice in one folder at once; one must be refused in one line, and the other is undisturbed."""
    command = COMMANDS["train"]
    expected, seconds, _ = subjects.undisturbed(command)
    for _ in range(tries):
        place = subjects.place()
        (place / "second").mkdir()
        (place / "second" / "out").symlink_to(place / "out")
        processes = [start(command.arguments, place)]
        time.sleep(rng.uniform(0, seconds))
        processes.append(start(command.arguments, place / "second"))
        statuses = [wait(process) for process in processes]
        if sorted(statuses) != [0, 2]:
            yield "lost"
        else:
            yield "survived" if of_run(place / OUT) == expected else "silently wrong"


# --- damage


@dataclass(frozen=True)
class Subject:
    """A file, and how it is read."""

    path: Path
    read: Callable[[], Any]


def run_subject(name: str, read: Callable[[Run], Any]) -> Callable[[Subjects], Subject]:
    """Return a text file of a finished run."""

    def subject(subjects: Subjects) -> Subject:
        copy = Run(Path(shutil.copytree(subjects.run.folder, subjects.place() / "run")))
        return Subject(copy.folder / name, lambda: fingerprint(read(copy)))

    return subject


def copied(source: Callable[[Subjects], Path], read: Callable[[Path], Any]) -> Callable[[Subjects], Subject]:
    def subject(subjects: Subjects) -> Subject:
        path = Path(shutil.copy(source(subjects), subjects.place()))
        return Subject(path, lambda: read(path))

    return subject


def unfinished(name: str) -> Callable[[Subjects], Subject]:
    """Return a file of a run that has not finished, which is read by resuming it."""

    def subject(subjects: Subjects) -> Subject:
        place = subjects.place()
        path = place / "damaged" / name
        path.parent.mkdir()
        shutil.copy(subjects.unfinished / name, path)

        def read() -> Any:
            shutil.rmtree(place / "x", ignore_errors=True)
            shutil.copytree(subjects.unfinished, place / "x")
            shutil.copy(path, place / "x" / name)
            return of_run(resume(place / "x", progress=False).folder)

        return Subject(path, read)

    return subject


def generated(pattern: str) -> Callable[[Subjects], Subject]:
    """Return a file of generated data."""

    def subject(subjects: Subjects) -> Subject:
        source = ListOps(5, 30, 3, 3, 32, 20, 5, 5)

        def read() -> str:
            folder._checksum.cache_clear()  # a process reads a file once unless its time of change differs
            return of_task(source.build(0))

        read()
        (path,) = folder.data_folder().glob(f"made/listops-*/{pattern}")
        return Subject(path, read)

    return subject


def own_data(subjects: Subjects) -> Subject:
    """Return data of the user as they are kept in the data folder."""
    rng = np.random.default_rng(0)
    task = ap.Task.from_arrays(tokens=rng.integers(4, size=(40, 8)), labels=rng.integers(2, size=40), name="own")
    config = ap.configure(task, recipe="supervised")
    return Subject(folder.data_folder() / config.task, lambda: of_task(build(config)))


def of_task(task: Any) -> str:
    """Return the fingerprint of a task's sequences and labels."""
    splits = {name: [split.inputs[:], split.labels, split.lengths] for name, split in task.splits.items()}
    return fingerprint([{name: [np.asarray(x) for x in arrays] for name, arrays in splits.items()}])


def sweep_subject(pattern: str) -> Callable[[Subjects], Subject]:
    """Return a file of a sweep, which is read as its table: a run that is not done is trained again."""

    def subject(subjects: Subjects) -> Subject:
        copy = Path(shutil.copytree(subjects.sweep, subjects.place() / "sweep"))

        def read() -> str:
            table = ap.open_sweep(copy)
            if set(table["status"]) != {"done"}:
                raise UsageError(f"{copy}: has a run that is not done")
            return table.to_csv()

        return Subject(sorted(copy.glob(pattern))[0], read)

    return subject


FILES: dict[str, Callable[[Subjects], Subject]] = {
    "checkpoint": copied(lambda subjects: subjects.run.checkpoint_paths[-1], of_checkpoint),
    "checkpoint of format 1": copied(lambda subjects: next(subjects.former.glob("sweep/*spt*/**/*.pt")), of_checkpoint),
    "result (.nc)": copied(lambda subjects: subjects.result, of_result),
    "config.json": run_subject("config.json", lambda run: run.content),
    "finished.json": run_subject("finished.json", lambda run: run.finished),
    "metrics.jsonl": run_subject("metrics.jsonl", lambda run: run.metrics),
    "generated data (.npy)": generated("train_inputs.npy"),
    "checksums.json of generated data": generated("checksums.json"),
    "own data (.npz)": own_data,
    "sweep.json": sweep_subject("sweep.json"),
    "config.json in a sweep": sweep_subject("*/config.json"),
    "finished.json in a sweep": sweep_subject("*/finished.json"),
    "metrics.jsonl in a sweep": sweep_subject("*/metrics.jsonl"),
}
UNFINISHED = {
    f"{name} of an unfinished run (resumed)": unfinished(name) for name in ("config.json", "metrics.jsonl", "latest.pt")
}


def cut(content: bytes, tries: int, rng: np.random.Generator) -> Iterator[bytes]:
    for step in range(tries):
        yield content[: len(content) * step // tries]


def flipped(content: bytes, tries: int, rng: np.random.Generator) -> Iterator[bytes]:
    for place in rng.choice(8 * len(content), tries, replace=False).tolist():
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        yield bytes(changed)


def damaged(make: Callable[[Subjects], Subject], damage: Callable[..., Iterator[bytes]]) -> Outcomes:
    def outcomes(subjects: Subjects, tries: int, rng: np.random.Generator) -> Iterator[str]:
        subject = make(subjects)
        intact, content = subject.read(), subject.path.read_bytes()
        try:
            for changed in damage(content, tries, rng):
                subject.path.write_bytes(changed)
                yield read_outcome(subject, intact)
        finally:
            subject.path.write_bytes(content)

    return outcomes


def read_outcome(subject: Subject, intact: Any) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DamageWarning)
            return "survived" if subject.read() == intact else "silently wrong"
    except UsageError as error:
        place, reason = subject.path.parent, str(error)
        named = any(str(path) in reason for path in (place, place.parent, subject.path.name))
        if named and "\n" not in reason:
            return "survived"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    print(f"{subject.path}: lost: {reason}", file=sys.stderr)
    return "lost"


# --- hostile files


def hostile(subjects: Subjects, tries: int, rng: np.random.Generator) -> Iterator[str]:
    """Give every file of the corpus to its reader and commands; the limits are those of test_corpus.py."""
    from test_corpus import is_wrong  # beside this file

    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    script = [sys.executable, str(HERE / "run_corpus.py")]
    process = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    for line in process.stdout.splitlines():
        opened = json.loads(line)
        good = not is_wrong(opened)
        if not good:
            print(f"lost: {opened}", file=sys.stderr)
        yield "silently wrong" if opened["trapped"] else "survived" if good else "lost"


# --- the table


@dataclass(frozen=True)
class Row:
    """A row of the table: at most so many tries of a fault."""

    fault: str
    object: str
    tries: int
    outcomes: Outcomes


def rows() -> list[Row]:
    """Return all rows, unmeasured."""
    kills = {"train": 50, **dict.fromkeys(MEASURES, 10), "report": 6, "sweep": 8}
    disks = {"train": 12, **dict.fromkeys(MEASURES, 4), "report": 3, "sweep": 3}
    files = {**FILES, **UNFINISHED}
    found = [
        Row("SIGKILL at a random moment", name, tries, at_random(COMMANDS[name], signal.SIGKILL))
        for name, tries in kills.items()
    ]
    for number in (signal.SIGTERM, signal.SIGINT):
        for name, tries in (("train", 12), ("proximity", 4)):
            found.append(Row(f"{number.name} at a random moment", name, tries, at_random(COMMANDS[name], number)))
    for name in ("train", "proximity"):  # all measures write by the same functions
        found.append(Row("SIGKILL before every file operation", name, 500, at_operations(COMMANDS[name], kill_self)))
        found.append(Row("no space from every file operation on", name, 500, at_operations(COMMANDS[name], no_space)))
    found += [Row("disk of a random size", name, tries, full_disk(COMMANDS[name])) for name, tries in disks.items()]
    found += [Row("truncation at every percent", name, 100, damaged(make, cut)) for name, make in files.items()]
    for name, make in files.items():
        found.append(Row("a flipped bit", name, 100 if name in UNFINISHED else 500, damaged(make, flipped)))
    found.append(Row("two writers at once", "proximity", 10, two_results))
    found.append(Row("two writers at once", "train", 10, two_runs))
    return [*found, Row("hostile or malformed file", "corpus.py", 1000, hostile)]


def measured(row: Row, subjects: Subjects, tries: int, seed: int) -> dict[str, Any]:
    """Measure one row, with random draws that depend on the seed and on the row."""
    key = int.from_bytes(hashlib.sha256(f"{row.fault}, {row.object}".encode()).digest()[:4], "big")
    counts = Counter(row.outcomes(subjects, min(row.tries, tries), np.random.default_rng([seed, key])))
    names = COLUMNS[3:]
    return {"fault": row.fault, "object": row.object, "tries": counts.total(), **{name: counts[name] for name in names}}


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def as_csv(table: list[dict[str, Any]]) -> str:
    """Return the table as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def as_markdown(table: list[dict[str, Any]]) -> str:
    """Return the table as Markdown, with its totals."""
    totals = {name: sum(int(row[name]) for row in table) for name in COLUMNS[2:]}
    lines = [COLUMNS, ("---", "---", *["---:"] * 4), *([row[name] for name in COLUMNS] for row in table)]
    lines.append(["all", "", *totals.values()])
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def main_of_table() -> None:
    """Measure the rows that the table lacks, and write the table after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tries", type=int, default=1000, help="largest number of tries of a row")
    parser.add_argument("--only", default="", help="measure only rows with this text in fault or object")
    parser.add_argument("--seed", type=int, default=0, help="seed of moments, sizes and bits")
    parser.add_argument(
        "--out", type=Path, default=HERE / "table.csv", help="the table; the .md next to it is the same"
    )
    flags = parser.parse_args()
    matplotlib.use("Agg")
    torch.set_num_threads(1)
    wanted = [row for row in rows() if flags.only in f"{row.fault}, {row.object}"]
    table: dict[tuple[str, str], dict[str, Any]] = {(row["fault"], row["object"]): row for row in read_table(flags.out)}
    with tempfile.TemporaryDirectory() as scratch:
        subjects = Subjects(Path(scratch).resolve())
        for row in wanted:
            if (row.fault, row.object) in table:
                continue
            begin = time.monotonic()
            line = table[row.fault, row.object] = measured(row, subjects, flags.tries, flags.seed)
            print(f"{time.monotonic() - begin:.0f} s", *line.values(), sep=", ", file=sys.stderr, flush=True)
            known = [table[key] for row in rows() if (key := (row.fault, row.object)) in table]
            write_atomic(flags.out, as_csv(known))
            write_atomic(flags.out.with_suffix(".md"), as_markdown(known))


if __name__ == "__main__":
    main_of_table()

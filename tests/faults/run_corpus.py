"""Open every file of the corpus in this process, and print what happened as one line of JSON per file."""

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
"""Wall-clock seconds after which opening a file counts as a hang; a busy machine needs more than CPU time."""


class Hang(BaseException):
    """Opening a file took too long; not an `Exception`, which readers may turn into an error of their own."""


def on_alarm(*_):
    raise Hang


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main():
    from attnprobe.errors import UsageError

    warnings.simplefilter("ignore")
    for module in (
        "attnprobe.tasks",
        "attnprobe.training.checkpoint",
        "attnprobe.results",
        "transformers",
        "attnprobe.model.pretrained",
        "attnprobe.networks.hugging_face",
    ):
        __import__(module)
    files = {name: write for part in corpus.PARTS for name, write in part().items()}
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
    signal.signal(signal.SIGALRM, on_alarm)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for number, (name, write) in enumerate(files.items()):
            place = Path(folder) / str(number)
            place.mkdir()
            path, begin, before = write(place), time.process_time(), peak()
            message = ""
            signal.alarm(SECONDS)
            try:
                corpus.OPEN[name.split("/")[0]](path)
                outcome = "read"
            except UsageError as error:
                outcome, message = "refused", str(error)
            except Hang:
                outcome = "hang"
            except BaseException as error:
                outcome, message = "crash", "".join(traceback.format_exception(error))[-3000:]
            finally:
                signal.alarm(0)
            found = {"name": name, "outcome": outcome, "message": message, "seconds": time.process_time() - begin}
            print(json.dumps({**found, "megabytes": peak() - before, "trapped": Path("trapped").exists()}), flush=True)


if __name__ == "__main__":
    main()

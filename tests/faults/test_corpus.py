"""No file stops a command for long, fills the memory, runs anything or ends in a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SECONDS, MEGABYTES, CHARACTERS = 2, 500, 600
EVERY = 12
"""Share of the files that commands get here: all of them take 10 minutes (`run_corpus.py`)."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What the reader and the commands made of each file of the corpus, in one process."""
    environment = {**os.environ, "ATTNPROBE_DATA": str(tmp_path_factory.mktemp("data")), "HF_HUB_OFFLINE": "1"}
    script = [sys.executable, str(HERE / "run_corpus.py"), str(EVERY)]
    process = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr[-3000:]
    return [json.loads(line) for line in process.stdout.splitlines()]


def is_one_line(message):
    return message.isprintable() and 0 < len(message.partition("; valid: ")[0]) < CHARACTERS


def is_wrong(answer):
    """Whether an answer is neither the content nor one line: slow, large, a traceback, or with commands."""
    if answer["outcome"] not in ("read", "refused") or answer["trapped"]:
        return True
    if answer["megabytes"] > MEGABYTES or (answer["outcome"] == "refused" and answer["seconds"] > SECONDS):
        return True
    if "command" not in answer:
        return answer["outcome"] == "refused" and not is_one_line(answer["message"])
    *warnings, last = answer["message"].split("\n")
    printed = [*warnings, *answer["output"].split("\n")]
    if not all(line.isprintable() for line in [*printed, last]):
        return True
    begins = (line.startswith("attnprobe: ") for line in [*warnings, last] if line)
    if answer["outcome"] == "read":
        return not all(begins)
    clean = not answer["left"] and not answer["output"]
    return not (answer["status"] == 2 and is_one_line(last) and all(begins) and clean)


@pytest.mark.slow
def test_the_corpus_is_read_or_refused_in_one_line(answers):
    files = {answer["name"] for answer in answers}
    assert len(files) >= 500 and sum("command" in answer for answer in answers) >= 1000 // EVERY
    assert not list(filter(is_wrong, answers))


@pytest.mark.slow
def test_valid_files_of_the_corpus_are_read(answers):
    read = {answer["name"] for answer in answers if answer["outcome"] == "read"}
    kinds = ("npz", "tar.gz", "csv", "tsv", "jsonl", "ts", "parquet", "toml", "yaml", "images", "checkpoint", "nc")
    assert {f"{kind}/valid" for kind in kinds} <= read

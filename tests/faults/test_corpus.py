"""No file stops a command for long, fills the memory, runs anything or ends in a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SECONDS, MEGABYTES, CHARACTERS = 2, 500, 400
KNOWN = ("checkpoint/", "nc/")
"""Kinds whose readers are tested elsewhere: here, they must only run nothing and end in time."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """What happened to each file of the corpus, in one process."""
    environment = {**os.environ, "ATTNPROBE_DATA": str(tmp_path_factory.mktemp("data")), "HF_HUB_OFFLINE": "1"}
    script = [sys.executable, str(HERE / "run_corpus.py")]
    process = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    return [json.loads(line) for line in process.stdout.splitlines()]


def is_one_line(message):
    return message.isprintable() and len(message.partition("; valid: ")[0]) < CHARACTERS


@pytest.mark.slow
def test_the_corpus_is_read_or_refused_in_one_line(opened):
    assert len(opened) >= 200
    wrong = [
        file
        for file in opened
        if file["outcome"] == "hang"
        or file["trapped"]
        or file["seconds"] > SECONDS
        or file["megabytes"] > MEGABYTES
        or (not file["name"].startswith(KNOWN) and (file["outcome"] == "crash" or not is_one_line(file["message"])))
    ]
    assert not wrong


@pytest.mark.slow
def test_valid_files_of_the_corpus_are_read(opened):
    read = {file["name"] for file in opened if file["outcome"] == "read"}
    kinds = ("npz", "tar.gz", "csv", "tsv", "jsonl", "ts", "parquet", "toml", "yaml", "images")
    assert {f"{kind}/valid" for kind in kinds} <= read

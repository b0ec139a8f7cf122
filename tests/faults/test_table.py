"""The committed table of faults says that nothing is lost and nothing silently wrong; the script finds the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import table  # noqa: E402

KILLS = "SIGKILL at a random moment"


@pytest.fixture(scope="module")
def committed():
    return table.read_table(HERE / "table.csv")


def test_the_committed_table_has_the_rows_that_the_script_measures(committed):
    assert [(row["fault"], row["object"]) for row in committed] == [(row.fault, row.object) for row in table.rows()]
    assert (HERE / "table.md").read_text() == table.as_markdown(committed)


def test_nothing_is_lost_and_nothing_is_silently_wrong(committed):
    for row in committed:
        assert (row["lost"], row["silently wrong"]) == ("0", "0") and row["survived"] == row["tries"] != "0", row


def test_the_committed_table_has_enough_tries(committed):
    tries = {(row["fault"], row["object"]): int(row["tries"]) for row in committed}
    assert sum(count for (fault, _), count in tries.items() if fault == KILLS) >= 100
    for name in table.FILES:
        assert tries["truncation at every percent", name] == 100 and tries["a flipped bit", name] == 500
    assert tries["hostile or malformed file", "corpus.py"] >= 200


def test_outcomes_are_told_apart(tmp_path):
    """A reader without checks is silently wrong or raises; one with checks names the file."""
    from attnprobe.errors import UsageError

    path = tmp_path / "x"
    path.write_text("3")

    def named():
        raise UsageError(f"{path}: damaged")

    subjects = {"survived": lambda: 3, "silently wrong": lambda: 7, "lost": lambda: 1 / 0}
    for outcome, read in subjects.items():
        assert table.read_outcome(table.Subject(path, read), 3) == outcome
    assert table.read_outcome(table.Subject(path, named), 3) == "survived"


@pytest.mark.slow
def test_one_try_of_each_row_of_a_measure(tmp_path):
    """The other rows take too long here: the script measures them all."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(HERE / "table.py"), "--out", str(tmp_path / "table.csv"), "--tries", "1"]
    done = subprocess.run([*script, "--only", ", proximity"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    measured = table.read_table(tmp_path / "table.csv")
    assert [row["fault"] for row in measured] == [row.fault for row in table.rows() if row.object == "proximity"]
    assert all(row["lost"] == row["silently wrong"] == "0" and int(row["tries"]) for row in measured), measured

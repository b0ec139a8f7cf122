"""Progress on standard error."""

import io

import pytest

from attnprobe import progress
from attnprobe.progress import Bar, bar, silenced


def test_without_a_terminal_progress_is_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with bar(3, "pairs", "step") as steps:
        for step in range(3):
            steps.note(f"pairs: step {step}")
            steps.update()
    text = capsys.readouterr().err
    assert "\r" not in text and "\x1b" not in text
    lines = text.splitlines()
    assert lines[0].startswith("pairs: 0 of 3 steps, ") and lines[-1].startswith("pairs: step 2: 3 of 3 steps, ")
    assert "pairs: step 1: 1 of 3 steps" in text


def test_lines_are_seconds_apart(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 1e6)
    with bar(1000, "pairs", "step") as steps:
        for _ in range(1000):
            steps.note("working")
            steps.update()
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("pairs: 0 of 1000") and last.startswith("working: 1000 of 1000")
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with bar(1000, "pairs", "step", delay=1e6, leave=False) as steps:
        steps.note("working")
        steps.update(1000)
    assert capsys.readouterr().err == ""


def test_a_bar_moves_between_updates():
    terminal = io.StringIO()
    with Bar(total=2, file=terminal, mininterval=0.0) as steps:
        before = len(terminal.getvalue())
        steps.note("evaluating test 1/3")
        assert "evaluating test 1/3" in terminal.getvalue()[before:]
    terminal = io.StringIO()
    with Bar(total=2, file=terminal, mininterval=1e6) as steps:
        before = terminal.getvalue()
        steps.note("evaluating test 1/3")
        assert terminal.getvalue() == before
        steps.last_print_t = -1e9
        steps.note("evaluating test 2/3")
        steps.note("evaluating test 3/3")
        assert "test 2/3" in terminal.getvalue() and "test 3/3" not in terminal.getvalue()


@pytest.mark.parametrize("silent", [False, True])
def test_progress_can_be_silenced(capsys, silent):
    with silenced(silent), bar(2, "pairs", "step") as steps:
        steps.update(2)
        steps.note("done")
    assert bool(capsys.readouterr().err) is not silent
    with bar(2, "pairs", "step", shown=False) as steps:
        steps.update(2)
    assert capsys.readouterr().err == ""

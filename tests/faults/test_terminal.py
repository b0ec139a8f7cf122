"""Text from files reaches terminals and the page without commands, on any terminal."""

import os
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import attnprobe as ap
from attnprobe.cli import main
from attnprobe.cli.printing import print_line, print_table
from attnprobe.errors import UsageError, printable, shown
from attnprobe.explore.page import Subject, page
from attnprobe.figures import draw
from attnprobe.figures.selection import title
from attnprobe.report.write import write_figure

COMMANDS = "\x1b[2J\u202e\n\u2028\ud800"


def ended(*arguments, **environment):
    command = [sys.executable, "-m", "attnprobe", *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, timeout=60)


def test_messages_are_one_short_line_without_control_characters():
    assert str(UsageError(COMMANDS)) == "\\x1b[2J\\u202e\\n\\u2028\\ud800"
    assert len(str(UsageError("x" * 10**6))) <= 1000
    assert printable("ä … می\u200cخواهم") == "ä … می\u200cخواهم"
    assert shown(1 << 10**5) == "int that cannot be written"


def test_tables_and_lines_hold_no_control_characters(capsys):
    print_table([{"name" + COMMANDS: COMMANDS, "x" * 500: 1.0}])
    print_line("note", COMMANDS)
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 4 and all(line.isprintable() and len(line) < 150 for line in lines)


def test_the_page_escapes_text():
    text = page("<script>" + COMMANDS, "", [Subject("<b>" + COMMANDS, {"task": COMMANDS})], {}, COMMANDS)
    head, _, body = text.partition("</head>")
    assert "<title>&lt;script&gt;\\x1b[2J\\u202e\\n\\u2028\\ud800</title>" in head
    content = text[: text.index("<script>")]  # without the script that draws
    assert not any(character in content for character in "\x1b\u202e\u2028\ud800")
    assert "<b>" not in content and "&lt;b&gt;" in body


def test_names_of_variables_and_categories_reach_pages_and_files_without_commands(tmp_path):
    values = {name: (("layer", "head", "loss"), np.ones((1, 2, 2))) for name in ("entropy", "<b>" + COMMANDS)}
    coordinates = {"layer": [0], "head": [0, 1], "loss": ["a", "<i>" + COMMANDS]}
    attributes = {"measure": "proximity", "ci_kind": "t", "ci_prob": 0.95, "sequences": 2, "nulls": 0, "left_out": "{}"}
    result = xr.Dataset(values, coordinates, attributes)
    text = ap.compare({"a": result, "b": result}).save(tmp_path / "page.html").read_text("utf-8")
    content = text[: text.index("<script>")]
    assert "&lt;b&gt;\\x1b[2J" in content and "<b>" not in content and "<i>" not in content
    assert not any(character in text for character in "\x1b\u202e")


def test_class_names_reach_the_terminal_without_commands(tmp_path, capsys):
    names = np.array(["\x1b[2J", "b\u202e"])
    np.savez(tmp_path / "a.npz", tokens=np.arange(40).reshape(20, 2) % 4, labels=np.arange(20) % 2, class_names=names)
    main(["tasks", str(tmp_path / "a.npz")])
    output = capsys.readouterr().out
    assert "\\x1b[2J" in output and all(line.isprintable() for line in output.split("\n"))


def test_names_of_files_reach_bars_folders_and_figures_without_commands(tmp_path, monkeypatch, capsys):
    """Data in the data folder are not copied, so that the name of the file is that of the task."""
    monkeypatch.setenv("ATTNPROBE_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    arrays = {"tokens": np.arange(160).reshape(40, 4) % 4, "labels": np.arange(40) % 2}
    np.savez(tmp_path / "a$\\frac$\x1b[2J\u202e.npz", **arrays)
    few = {"steps": 1, "recipe": "supervised", "evaluations": 1, "checkpoints": 1, "d_model": 4}
    run = ap.train(ap.configure("./a$\\frac$\x1b[2J\u202e.npz", **few))
    assert run.folder.as_posix() == "runs/a$\\frac$-[2J--supervised-0"
    assert "a$\\frac$-[2J- supervised" in capsys.readouterr().err
    result = ap.proximity(run.checkpoints[-1], sequences=2, nulls=1)
    assert result.attrs["title"].isprintable()
    write_figure(draw(result), tmp_path / "figure", result.attrs["title"])
    hostile = result.assign_attrs(title="$\\frac$" + COMMANDS)
    assert title(hostile).isprintable()
    write_figure(draw(hostile), tmp_path / "figure", "x")


@pytest.mark.slow
def test_a_terminal_of_ascii_gets_ascii(tmp_path):
    np.savez(tmp_path / "a.npz", values=np.random.default_rng(0).normal(size=(20, 3)), labels=np.arange(20) % 2)
    found = ended("tasks", tmp_path / "a.npz", PYTHONIOENCODING="ascii")
    assert (found.returncode, found.stderr) == (0, b"")
    assert b" +- " in found.stdout


@pytest.mark.slow
def test_the_help_is_printed_on_a_terminal_of_one_column():
    assert ended("train", "--help", COLUMNS="1").returncode == 0

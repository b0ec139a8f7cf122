"""What the README says is true."""

import re
from pathlib import Path

import pytest

import attnprobe as ap

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_examples_run(tmp_path, monkeypatch):
    example, at_any_length = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    quick = 'ap.configure("pairs", steps=4, pretrain_steps=2, '
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example.replace('ap.configure("pairs", ', quick), names)
    assert names["cache"]["blocks.0.attn.hook_pattern"].shape == (4, 2, 32, 32)
    assert (tmp_path / "proximity.pdf").exists()
    exec(at_any_length.replace("5000", "50"), names)
    assert names["pattern"].top_keys.shape == (1, 4, 50, 3)
    assert names["moments"].interval().shape == (4, 2)


def test_the_file_map_names_every_module():
    (tree,) = re.findall(r"```\nattnprobe/\n(.*?)```", README, re.DOTALL)
    for path in (ROOT / "attnprobe").iterdir():
        if path.suffix == ".py" and not path.name.startswith("__"):
            assert path.name in tree, path.name
        elif path.is_dir() and path.name != "__pycache__":
            assert f"{path.name}/" in tree, path.name


@pytest.mark.parametrize("path", re.findall(r"\]\(([^h)][^)]*)\)", README))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()


def test_every_number_in_the_table_is_a_variable_of_the_result(spt_run):
    result = ap.proximity(spt_run.checkpoints[-1], sequences=4)
    section = README.split("## What proximity measures")[1].split("\n## ")[0]
    names = re.findall(r"^\| `(\w+)`", section, re.MULTILINE)
    assert len(names) == 8
    assert set(names) <= set(result)


def test_the_flags_in_the_readme_exist(capsys):
    from attnprobe.cli import main

    with pytest.raises(SystemExit):
        main(["train", "--help"])
    known = capsys.readouterr().out
    section = README.split("## On the command line")[1].split("\n## ")[0]
    for flag in set(re.findall(r"--[a-z-]+", section)):
        assert flag in known, flag


def test_the_flags_of_measures_in_the_readme_exist(capsys):
    from attnprobe.cli import main

    for name in ("Gradients", "Interventions"):
        with pytest.raises(SystemExit):
            main([name.lower(), "--help"])
        known = capsys.readouterr().out
        section = README.split(f"## {name}:")[1].split("\n## ")[0]
        flags = set(re.findall(r"--[a-z-]+", section))
        assert flags and all(flag in known for flag in flags), name

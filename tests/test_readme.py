"""What the README says is true."""

import re
import textwrap
from pathlib import Path

import pytest

import attnprobe as ap
from attnprobe.sweeps import read_sweep
from attnprobe.tables import MEASURES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_examples_run(tmp_path, monkeypatch):
    blocks = re.findall(r"^ *```python\n(.*?)```", README, re.DOTALL | re.MULTILINE)
    example, own_data, at_any_length, own_measure = map(textwrap.dedent, blocks)
    quick = 'ap.configure("pairs", steps=4, pretrain_steps=2, '
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example.replace('ap.configure("pairs", ', quick), names)
    assert names["cache"]["blocks.0.attn.hook_pattern"].shape == (4, 2, 32, 32)
    assert (tmp_path / "proximity.pdf").exists()
    exec(own_data, names)
    assert names["run"].last.task.data.n == 18
    exec(at_any_length.replace("2500", "50"), names)
    assert names["pattern"].top_keys.shape == (2, 4, 50, 3)
    monkeypatch.setattr(MEASURES, "_entries", dict(MEASURES._entries))
    exec(own_measure, names)
    assert MEASURES["sinks"](names["ckpt"], sequences=4, nulls=1)["sink_null"].sizes["draw"] == 1
    low, high = names["moments"].interval().T
    assert (low < names["moments"].mean).all() and (names["moments"].mean < high).all()


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


@pytest.mark.parametrize("title", ["On the command line", "Tasks", "Training at full scale"])
def test_the_flags_in_the_readme_exist(title, capsys):
    from attnprobe.cli import main

    known = "--num_processes --multi_gpu --cpu --main_process_port"  # accelerate's own
    for command in ("train", "sweep", "tasks"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known += capsys.readouterr().out
    section = README.split(f"## {title}\n")[1].split("\n## ")[0]
    flags = set(re.findall(r"--[a-z][a-z_-]*", section))
    assert flags
    for flag in flags:
        assert flag in known, flag


def test_the_presets_in_the_readme_exist():
    named = set(re.findall(r"--preset ([\w-]+)", README))
    assert named and named <= set(ap.PRESETS)


def test_the_sweep_in_the_readme_is_one(tmp_path):
    (example,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "sweep.toml").write_text(example)
    sweep = read_sweep(tmp_path / "sweep.toml")
    assert len(sweep.cells) == 12
    assert {cell.config.steps for cell in sweep.cells} == {2000}
    assert sweep.out == Path("runs/sweep")


def test_every_task_is_in_the_readme():
    section = README.split("## Tasks\n")[1].split("\n## ")[0]
    assert all(f"`{task}`" in section for task in ap.TASKS)


def test_the_flags_of_measures_in_the_readme_exist(capsys):
    from attnprobe.cli import main

    for name in ("Gradients", "Interventions"):
        with pytest.raises(SystemExit):
            main([name.lower(), "--help"])
        known = capsys.readouterr().out
        section = README.split(f"## {name}:")[1].split("\n## ")[0]
        flags = set(re.findall(r"--[a-z-]+", section))
        assert flags and all(flag in known for flag in flags), name

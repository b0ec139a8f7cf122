"""What the README says is true."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

import attnprobe as ap
from attnprobe.sweeps import read_sweep
from attnprobe.tables import EDITS, MEASURES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_examples_run(tmp_path, monkeypatch):
    blocks = re.findall(r"^ *```python\n(.*?)```", README, re.DOTALL | re.MULTILINE)
    example, own_data, any_model, at_any_length, own_measure = map(textwrap.dedent, blocks)
    quick = 'ap.configure("pairs", steps=4, pretrain_steps=2, '
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example.replace('ap.configure("pairs", ', quick), names)
    assert names["cache"]["blocks.0.attn.hook_pattern"].shape == (4, 2, 32, 32)
    assert (tmp_path / "runs/pairs/proximity.pdf").exists()
    exec(own_data, names)
    assert names["run"].last.task.data.n == 18
    small = "BertConfig(hidden_size=24, intermediate_size=24, "
    exec(any_model.replace("(BertConfig(", f"({small}").replace("64)", "12)"), names)
    assert names["ds"].sizes["layer"] == 2 and np.isfinite(names["effects"]["all_loss_change"]).all()
    exec(at_any_length.replace("2500", "50"), names)
    assert names["pattern"].top_keys.shape == (2, 4, 50, 3)
    monkeypatch.setattr(MEASURES, "_entries", dict(MEASURES._entries))
    exec(own_measure, names)
    assert MEASURES["sinks"](names["ckpt"], sequences=4, nulls=1)["sink_null"].sizes["draw"] == 1
    low, high = names["moments"].interval().T
    assert (low < names["moments"].mean).all() and (names["moments"].mean < high).all()


def test_the_front_page_is_short():
    assert len(README.split("\n# Reference\n")[0].split()) <= 1200


def test_the_file_map_has_one_line_per_module():
    (tree,) = re.findall(r"```\n(attnprobe/\n.*?)```", README, re.DOTALL)
    mapped, folders = set(), []
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth:] = [name]
        mapped.add("".join(folders))
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "attnprobe").rglob("*.py")}
    modules = {path for path in package if not path.rpartition("/")[2].startswith("__")}
    assert modules == {path for path in mapped if path.startswith("attnprobe/") and path.endswith(".py")}
    for path in mapped:
        assert (ROOT / path).exists(), path


def test_the_readme_names_every_intervention():
    section = README.split("### Interventions\n")[1].split("\n##")[0]
    assert set(re.findall(r"`([a-z_]+)`", section)) == set(EDITS)


@pytest.mark.parametrize("path", re.findall(r"\]\(([^h)][^)]*)\)", README))
def test_links_lead_somewhere(path):
    file, _, anchor = path.partition("#")
    target = ROOT / (file or "README.md")
    assert target.exists()
    if anchor:
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("measure", "title", "count"), [("proximity", "What proximity measures", 14), ("positions", "Positions", 5)]
)
def test_every_number_in_the_table_is_a_variable_of_the_result(spt_run, measure, title, count):
    result = getattr(ap, measure)(spt_run.checkpoints[-1], sequences=4)
    section = README.split(f"### {title}")[1].split("\n##")[0]
    names = [
        name for cell in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    ]
    assert len(names) == count
    assert set(names) <= set(result)


@pytest.mark.parametrize("title", ["On the command line", "Tasks", "Training"])
def test_the_flags_in_the_readme_exist(title, capsys):
    from attnprobe.cli import main

    known = "--num_processes --multi_gpu --standalone --nproc_per_node"  # accelerate's own
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

    for name in ("Measures", "Gradients", "Interventions"):
        with pytest.raises(SystemExit):
            main(["proximity" if name == "Measures" else name.lower(), "--help"])
        known = capsys.readouterr().out
        section = README.split(f"## {name}\n")[1].split("\n##")[0]
        flags = set(re.findall(r"--[a-z][a-z-]*", section))
        assert flags and all(flag in known for flag in flags), name

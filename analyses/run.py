"""Run analyses: train missing runs, measure them, and write results, figures, captions and tables.

    python analyses/run.py --list
    python analyses/run.py claim1_spt_gain claim3_query_key
    python analyses/run.py all --figures-only

Runs are stored in analyses/runs, and interrupted analyses resume. Results are written to analyses/results/NAME.nc,
figures to analyses/figures/NAME.pdf and NAME.png with the caption in NAME.txt, and the tables of analyses/README.md are
regenerated. With --quick, all output goes to analyses/runs/quick instead. With --full, file names end in -full.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Protocol, cast

import claim1_spt_gain
import claim2_not_depth_not_generalisation
import claim3_query_key
import claim4_proximity
import claim5_blindness
import claim6_encodings
import claim7_objectives
import claim8_real_images
import claim9_how_it_arises
import claim10_mnist
import full_lra
import torch
import tyro
import xarray as xr
from conclusion import Conclusion, Part
from lab import FOLDER, RUNS, Lab, Scale
from matplotlib.figure import Figure
from settings import CHOSEN, SMALL, TASKS

from attnprobe.config import TrainConfig
from attnprobe.errors import UsageError, listed
from attnprobe.files import write_atomic
from attnprobe.report.write import write_figure
from attnprobe.results import open_result, save


class Analysis(Protocol):
    """Interface of an analysis module."""

    TITLE: str

    def study(self, lab: Lab) -> xr.Dataset:
        """Train and measure; return the result."""
        ...

    def draw(self, result: xr.Dataset) -> Figure:
        """Draw the result; needs no network."""
        ...

    def caption(self, result: xr.Dataset) -> str:
        """Return the caption of the figure."""
        ...

    def conclude(self, result: xr.Dataset) -> Conclusion:
        """Apply the rule of the module's docstring."""
        ...


CLAIMS: dict[str, Analysis] = {
    module.__name__: module
    for module in (
        claim1_spt_gain,
        claim2_not_depth_not_generalisation,
        claim3_query_key,
        claim4_proximity,
        claim5_blindness,
        claim6_encodings,
        claim7_objectives,
        claim8_real_images,
        claim9_how_it_arises,
        claim10_mnist,
    )
}
ANALYSES = {**CLAIMS, full_lra.__name__: cast(Analysis, full_lra)}
"""The claims (run by ``all``) and `full_lra`, which takes days on a GPU."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; user errors print one line and exit with status 2."""
    try:
        tyro.cli(run, args=arguments, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    except UsageError as error:
        print(f"run.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def run(
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    /,
    list: bool = False,
    quick: bool = False,
    full: bool = False,
    figures_only: bool = False,
    workers: int = 2,
    device: str = "cpu",
) -> None:
    """Run analyses.

    Args:
        names: Names of analyses, or all for every claim (full_lra needs a GPU and has its own command).
        list: List the analyses and their verdicts.
        quick: Run two minutes each, with fewer seeds, tasks and steps.
        full: Use larger networks and more seeds, for a GPU.
        figures_only: Redraw figures and tables from existing results, without training.
        workers: Number of parallel runs, one thread each.
        device: torch device.
    """
    if list:
        for name, module in ANALYSES.items():
            path = result_path(name, "default")
            verdict = module.conclude(open_result(path)).verdict if path.exists() else "not run"
            print(f"{name:36s} {verdict:20s} {module.TITLE}")
        return
    if quick and full:
        raise UsageError("--quick and --full are mutually exclusive")
    selected = tuple(CLAIMS) if names == ("all",) else names
    for name in selected:
        if name not in ANALYSES:
            raise UsageError(f"unknown analysis {name!r}; valid: {listed(ANALYSES)}, or all")
    if not selected:
        raise UsageError(f"no analysis named; valid: {listed(ANALYSES)}, or all")
    if full_lra.__name__ in selected and not (quick or figures_only):
        raise UsageError("full_lra takes days; run it in pieces: python analyses/full_lra.py --minutes 9 --device cuda")
    scale: Scale = "quick" if quick else "full" if full else "default"
    torch.set_num_threads(1)
    for name in selected:
        if figures_only:
            if names == ("all",) and not result_path(name, scale).exists():
                continue
            result = open_result(result_path(name, scale))
        else:
            result = studied(name, Lab(scale, workers, device))
        conclusion = shown(name, result, scale)
        print(
            f"{name}: {conclusion.verdict}",
            *map(said_of, conclusion.parts),
            f"figure: {figure_path(name, scale)}.pdf",
            sep="\n  ",
        )
    if quick:
        print("quick: two seeds and few steps only test that the code runs; ignore the verdict")
    else:
        write_tables()


def result_path(name: str, scale: Scale) -> Path:
    """Return the path of an analysis's result."""
    return (RUNS / "quick" if scale == "quick" else FOLDER / "results") / f"{_stem(name, scale)}.nc"


def figure_path(name: str, scale: Scale) -> Path:
    """Return the path of an analysis's figure, without suffix."""
    return (RUNS / "quick" if scale == "quick" else FOLDER / "figures") / _stem(name, scale)


def _stem(name: str, scale: Scale) -> str:
    return f"{name}-full" if scale == "full" else name


def studied(name: str, lab: Lab) -> xr.Dataset:
    """Run an analysis and save its result with its cost."""
    result = ANALYSES[name].study(lab)
    facts = {"scale": lab.scale, "device": lab.device, **lab.cost, "trained_at": lab.trained_at}
    result.attrs |= {"analysis": name, "choices": choices(lab.used.values()), **facts}
    path = result_path(name, lab.scale)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(result, path)
    return result


def choices(configs: Iterable[TrainConfig]) -> str:
    """Return, as JSON, the search's choices and the number of steps for the tasks of these configurations."""
    tasks = {config.task for config in configs}
    return json.dumps(
        {
            f"{task}, {recipe}": [*choice, TASKS[task.removesuffix(SMALL)]["steps"]]
            for (task, recipe), choice in CHOSEN.items()
            if task.removesuffix(SMALL) in tasks
        }
    )


def shown(name: str, result: xr.Dataset, scale: Scale) -> Conclusion:
    """Write the figure and caption of a result, and return its conclusion."""
    module, path = ANALYSES[name], figure_path(name, scale)
    write_figure(module.draw(result), path, f"{name}: {module.TITLE}")
    write_atomic(path.with_name(f"{path.name}.txt"), module.caption(result) + "\n")
    return module.conclude(result)


def held_of(told: Conclusion) -> str:
    """Format how many of the parts that count hold."""
    held = [part.held for part in told.parts if part.decides]
    undecided = f", {held.count(None)} undecided" if None in held else ""
    return f"{held.count(True)} of {len(held)}{undecided}"


def said_of(part: Part) -> str:
    """Format one part of a claim as one line."""
    answer = "undecided" if part.held is None else "yes" if part.held else "no"
    return f"{answer}{'' if part.decides else ' (not counted)'}: {part.asked}: {part.found}"


def write_tables() -> None:
    """Replace the table of all results in the README, and write the page of all parts."""
    page = FOLDER / "README.md"
    begin, end = "<!-- table: made by run.py -->", "<!-- end of table -->"
    before, _, rest = page.read_text().partition(begin)
    write_atomic(page, f"{before}{begin}\n{table()}\n{end}{rest.partition(end)[2]}")
    write_atomic(FOLDER / "results/parts.md", details())


def table() -> str:
    """Return the table of all analyses as Markdown."""
    rows = [
        "| claim | verdict | effect (95 % interval) | cost | see |",
        "|---|---|---|---|---|",
    ]
    for number, (name, module) in enumerate(ANALYSES.items(), start=1):
        claim = f"{number}. {module.TITLE}" if name in CLAIMS else module.TITLE
        path = result_path(name, "default")
        script = f"[script]({name}.py)"
        if not path.exists():
            rows.append(f"| {claim} | not run | | | {script} |")
            continue
        result = open_result(path)
        conclusion = module.conclude(result)
        unit = "GPU" if result.attrs["device"].startswith("cuda") else "core"
        runs, minutes = result.attrs["runs"], result.attrs["core_minutes"]
        cost = f"{conclusion.seeds} seeds, {runs} runs, {minutes:.0f} {unit}-minutes"
        links = f"[figure](figures/{name}.png), [caption](figures/{name}.txt), {script}"
        verdict = f"**{conclusion.verdict}**, {held_of(conclusion)}"
        rows.append(f"| {claim} | {verdict} | {conclusion.effect} | {cost} | {links} |")
    return "\n".join(rows)


def details() -> str:
    """Return the page of the outcome of every part of every rule."""
    lines = [
        "# Every part of every rule",
        "",
        "Written by `run.py`. *No* means not shown, or shown to be false; the interval tells which.",
        "",
    ]
    for name, module in ANALYSES.items():
        path = result_path(name, "default")
        if path.exists():
            conclusion = module.conclude(open_result(path))
            parts = (f"- {said_of(part)}" for part in conclusion.parts)
            lines += [f"**{module.TITLE}**: {held_of(conclusion)}", "", *parts, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Run analyses: train what is missing, measure it, write results, figures, captions and the table.

    python analyses/run.py --list
    python analyses/run.py claim1_spt_gain claim3_query_key
    python analyses/run.py all --figures-only

What is cut off goes on where it was: runs are kept in analyses/runs. Results are written to analyses/results/NAME.nc,
figures to analyses/figures/NAME.pdf and .png with their caption in NAME.txt, and the table of analyses/README.md is
made anew. With --quick everything goes to analyses/runs/quick instead, and with --full to names that end in -full.
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
from attnprobe.files import write_whole
from attnprobe.report.write import write_figure
from attnprobe.results import open_result, save


class Analysis(Protocol):
    """What an analysis is: a module with these names."""

    TITLE: str

    def study(self, lab: Lab) -> xr.Dataset:
        """Train and measure."""
        ...

    def draw(self, result: xr.Dataset) -> Figure:
        """Draw the result, without any network."""
        ...

    def caption(self, result: xr.Dataset) -> str:
        """Return the caption of the figure."""
        ...

    def conclude(self, result: xr.Dataset) -> Conclusion:
        """Say what came of it, by the rule of the module's docstring."""
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
    )
}
ANALYSES = {**CLAIMS, full_lra.__name__: cast(Analysis, full_lra)}
"""The claims, which all stands for, and what takes a GPU for days."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what the user can mend is said in one line, with exit status 2."""
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
        names: Which ones, or all of the claims (full_lra, for a GPU, has a command of its own).
        list: Say what there is, and what came of it.
        quick: Two minutes each: fewer seeds, tasks and steps.
        full: Larger networks and more seeds, for a GPU.
        figures_only: Draw the figures and the table from the results that are there; nothing is trained.
        workers: Runs at a time, one thread each.
        device: torch device.
    """
    if list:
        for name, module in ANALYSES.items():
            path = result_path(name, "default")
            said = module.conclude(open_result(path)).verdict if path.exists() else "not run"
            print(f"{name:36s} {said:20s} {module.TITLE}")
        return
    if quick and full:
        raise UsageError("--quick and --full: choose one")
    chosen = tuple(CLAIMS) if names == ("all",) else names
    for name in chosen:
        if name not in ANALYSES:
            raise UsageError(f"no analysis {name!r}; valid: {listed(ANALYSES)}, or all")
    if not chosen:
        raise UsageError(f"name an analysis, or all: {listed(ANALYSES)}")
    if full_lra.__name__ in chosen and not (quick or figures_only):
        raise UsageError("full_lra takes days, in pieces: python analyses/full_lra.py --minutes 9 --device cuda")
    scale: Scale = "quick" if quick else "full" if full else "default"
    torch.set_num_threads(1)
    for name in chosen:
        if figures_only:
            if names == ("all",) and not result_path(name, scale).exists():
                continue
            result = open_result(result_path(name, scale))
        else:
            result = studied(name, Lab(scale, workers, device))
        told = shown(name, result, scale)
        print(
            f"{name}: {told.verdict}", *map(said_of, told.parts), f"figure: {figure_path(name, scale)}.pdf", sep="\n  "
        )
    if quick:
        print("quick: two seeds and few steps show that it runs, and nothing else")
    else:
        write_tables(FOLDER / "README.md")


def result_path(name: str, scale: Scale) -> Path:
    """Return where the result of an analysis is."""
    return (RUNS / "quick" if scale == "quick" else FOLDER / "results") / f"{_stem(name, scale)}.nc"


def figure_path(name: str, scale: Scale) -> Path:
    """Return where its figure is, without the ending."""
    return (RUNS / "quick" if scale == "quick" else FOLDER / "figures") / _stem(name, scale)


def _stem(name: str, scale: Scale) -> str:
    return f"{name}-full" if scale == "full" else name


def studied(name: str, lab: Lab) -> xr.Dataset:
    """Run an analysis and keep its result, with what it cost."""
    result = ANALYSES[name].study(lab)
    of_lab = {"scale": lab.scale, "device": lab.device, **lab.cost, "trained_at": lab.trained_at}
    result.attrs |= {"analysis": name, "choices": choices(lab.used.values()), **of_lab}
    path = result_path(name, lab.scale)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(result, path)
    return result


def choices(configs: Iterable[TrainConfig]) -> str:
    """Return what was chosen by the search, and the steps, of the tasks of these configurations, as JSON."""
    tasks = {config.task for config in configs}
    return json.dumps(
        {
            f"{task}, {recipe}": [*choice, TASKS[task.removesuffix(SMALL)]["steps"]]
            for (task, recipe), choice in CHOSEN.items()
            if task.removesuffix(SMALL) in tasks
        }
    )


def shown(name: str, result: xr.Dataset, scale: Scale) -> Conclusion:
    """Write figure and caption of a result, and say what came of it."""
    module, path = ANALYSES[name], figure_path(name, scale)
    write_figure(module.draw(result), path, f"{name}: {module.TITLE}")
    write_whole(path.with_name(f"{path.name}.txt"), module.caption(result) + "\n")
    return module.conclude(result)


def held_of(told: Conclusion) -> str:
    """Say how many parts of a claim hold, of those that decide."""
    held = [part.held for part in told.parts if part.decides]
    open_ones = f", {held.count(None)} cannot be told" if None in held else ""
    return f"{held.count(True)} of {len(held)}{open_ones}"


def said_of(part: Part) -> str:
    """Say one part of a claim in a line."""
    held = "cannot be told" if part.held is None else "yes" if part.held else "no"
    return f"{held}{'' if part.decides else ' (decides nothing)'}: {part.asked}: {part.found}"


def write_tables(page: Path) -> None:
    """Put the table of all results, and their parts, in the places of those on the page."""
    text = page.read_text()
    for mark, made in (("table", table()), ("parts", details())):
        begin, end = f"<!-- {mark}: made by run.py -->", f"<!-- end of {mark} -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{made}\n{end}{rest.partition(end)[2]}"
    write_whole(page, text)


def table() -> str:
    """Return the table of all analyses, in Markdown."""
    rows = [
        "| claim | verdict | effect (95 % interval) | seeds | cost | figure, command |",
        "|---|---|---|---|---|---|",
    ]
    for name, module in ANALYSES.items():
        path = result_path(name, "default")
        command = f"`python analyses/{f'run.py {name}' if name in CLAIMS else f'{name}.py'}`"
        if not path.exists():
            rows.append(f"| {module.TITLE} | not run | | | | {command} |")
            continue
        result = open_result(path)
        told = module.conclude(result)
        unit = "GPU" if result.attrs["device"].startswith("cuda") else "core"
        cost = f"{result.attrs['runs']} runs, {result.attrs['core_minutes']:.0f} {unit}-minutes"
        figure = f"[figure](figures/{name}.png) ([caption](figures/{name}.txt))"
        verdict = f"**{told.verdict}**, {held_of(told)}"
        rows.append(f"| {module.TITLE} | {verdict} | {told.effect} | {told.seeds} | {cost} | {figure}, {command} |")
    return "\n".join(rows)


def details() -> str:
    """Return what each part of each claim's rule came to, in Markdown."""
    lines = []
    for name, module in ANALYSES.items():
        path = result_path(name, "default")
        if path.exists():
            told = module.conclude(open_result(path))
            lines += [f"**{module.TITLE}**: {held_of(told)}", "", *(f"- {said_of(part)}" for part in told.parts), ""]
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    main()

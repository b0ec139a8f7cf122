"""Views: one sequence in every head of a network, as a page for notebooks and files."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnprobe.errors import UsageError, printable
from attnprobe.explore import charts
from attnprobe.explore.cubes import Cube, rounded
from attnprobe.explore.page import Builder, render
from attnprobe.files import write_atomic, writing
from attnprobe.measures.driver import chunks
from attnprobe.measures.terms import means, visit_parts
from attnprobe.networks import probe
from attnprobe.networks.base import LeavesOut, NamesTokens, Probe, device_of, read
from attnprobe.scores import Scores
from attnprobe.tables import TASKS
from attnprobe.training.checkpoint import load
from attnprobe.training.objectives import Batch
from attnprobe.training.run import Run

BINS = 64
"""Most queries, and keys, of a panel; longer sequences are averaged over bins."""
SMALLEST, MOST = 16, 800_000
"""Fewest bins of a panel, and most values of a page."""
TILE = 16
"""Most queries, and keys, of a head in the picture of all heads."""
DIGITS = 3
"""Significant digits of scores and patterns."""
BLOCK = 2**24
"""Scores that are computed at once."""
SEQUENCES = 64
"""Training sequences of the means that define the position term."""
HEIGHT = 900
"""Height in a notebook, in pixels."""
PANELS = {
    "score": "score, row-centred",
    "pattern": "attention pattern",
    "position term": "position term of the score, row-centred",
}


@dataclass(frozen=True)
class View:
    """An interactive page; Jupyter shows it, `save` writes it."""

    html: str

    def save(self, path: str | Path) -> Path:
        """Write the page as one file that opens without a network; raise `UsageError` if that is impossible."""
        path = Path(path)
        with writing(path):
            write_atomic(path, self.html)
        return path

    def _repr_html_(self) -> str:
        """Return the page in a frame of its own, so that several views share a notebook."""
        source = html.escape(self.html)
        return f'<iframe srcdoc="{source}" style="width:100%;height:{HEIGHT}px;border:0" title="attnprobe"></iframe>'

    def __repr__(self) -> str:
        """Return the size of the page."""
        return f"<attnprobe view, {len(self.html) / 2**20:.1f} MiB; .save('view.html') writes it>"


def view(
    of: Any,
    inputs: Any = None,
    *,
    sequence: int = 0,
    layer: int | None = None,
    head: int | None = None,
    tokens: Sequence[str] = (),
    steps: int = 8,
) -> View:
    r"""Show one sequence in every head: scores, pattern and position term, with its tokens on both axes.

    Three maps over query and key: the *score*, minus its mean over the visible keys of each query (which the softmax
    ignores); the *pattern*, its softmax; and the *position term*, the part of the score that comes from positions
    alone (`attnprobe.positions`), also row-centred. A picture of all heads chooses among them. Sequences longer than
    64 tokens are averaged over bins; with many heads and steps, bins are larger. For an image, the pattern of a chosen
    query is also shown on the grid of its pixels.

    Args:
        of: Run (its checkpoints, with a slider over steps), checkpoint, path of either, PyTorch model (with
            ``inputs``) or `Probe`.
        inputs: Inputs of ``of`` if it is a PyTorch model; see `attnprobe.network`.
        sequence: Index of the test sequence. Of a PyTorch model without ``reference``, every second row is reference
            data: sequence k is row 2 k, which the page says.
        layer: Layer that is shown first; by default that of the head which attends least like uniform attention.
        head: Head that is shown first.
        tokens: Text of each token of the sequence, if the task does not know it.
        steps: Most checkpoints of a run; if it has more, evenly spaced ones.

    Returns:
        A page that Jupyter displays, with ``save(path)``.

    Raises:
        UsageError: If the sequence, the layer or the head does not exist.

    Example:
        >>> import attnprobe as ap
        >>> ap.view("runs/pairs", sequence=3).save("view.html")  # doctest: +SKIP
    """
    probes = _probes(of, inputs, steps)
    subject = list(probes.values())[-1]
    shape, count = subject.network.shape, len(subject.task.test)
    valid = {"sequence": (sequence, count), "layer": (layer, shape.layers), "head": (head, shape.heads)}
    for name, (value, size) in valid.items():
        if value is not None and not 0 <= value < size:
            raise UsageError(f"{name}={value}: must be 0 ... {size - 1}")
    batch = _batch(subject, sequence)
    measured, names = _measured(subject, batch), _names(subject, sequence, tokens)
    if len(names) != len(measured):
        raise UsageError(f"tokens: {len(names)} texts; must be {len(measured)}, one for each token of the sequence")
    names = [name for name, is_measured in zip(names, measured, strict=True) if is_measured]
    side = math.isqrt(MOST // (len(PANELS) * shape.layers * shape.heads * len(probes)))
    side = min(len(names), BINS, max(SMALLEST, side))
    maps = [_maps(one, batch, side) for one in probes.values()]
    panels = {name: np.stack([of_step[name] for of_step in maps]) for name in PANELS}
    panels = {name: values for name, values in panels.items() if np.isfinite(values).any()}

    builder = Builder([subject.title or type(subject.network).__name__])
    builder.start |= _first_head(panels["pattern"][-1], layer, head)
    shared: dict[str, list[int | float]] = {
        "step": list(probes),
        "layer": list(range(shape.layers)),
        "head": list(range(shape.heads)),
    }
    groups = [
        [_all_heads(builder, panels["pattern"], shared)],
        [_panel(builder, name, values, shared, names) for name, values in panels.items()],
    ]
    if shape.grid is not None and math.prod(shape.grid) == side == len(names):
        groups.append(_on_grid(builder, panels["pattern"], shared, shape.grid, _pixels(subject, batch)))
    text = f"{_about(subject, batch, sequence)}, {len(names)} tokens. "
    if side < len(names):
        text += f"Means over {side} bins of queries and of keys. "
    text += "Click on a head, or on a query in a map, to choose it."
    section = {"id": "view", "name": "attention", "groups": groups}
    return View(render(subject.title or "attnprobe", text, [section], builder, names))


# --- what is shown


def _probes(of: Any, inputs: Any, most: int) -> dict[int, Probe]:
    """Return what is shown at each step."""
    if isinstance(of, str | Path):
        of = Run.open(of) if Path(of).is_dir() else load(of)
    if not isinstance(of, Run):
        subject = probe(of, inputs)
        return {int(subject.facts.get("step", 0)): subject}
    paths = of.checkpoint_paths
    kept = np.unique(np.linspace(0, len(paths) - 1, min(max(most, 1), len(paths))).round().astype(int))
    checkpoints = [load(paths[index]) for index in kept]
    return {checkpoint.step: probe(checkpoint) for checkpoint in checkpoints}


def _length(subject: Probe, sequence: int) -> int:
    split = subject.task.test
    return split.inputs.shape[1] if split.lengths is None else int(split.lengths[sequence])


def _batch(subject: Probe, sequence: int) -> Batch:
    """Return a test sequence without padding."""
    split, device = subject.task.test, device_of(subject.network)
    labels = torch.from_numpy(split.labels[[sequence]]).long()
    return Batch(split.tensor([sequence], _length(subject, sequence)).to(device), labels.to(device))


def _pixels(subject: Probe, batch: Batch) -> Tensor | None:
    """Return the values of the pixels of an image, if a token is a single one."""
    is_image = batch.inputs.ndim == 2 and not isinstance(subject.network, NamesTokens)
    return batch.inputs[0] if is_image else None


def _measured(subject: Probe, batch: Batch) -> list[bool]:
    """Return which tokens are shown: all that are not left out."""
    network = subject.network
    left_out = network.left_out(batch) if isinstance(network, LeavesOut) else None
    return [True] * batch.inputs.shape[1] if left_out is None else (~left_out[0]).tolist()


def _names(subject: Probe, sequence: int, tokens: Sequence[str]) -> list[str]:
    """Return a text for each token: what its id stands for, its place in an image, or its value."""
    if tokens:
        return [printable(token) for token in tokens]
    task, network, length = subject.task, subject.network, _length(subject, sequence)
    grid = network.shape.grid
    if grid is not None and math.prod(grid) == length:
        return [f"({place // grid[1]}, {place % grid[1]})" for place in range(length)]
    if isinstance(network, NamesTokens):
        return list(map(printable, network.token_names(_batch(subject, sequence))[1]))
    values = np.asarray(task.test.inputs[[sequence]])[0, :length]
    if task.data.inputs == "tokens":
        symbols = task.data.symbols or (TASKS[task.name].symbols if task.name in TASKS else ())
        return [printable(symbols[index]) if index < len(symbols) else str(index) for index in values.tolist()]
    return [f"{value:.3g}" if value.ndim == 0 else f"token {place}" for place, value in enumerate(values)]


def _about(subject: Probe, batch: Batch, sequence: int) -> str:
    """Return which sequence is shown, with its label if it has one."""
    if isinstance(subject.network, NamesTokens):
        return subject.network.token_names(batch)[0].capitalize()
    data, label = subject.task.data, int(batch.labels[0])
    text = f"Test sequence {sequence}"
    if label < 0 or data.classes < 2:
        return text
    return f"{text}, label {printable(data.class_names[label]) if data.class_names else label}"


def _maps(subject: Probe, batch: Batch, side: int) -> dict[str, np.ndarray]:
    """Return the panels of one sequence, [layer, head, query bin, key bin]; NaN if the network does not show them."""
    network, objective = subject.network, subject.objectives[0]
    shape = network.shape
    panels = {name: np.full((shape.layers, shape.heads, side, side), np.nan) for name in PANELS}

    def add(layer: int, scores: Scores, position: Scores | None) -> None:
        panels["score"][layer], panels["pattern"][layer] = _binned(scores, side)
        if position is not None:
            panels["position term"][layer], _ = _binned(position, side)

    if not shape.knows_queries:
        read(network, batch, objective, lambda heads: add(heads.layer, heads.scores, None))
        return panels
    train = subject.task.train
    rows = np.arange(min(SEQUENCES, len(train)))
    data_means = means(network, (chunk for _, chunk in chunks(train, rows, network)), objective)
    visit_parts(
        network,
        batch,
        data_means,
        lambda layer, parts: add(layer, parts.scores, parts.terms["position-position"]),
        objective,
    )
    return panels


def _binned(scores: Scores, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return row-centred scores and the pattern of one sequence, [head, query bin, key bin]: means over visible pairs.

    Bins without visible pairs are NaN. Scores are computed in blocks of queries, so that memory is linear in n.
    """
    tokens = torch.arange(scores.shape[2]) if scores.real is None else scores.real[0].cpu().nonzero()[:, 0]
    q, k = (x[0][:, tokens].double().cpu() for x in (scores.q, scores.k))
    heads, n, _ = q.shape
    bins = torch.arange(n) * side // n
    sums = torch.zeros(3, heads, side, side, dtype=torch.float64)  # scores, pattern, visible pairs
    size = max(1, BLOCK // (heads * n))
    for start in range(0, n, size):
        rows = tokens[start : start + size]
        block = q[:, start : start + size] @ k.mT * scores.factor
        added = scores.added_to(int(rows[0]), int(rows[-1]) + 1)
        if added is not None:
            added = added[0].double().cpu().expand(-1, int(rows[-1] - rows[0]) + 1, scores.shape[2])
            block = block + added[:, rows - rows[0]][:, :, tokens]
        visible = block.isfinite()
        row_mean = block.where(visible, 0.0).sum(-1, keepdim=True) / visible.sum(-1, keepdim=True)
        centred = (block - row_mean).where(visible, 0.0)
        pattern = block.softmax(-1)
        for total, values in zip(sums, (centred, pattern, visible.double()), strict=True):
            by_key = torch.zeros(heads, len(rows), side, dtype=torch.float64).index_add_(2, bins, values)
            total.index_add_(1, bins[start : start + size], by_key)
    score, pattern = (sums[:2] / sums[2]).where(sums[2] > 0, torch.nan).numpy()
    return score, pattern


def _first_head(pattern: np.ndarray, layer: int | None, head: int | None) -> dict[str, int]:
    """Return the layer and the head that are shown first: those given, else the farthest from uniform attention."""
    spread = np.nanvar(pattern, axis=(2, 3))
    if layer is not None:
        spread[np.arange(len(spread)) != layer] = -1
    if head is not None:
        spread[:, np.arange(spread.shape[1]) != head] = -1
    first_layer, first_head = np.unravel_index(spread.argmax(), spread.shape)
    return {"layer": int(first_layer), "head": int(first_head), "query": 0}


# --- figures


def _all_heads(builder: Builder, pattern: np.ndarray, shared: dict[str, list[int | float]]) -> dict[str, Any]:
    """Return the picture of the patterns of all heads, a tile for each."""
    _, layers, heads, side, _ = pattern.shape
    tile = min(TILE, side)
    starts = np.searchsorted(np.arange(side) * tile // side, np.arange(tile))
    sizes = np.diff([*starts, side])
    tiles = np.nan_to_num(pattern)
    tiles = np.add.reduceat(np.add.reduceat(tiles, starts, axis=3), starts, axis=4) / (sizes[:, None] * sizes)
    axes = {**shared, "query": list(range(tile)), "key": list(range(tile))}
    values = {"value": rounded(tiles.ravel(), DIGITS)}
    cube = Cube("map", "all heads", "attention pattern", "1", axes, {"query": "", "key": ""}, values)
    places = [(0, builder.add_cubes([cube])[0])]
    spec = charts.tiles(layers, heads, tile)
    figure = builder.figure(
        "pattern of all heads", spec, places, "tiles", ("layer", "head", "query"), clickable=True, choose=False
    )
    builder.charts[-1]["tile"] = tile
    return figure


def _panel(
    builder: Builder, name: str, values: np.ndarray, shared: dict[str, list[int | float]], names: Sequence[str]
) -> dict[str, Any]:
    """Return the map of one panel for the chosen head."""
    side = values.shape[-1]
    is_exact = side == len(names)
    places: list[int | float] = [-(-place * len(names) // side) for place in range(side)]
    titles = {axis: axis if is_exact else f"first {axis} of the bin" for axis in ("query", "key")}
    axes = {**shared, "query": places, "key": places}
    cube = Cube("map", name, PANELS[name], "1", axes, titles, {"value": rounded(values.ravel(), DIGITS)})
    spec = charts.heat_map(titles["key"], titles["query"], list(names) if is_exact else None)
    indices = [(0, builder.add_cubes([cube])[0])]
    caption = f"{PANELS[name]}, of the chosen head"
    return builder.figure(caption, spec, indices, name, ("query",), clickable=is_exact, choose=False)


def _on_grid(
    builder: Builder,
    pattern: np.ndarray,
    shared: dict[str, list[int | float]],
    grid: tuple[int, int],
    pixels: Tensor | None,
) -> list[dict[str, Any]]:
    """Return the image, if its pixels are known, and the pattern of the chosen query on them."""
    places: dict[str, list[int | float]] = {"row": list(range(grid[0])), "column": list(range(grid[1]))}
    titles, figures = {"row": "row", "column": "column"}, []
    spec = charts.heat_map("column", "row", sides=grid)
    if pixels is not None:
        values = {"value": rounded(pixels.double().cpu().numpy(), DIGITS)}
        image = Cube("map", "image", "input", "1", places, titles, values)
        figures.append(builder.figure("image", spec, [(0, builder.add_cubes([image])[0])], "image", choose=False))
    axes = {**shared, "query": list(range(pattern.shape[-1])), **places}
    values = {"value": rounded(pattern.ravel(), DIGITS)}
    attention = Cube("map", "pixels", "attention pattern", "1", axes, titles, values)
    caption = "attention of the chosen query, of the chosen head"
    figures.append(builder.figure(caption, spec, [(0, builder.add_cubes([attention])[0])], "pixels", choose=False))
    return figures

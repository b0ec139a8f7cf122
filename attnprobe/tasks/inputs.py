"""Token ids or real values from the inputs of user data: texts, lists of numbers, arrays and images."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from attnprobe.errors import UsageError, listed
from attnprobe.tasks.labelled_files import RATIO, SMALL, pixels, read_image
from attnprobe.tasks.number_lists import number_lists
from attnprobe.tasks.pixels import patches
from attnprobe.tasks.sequences import Sequences, extremes

BYTES = 256
UNKNOWN, SEPARATOR = "<unk>", "<sep>"
Kind = Literal["text", "tokens", "values", "images"]
FOUND = {
    "text": ("text",),
    "tokens": ("numbers",),
    "values": ("numbers", "channels", "image"),
    "images": ("image", "channels"),
}
"""What cells of each kind are found to be: "image" is a two-dimensional array of bytes."""
COLOURS = (1, 3)
"""Numbers of colours by which the colour axis of images is recognised."""


@dataclass(frozen=True)
class Inputs:
    """Sequences of a task before they are split."""

    sequences: Sequences
    kind: Literal["tokens", "values"]
    vocabulary: int | None = None
    """Number of ids; None if the largest id determines it."""
    words: tuple[str, ...] = ()
    """Word of each id, if tokens are words."""
    grid: tuple[int, int] | None = None
    """Rows and columns of tokens in an image."""
    patch: int = 1
    """Side of the patches that tokens are."""
    padded: bool = False
    """Whether the data are an array whose width is n, even if no sequence is that long."""
    levels: int = 0
    """If not 0, values are level numbers 0 ... levels - 1, which represent evenly spaced values from -1 to 1."""
    notes: tuple[str, ...] = ()
    """How they were read, where that is not obvious."""


def of_array(array: np.ndarray, kind: Literal["tokens", "values"], lengths: np.ndarray | None, levels: int) -> Inputs:
    """Return an array [sequence, token] of ids, or [sequence, token, channel] of real values, as inputs.

    One axis less, with ``lengths``: all sequences one after another. NaN at the end of a sequence is padding.

    Raises:
        UsageError: If shape, type or a number is not valid.
    """
    flat = lengths is not None and array.ndim >= 1 and len(array) != len(lengths) and len(array) == lengths.sum()
    axes = array.ndim + flat
    if axes not in ((2, 3) if kind == "values" else (2,)) or 0 in array.shape:
        valid = "[sequence, token] or [sequence, token, channel]" if kind == "values" else "[sequence, token]"
        raise UsageError(f"{kind} of shape {array.shape}: must be {valid}")
    _check_type(array, kind, levels)
    if array.dtype == np.uint64:
        if int(array.max()) >= 2**63:
            raise UsageError(f"{kind} hold {array.max()}: must be below 2**63")
        array = array.astype(np.int64)
    array = array[..., 0] if axes == 3 and array.shape[-1] == 1 else array
    if flat:
        assert lengths is not None
        sequences = Sequences.of_flat(array, lengths)
    else:
        sequences = Sequences.of_array(array, lengths)
        if lengths is None and array.dtype.kind == "f" and np.isnan(extremes(sequences)[0]):
            sequences = without_padding(sequences)
    return Inputs(sequences, kind, levels=levels, padded=not flat)


def _check_type(array: np.ndarray, kind: str, levels: int) -> None:
    if kind == "tokens" or levels:
        if array.dtype.kind not in "iu":
            raise UsageError(f"{kind} of type {array.dtype}: must be {'ids' if kind == 'tokens' else 'level numbers'}")
    elif array.dtype.kind not in "iuf":
        raise UsageError(f"{kind} of type {array.dtype}: must be real numbers")


def without_padding(sequences: Sequences) -> Sequences:
    """Return sequences without the tokens at their ends whose values are all NaN."""
    lengths = sequences.lengths.copy()
    for rows in sequences.block_rows():
        block = sequences[rows]
        missing = np.isnan(block) if block.ndim == 2 else np.isnan(block).all(axis=2)
        missing |= np.arange(sequences.n) >= lengths[rows][:, None]
        lengths[rows] = sequences.n - missing[:, ::-1].cumprod(axis=1).sum(axis=1)
    return replace(sequences, lengths=lengths)


def of_images(images: np.ndarray, patch: int, where: str = "images") -> Inputs:
    """Return images as inputs whose tokens are patches in row-major order.

    Bytes become 256 levels from -1 to 1; other numbers are real values.

    Args:
        images: [image, row, column], [image, colour, row, column] or [image, row, column, colour].
        patch: Side of a patch.
        where: Name of the images in error messages.

    Raises:
        UsageError: If the shape or type is not valid, or if patches do not tile the images.
    """
    if images.ndim not in (3, 4) or 0 in images.shape or images.dtype.kind not in "iuf":
        valid = "numbers [image, row, column], [image, colour, row, column] or [image, row, column, colour]"
        raise UsageError(f"{where} of shape {images.shape} and type {images.dtype}: must be {valid}")
    if images.ndim == 4:
        first, last = images.shape[1] in COLOURS, images.shape[3] in COLOURS
        if first == last:
            raise UsageError(f"{where} of shape {images.shape}: the second or the last axis must be 1 or 3 colours")
        images = np.moveaxis(images, 1, 3) if first else images
    rows, columns = images.shape[1:3]
    if rows % patch or columns % patch:
        raise UsageError(f"patch={patch}: must divide the {rows} rows and {columns} columns of {where}")
    sequences = Sequences.of_array(patches(images, patch))
    if sequences.dtype.kind == "f" and not np.isfinite(extremes(sequences)).all():
        raise UsageError(f"{where} hold NaN or infinite numbers")
    levels = 256 if images.dtype == np.uint8 else 0
    notes = ("pixels 0 ... 255 are values from -1 to 1",) if levels else ()
    grid = rows // patch, columns // patch
    return Inputs(sequences, "values", grid=grid, patch=patch, levels=levels, notes=notes)


def of_cells(
    cells: Sequence[Any],
    where: str,
    *,
    kind: Kind | None = None,
    tokens: Literal["bytes", "words"] = "bytes",
    patch: int = 1,
) -> Inputs:
    """Return the cells of a table's column as inputs.

    Cells are texts, images, lists of ids or real values, or arrays [token, channel] of real values. Missing cells are
    empty sequences.

    Args:
        cells: Cells of one kind.
        where: Name of the cells in error messages.
        kind: What they are; by default integers are ids, texts of lists of numbers are such lists, and two-dimensional
            arrays are images if they are bytes or if ``patch`` is above 1, else [token, channel].
        tokens: Tokens of texts.
        patch: Side of the patches of images.

    Raises:
        UsageError: If a cell is something else, or if cells differ in kind; the message names the row.
    """
    parsed = list(_parsed(cells, where))
    kinds = {found: row for row, (found, _) in reversed(list(enumerate(parsed))) if found != "empty"}
    if len(kinds) > 1:
        described = listed(f"{found} in row {row}" for found, row in sorted(kinds.items(), key=lambda item: item[1]))
        raise UsageError(f"{where} mixes {described}")
    found, notes = next(iter(kinds), "text"), ()
    if found == "text" and kind != "text" and tokens == "bytes":
        lists = number_lists([value or b"" for _, value in parsed], where)
        if lists is not None:
            parsed = [_cell(numbers, f"{where}, row {row}") for row, numbers in enumerate(lists)]
            found = next((kind for kind, _ in parsed if kind != "empty"), "text")
            notes = ("texts are lists of numbers",)
    if kind is not None and found not in FOUND[kind]:
        raise UsageError(f"kind={kind!r}: {where} holds {found}")
    if tokens == "words" and found != "text":
        raise UsageError(f"tokens='words': needs texts; {where} holds {found}")
    is_image = kind == "images" or (kind is None and (found == "image" or (patch > 1 and found == "channels")))
    if patch > 1 and not is_image:
        raise UsageError(f"patch={patch}: needs images; {where} holds {found} (with grid=, lists of pixels are images)")
    if found == "text":
        return _of_texts([value or b"" for _, value in parsed], where, tokens)
    if is_image:
        return _of_image_cells(parsed, where, patch)
    return replace(_of_numbers([value for _, value in parsed], where, kind), notes=notes)


def _of_numbers(arrays: Sequence[np.ndarray | None], where: str, kind: str | None) -> Inputs:
    """Return arrays [token] or [token, channel], None for empty ones, as ids or real values."""
    shapes = {array.shape[1:]: row for row, array in enumerate(arrays) if array is not None and len(array)}
    if len(shapes) > 1:
        raise UsageError(
            f"{where}, row {max(shapes.values())} has shape [token, *{list(max(shapes, key=shapes.__getitem__))}]: "
            "must have the same number of channels as the others"
        )
    present = [array for array in arrays if array is not None]
    dtype = np.result_type(*{array.dtype for array in present})
    channels = next(iter(shapes), ())
    nothing = np.zeros((0, *channels), dtype)
    rows = [nothing if array is None or not len(array) else array.astype(dtype) for array in arrays]
    rows = [row[:, 0] for row in rows] if channels == (1,) else rows
    sequences = Sequences.of_rows(rows)
    if dtype.kind == "f":
        sequences = without_padding(sequences)
    if kind == "tokens" and dtype.kind == "f" and not channels:
        # What is cut off at the ends is NaN, which no integer is.
        sequences = Sequences.of_flat(np.concatenate(list(sequences.chunks())), sequences.lengths)
        if (fractions := sequences.flat[sequences.flat % 1 != 0]).size:
            raise UsageError(f"kind='tokens': {where} holds {fractions[0]:g}, which is no id")
        return Inputs(replace(sequences, flat=sequences.flat.astype(np.int64)), "tokens")
    real = kind == "values" or dtype.kind == "f" or bool(channels)
    return Inputs(sequences, "values" if real else "tokens")


def on_grid(inputs: Inputs, grid: tuple[int, int], patch: int) -> Inputs:
    """Return sequences of the pixels of images as such, or with patches as tokens.

    Raises `UsageError` if sequences do not have one token per pixel.
    """
    sequences = inputs.sequences
    lengths = sorted(set(sequences.lengths.tolist()) - {0})
    if lengths != [grid[0] * grid[1]]:
        found = f"{lengths[0]} ... {lengths[-1]}" if lengths else "no"
        raise UsageError(f"grid={grid}: has {grid[0] * grid[1]} pixels, but sequences have {found} tokens")
    if patch == 1:
        return replace(inputs, grid=grid)
    pixel = np.asarray(sequences).reshape(len(sequences), *grid, *sequences.shape[2:])
    if pixel.dtype.kind in "iu" and pixel.min() >= 0 and pixel.max() < 256:
        pixel = pixel.astype(np.uint8)
    return of_images(pixel, patch)


def _parsed(cells: Sequence[Any], where: str) -> Iterator[tuple[str, Any]]:
    """Yield kind and value of each cell; raise `UsageError` if images unpack to far more than their bytes."""
    packed = unpacked = 0
    for row, cell in enumerate(cells):
        kind, value = _cell(cell, f"{where}, row {row}")
        if kind == "image" and isinstance(cell, dict) and cell["bytes"] is not None:
            packed, unpacked = packed + len(cell["bytes"]), unpacked + value.nbytes
            if unpacked > max(SMALL, RATIO * packed):
                raise UsageError(f"{where}: images unpack to more than {RATIO} times their size, {packed:,} bytes")
        yield kind, value


def _cell(cell: Any, where: str) -> tuple[str, Any]:
    """Return kind and value of a cell: text as bytes, numbers or an image as an array; None if the cell is empty."""
    if cell is None or (isinstance(cell, float) and np.isnan(cell)) or type(cell).__name__ in ("NAType", "NaTType"):
        return "empty", None
    if isinstance(cell, str):
        try:
            cell = cell.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{where} holds text that is not valid Unicode ({error.reason})") from None
    if isinstance(cell, bytes):
        return ("text" if cell else "empty"), cell
    if isinstance(cell, dict) and cell.keys() == {"bytes", "path"}:  # Hugging Face Image
        file = cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])
        return "image", _image(lambda: read_image(file), where)
    if hasattr(cell, "mode") and hasattr(cell, "getpixel"):  # Pillow
        image: Any = cell
        return "image", _image(lambda: pixels(image), where)
    try:
        array = np.asarray(cell)
        if array.dtype.kind in "uf" and array.ndim == 1 and _largest_integer(cell) >= 2**63:
            raise UsageError(f"{where} holds {_largest_integer(cell)}: ids must be below 2**63")
        if array.dtype == object and array.ndim == 1 and len(array):
            array = np.stack([np.asarray(part) for part in array])  # nested arrays, as pandas reads Array2D
    except ValueError:  # nested lists of different lengths
        array = np.empty((), object)
    array = array.astype(np.int64) if array.dtype == np.uint64 else array
    if array.ndim == 1 and len(array) == 0:
        return "empty", None
    if array.ndim not in (1, 2, 3) or array.dtype.kind not in "iuf":
        raise UsageError(f"{where} holds {type(cell).__name__}: must be text, a list of ids or numbers, or an image")
    if array.ndim == 3 or (array.ndim == 2 and array.dtype == np.uint8):
        return "image", array
    return ("numbers" if array.ndim == 1 else "channels"), array


def _largest_integer(cell: Any) -> int:
    return max((int(item) for item in cell if isinstance(item, int | np.integer)), default=0)


def _image(read: Callable[[], np.ndarray], where: str) -> np.ndarray:
    try:
        return read()
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _of_image_cells(parsed: Sequence[tuple[str, Any]], where: str, patch: int) -> Inputs:
    shape = next(image.shape for _, image in parsed if image is not None)
    for row, (_, image) in enumerate(parsed):
        if image is not None and image.shape != shape:
            raise UsageError(
                f"{where}, row {row} holds an image of shape {image.shape}: must be {shape} as in the others"
            )
    blank = np.zeros(shape, next(image.dtype for _, image in parsed if image is not None))
    inputs = of_images(np.stack([blank if image is None else image for _, image in parsed]), patch, where)
    missing = np.array([image is None for _, image in parsed])
    lengths = np.where(missing, 0, inputs.sequences.lengths)
    return replace(inputs, sequences=replace(inputs.sequences, lengths=lengths))


def _of_texts(texts: Sequence[bytes], where: str, tokens: Literal["bytes", "words"]) -> Inputs:
    if tokens == "bytes":
        return Inputs(Sequences.of_rows([np.frombuffer(text, np.uint8) for text in texts]), "tokens", BYTES)
    words = [_words(text, f"{where}, row {row}") for row, text in enumerate(texts)]
    vocabulary = (UNKNOWN, *sorted({word for row in words for word in row} - {UNKNOWN}))
    number = {word: index for index, word in enumerate(vocabulary)}
    rows = [np.array([number[word] for word in row], np.int32) for row in words]
    return Inputs(Sequences.of_rows(rows), "tokens", len(vocabulary), vocabulary)


def _words(text: bytes, where: str) -> list[str]:
    try:
        return text.decode().split()
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} holds text that is not valid UTF-8 ({error.reason})") from None


def paired(
    cells: Sequence[Any], seconds: Sequence[Any], n: int | None, read: Callable[[Sequence[Any]], Inputs]
) -> Inputs:
    """Return pairs of texts as sequences with a separator id between them, at most n tokens long.

    If a pair is longer, both texts are cut to half of what the separator leaves; a shorter one leaves its rest to the
    other.

    Args:
        cells: First texts.
        seconds: Second texts.
        n: Largest number of tokens.
        read: Function that reads cells (`of_cells`).
    """
    both = read([*cells, *seconds])
    if both.kind != "tokens" or both.vocabulary is None:
        raise UsageError("pair: both columns must hold texts")
    count, rows = len(cells), []
    separator = both.words.index(SEPARATOR) if SEPARATOR in both.words else both.vocabulary
    for row in range(count):
        first, second = (both.sequences[i, : both.sequences.lengths[i]] for i in (row, count + row))
        if len(first) and len(second):
            if n is not None and len(first) + len(second) + 1 > n:
                half = (n - 1) // 2
                first = first[: max(n - 1 - len(second), n - 1 - half)]
                second = second[: n - 1 - len(first)]
            rows.append(np.concatenate([first, [separator], second]).astype(np.int32))
        else:
            rows.append(np.zeros(0, np.int32))
    words = (*both.words, *([SEPARATOR] if separator == both.vocabulary else [])) if both.words else ()
    return Inputs(Sequences.of_rows(rows), "tokens", max(separator + 1, both.vocabulary), words)

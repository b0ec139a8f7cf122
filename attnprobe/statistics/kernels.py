"""Compiled loops over blocks of scores (numba): softmax and all sums of a row while it is in the first-level cache.

A block is [matrix, query, key], the scores of consecutive queries with consecutive keys in units of ln 2, so that
weights are powers of 2. All loops run over contiguous numbers, in which form LLVM makes vector instructions of them;
every loop over a row is a function of its own for this reason. Numbers of a row are added in the type of the block over
at most `CHUNK` of them, and sums over queries over `TOGETHER` of them; everything longer is added in float64.

`no_type_check` keeps the type checks of the tests from wrapping functions, which numba could not compile; jaxtyping
before 0.3.11 wraps them all the same, so compiled functions are unwrapped first.

A line is a grid with one row: key j = (key row, key column) of query i = (query row, query column) has the offset index
(key row - query row + rows - 1) (2 columns - 1) + key column - query column + columns - 1.
"""

import inspect
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

CHUNK = 1024
"""Numbers that are added in the type of the block."""
TOGETHER = 16
"""Queries whose sums by key and by offset are added in the type of the block."""
LANES = 64
"""Running maxima of a row."""
LN2 = math.log(2)
ELEMENTWISE: Any = {"nnan", "ninf", "nsz", "contract", "arcp"}
"""Freedoms of the compiler that keep the order of operations: `power_of_2` depends on it."""
SUMS: Any = {*ELEMENTWISE, "reassoc"}
"""Freedoms for sums, which are added in vector lanes."""


def _chebyshev(degree: int) -> list[float]:
    """Return the coefficients of a polynomial for 2^x on [-1/2, 1/2], in ascending order."""
    x = np.cos(np.pi * (np.arange(400) + 0.5) / 400) / 2
    fit = np.polynomial.Chebyshev.fit(x, 2.0**x, degree, domain=[-0.5, 0.5])
    return fit.convert(kind=np.polynomial.Polynomial).coef.tolist()


# Relative errors of 1e-8 and 1e-16. As separate globals they are constants of the compiled code.
A0, A1, A2, A3, A4, A5, A6 = (np.float32(c) for c in _chebyshev(6))
B0, B1, B2, B3, B4, B5, B6, B7, B8, B9, B10, B11, B12 = _chebyshev(12)


@intrinsic
@no_type_check
def _float32_of_bits(typing_context: Any, bits: Any) -> Any:
    @no_type_check
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
@no_type_check
def _float64_of_bits(typing_context: Any, bits: Any) -> Any:
    @no_type_check
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


def power_of_2(x: Any) -> Any:
    """Return 2^x for x <= 0; 0 where it would be below the smallest normal number."""
    raise NotImplementedError("compiled code only")


@overload(power_of_2, inline="always")
@no_type_check
def _power_of_2(x: Any) -> Any:
    if x == types.float32:

        @no_type_check
        def single(x: Any) -> Any:
            bounded = max(x, np.float32(-126))
            whole = np.floor(bounded + np.float32(0.5))
            f = bounded - whole
            p = A6
            p = p * f + A5
            p = p * f + A4
            p = p * f + A3
            p = p * f + A2
            p = p * f + A1
            p = p * f + A0
            scaled = p * _float32_of_bits((np.int32(whole) + np.int32(127)) << np.int32(23))
            return scaled if x > np.float32(-126) else np.float32(0)

        return inspect.unwrap(single)

    @no_type_check
    def double(x: Any) -> Any:
        bounded = max(x, -1022.0)
        whole = np.floor(bounded + 0.5)
        f = bounded - whole
        p = B12
        p = p * f + B11
        p = p * f + B10
        p = p * f + B9
        p = p * f + B8
        p = p * f + B7
        p = p * f + B6
        p = p * f + B5
        p = p * f + B4
        p = p * f + B3
        p = p * f + B2
        p = p * f + B1
        p = p * f + B0
        scaled = p * _float64_of_bits((np.int64(np.int32(whole)) + np.int64(1023)) << np.int64(52))
        return scaled if x > -1022.0 else 0.0

    return inspect.unwrap(double)


@no_type_check
def _cache_is_kept() -> bool:
    """Return whether compiled code can be written where numba keeps it, with a warning if not."""
    try:
        folder = njit(cache=True)(_cache_is_kept).stats.cache_path
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
    except (OSError, RuntimeError) as error:
        hint = "set NUMBA_CACHE_DIR to a folder that can be written"
        warnings.warn(f"loops are compiled anew in every process: {error}; {hint}", RuntimeWarning, stacklevel=2)
        return False
    return True


_options: Any = {"nogil": True, "error_model": "numpy", "cache": _cache_is_kept()}


@no_type_check
def _compiler(**options: Any) -> Any:
    compiled = njit(**options, **_options)
    return lambda function: compiled(inspect.unwrap(function))


_compiled = _compiler()
_elementwise = _compiler(fastmath=ELEMENTWISE)
_sum = _compiler(fastmath=SUMS)


@_elementwise
@no_type_check
def _raise_lanes(x: Any, lanes: Any) -> None:
    for j in range(LANES):
        lanes[j] = x[j] if x[j] > lanes[j] else lanes[j]


@_compiled
@no_type_check
def largest(x: Any, lanes: Any) -> Any:
    """Return the maximum."""
    n = len(x)
    whole = n // LANES * LANES
    result = x[0]
    if whole:
        lanes[:] = x[0]
        for start in range(0, whole, LANES):
            _raise_lanes(x[start : start + LANES], lanes)
        for j in range(LANES):
            result = lanes[j] if lanes[j] > result else result
    for j in range(whole, n):
        result = x[j] if x[j] > result else result
    return result


@_sum
@no_type_check
def _weights_of_chunk(x: Any, peak: Any) -> Any:
    total, mean = x.dtype.type(0), x.dtype.type(0)
    for j in range(len(x)):
        difference = x[j] - peak
        weight = power_of_2(difference)
        x[j] = weight
        total += weight
        mean += weight * difference
    return total, mean


@_compiled
@no_type_check
def weights(x: Any, peak: Any) -> Any:
    """Replace x by w = 2^(x - peak); return the sums of w and of w (x - peak)."""
    total, mean = 0.0, 0.0
    for start in range(0, len(x), CHUNK):
        a, b = _weights_of_chunk(x[start : start + CHUNK], peak)
        total += a
        mean += b
    return total, mean


@_sum
@no_type_check
def _dot_of_chunk(x: Any, y: Any) -> Any:
    total = x.dtype.type(0)
    for j in range(len(x)):
        total += x[j] * y[j]
    return total


@_compiled
@no_type_check
def dot(x: Any, y: Any) -> Any:
    """Return the inner product."""
    total = 0.0
    for start in range(0, len(x), CHUNK):
        total += _dot_of_chunk(x[start : start + CHUNK], y[start : start + CHUNK])
    return total


@_sum
@no_type_check
def _matching_of_chunk(x: Any, ids: Any, one: Any) -> Any:
    total = x.dtype.type(0)
    for j in range(len(x)):
        total += x[j] if ids[j] == one else x.dtype.type(0)
    return total


@_compiled
@no_type_check
def matching(x: Any, ids: Any, one: Any) -> Any:
    """Return the sum of x where the ids are a certain one."""
    total = 0.0
    for start in range(0, len(x), CHUNK):
        total += _matching_of_chunk(x[start : start + CHUNK], ids[start : start + CHUNK], one)
    return total


@_elementwise
@no_type_check
def add(x: Any, to: Any) -> None:
    """Add x to another array."""
    for j in range(len(x)):
        to[j] += x[j]


@_elementwise
@no_type_check
def add_to_both(x: Any, factor: Any, a: Any, b: Any) -> None:
    """Add factor times x to two arrays."""
    for j in range(len(x)):
        value = x[j] * factor
        a[j] += value
        b[j] += value


@_elementwise
@no_type_check
def gradient_of_row(weight: Any, factor: Any, x: Any, mean: Any) -> None:
    """Replace x by factor weight (x - mean)."""
    for j in range(len(x)):
        x[j] = weight[j] * factor * (x[j] - mean)


@_compiled
@no_type_check
def first_index(query: int, rows: int, columns: int) -> int:
    """Return the index of the offset from a query to key 0."""
    return (rows - 1 - query // columns) * (2 * columns - 1) + columns - 1 - query % columns


@_compiled
@no_type_check
def add_row(x: Any, factor: Any, low: int, columns: int, at: int, by_key: Any, by_offset: Any) -> None:
    """Add factor times x, numbers of the keys low ..., by key and by offset; key 0 has the offset index ``at``."""
    key, high = low, low + len(x)
    while key < high:
        row = key // columns
        stop = min((row + 1) * columns, high)
        offset = at + row * (2 * columns - 1) + key - row * columns
        width = stop - key
        add_to_both(
            x[key - low : stop - low], factor, by_key[key - low : stop - low], by_offset[offset : offset + width]
        )
        key = stop


@_compiled
@no_type_check
def add_bias(x: Any, low: int, columns: int, at: int, bias: Any) -> None:
    """Add the bias to the scores of the keys low ...; key 0 has the offset index ``at``."""
    key, high = low, low + len(x)
    while key < high:
        row = key // columns
        stop = min((row + 1) * columns, high)
        offset = at + row * (2 * columns - 1) + key - row * columns
        add(bias[offset : offset + stop - key], x[key - low : stop - low])
        key = stop


@_compiled
@no_type_check
def arrange(
    x: Any, first: int, low: int, high: int, present: Any, order: Any, stays: bool, hidden: Any, out: Any
) -> None:
    """Write to ``out`` the numbers at the keys low ... high - 1 of a query, from x, those of the keys first ....

    ``order`` (if any) permutes them; with ``stays`` only those that the query sees. Absent keys get ``hidden``.
    """
    if not len(order) or not stays:
        for key in range(low, high):
            source = order[key] if len(order) else key
            out[key - low] = x[source - first] if not len(present) or present[key] else hidden
        return
    at = low
    for source in order:
        if low <= source < high and (not len(present) or present[source]):
            while len(present) and not present[at]:
                out[at - low] = hidden
                at += 1
            out[at - low] = x[source - first]
            at += 1
    out[at - low : high - low] = hidden


@_compiled
@no_type_check
def visible(query: int, n: int, causal: bool, window: int) -> Any:
    """Return the range of keys within reach of a query."""
    return max(0, query - window), min(query + 1 if causal else n, query + window + 1)


@_compiled
@no_type_check
def reached(start: int, stop: int, rows: int, columns: int, window: int) -> Any:
    """Return the range of the offset indices of the queries start ... stop - 1."""
    stride = 2 * columns - 1
    first_row, last_row = start // columns, (stop - 1) // columns
    low, high = (rows - 1 - last_row) * stride, (2 * rows - 1 - first_row) * stride
    if first_row == last_row:
        low += columns - 1 - (stop - 1) % columns
        high -= start % columns
    if rows == 1:
        low, high = max(low, columns - 1 - window), min(high, columns + window)
    return low, high


@_compiled
@no_type_check
def pattern_block(
    scores: Any,
    start: int,
    first: int,
    rows: int,
    columns: int,
    causal: bool,
    window: int,
    present: Any,
    order: Any,
    stays: bool,
    bias: Any,
    by_key: Any,
    by_offset: Any,
    entropy: Any,
    peaks: Any,
    totals: Any,
) -> None:
    """Replace scores by weights that are not normalised, and add the sums of the pattern.

    Args:
        scores: [matrix, query, key], of the queries start ... with the keys first ....
        start: First query.
        first: First key.
        rows: Rows of the grid.
        columns: Columns of the grid.
        causal: Whether keys after the query are hidden.
        window: Largest visible distance; n for all.
        present: [token], or empty if all tokens are present.
        order: [token], a permutation, or empty.
        stays: Whether the order permutes only the keys that a query sees.
        bias: [head, offset] in units of ln 2, or empty; matrices are those of all heads of consecutive sequences.
        by_key: [matrix, key], float64: sums over queries.
        by_offset: [matrix, offset], float64: sums over pairs.
        entropy: [matrix], float64: sum over queries, in nats.
        peaks: [matrix, query], float64: largest score of each query, in units of ln 2.
        totals: [matrix, query], float64: sum of the weights that are not normalised.
    """
    matrices, queries, width = scores.shape
    n, kind = rows * columns, scores.dtype.type
    hidden = np.finfo(scores.dtype).min / kind(4)
    lanes, line = np.empty(LANES, scores.dtype), np.empty(n, scores.dtype)
    keys, offsets = np.empty(n, scores.dtype), np.empty(by_offset.shape[1], scores.dtype)
    for matrix in range(matrices):
        for beginning in range(0, queries, TOGETHER):
            ending = min(beginning + TOGETHER, queries)
            begin, end = reached(start + beginning, start + ending, rows, columns, window)
            keys[first : first + width] = 0
            offsets[begin:end] = 0
            for r in range(beginning, ending):
                query = start + r
                if len(present) and not present[query]:
                    continue
                row = scores[matrix, r]
                if len(bias):
                    source = order[query] if len(order) and not stays else query
                    add_bias(row, first, columns, first_index(source, rows, columns), bias[matrix % len(bias)])
                low, high = visible(query, n, causal, window)
                if len(present) or len(order):
                    arrange(row, first, low, high, present, order, stays, hidden, line)
                    row[low - first : high - first] = line[: high - low]
                row = row[low - first : high - first]
                peak = largest(row, lanes)
                total, mean = weights(row, peak)
                entropy[matrix] += math.log(total) - mean / total * LN2
                peaks[matrix, r] = peak
                totals[matrix, r] = total
                at = first_index(query, rows, columns)
                add_row(row, kind(1 / total), low, columns, at, keys[low:high], offsets)
            add(keys[first : first + width], by_key[matrix, first : first + width])
            add(offsets[begin:end], by_offset[matrix, begin:end])


@_compiled
@no_type_check
def add_matches(
    weights: Any, start: int, first: int, window: int, tokens: Any, keys: Any, totals: Any, mass: Any
) -> None:
    """Add the attention to the earlier keys whose ids match that of the query, from the weights of `pattern_block`.

    Args:
        weights: [matrix, query, key], not normalised, of the queries start ... with the keys first ....
        start: First query.
        first: First key.
        window: Largest visible distance; n for all.
        tokens: [sequence, token]: id of each query; matrices are those of all heads of consecutive sequences.
        keys: [sequence, match, token]: ids of each key; negative if it never matches.
        totals: [matrix, query]: sum of the weights; 0 for queries that are absent.
        mass: [matrix, match], float64: sums over queries.
    """
    matrices, queries, _ = weights.shape
    heads = matrices // len(tokens)
    for matrix in range(matrices):
        sequence = matrix // heads
        for r in range(queries):
            query, total = start + r, totals[matrix, r]
            if total > 0:
                low = max(0, query - window)
                row = weights[matrix, r, low - first : query - first]
                for match in range(keys.shape[1]):
                    ids = keys[sequence, match, low:query]
                    mass[matrix, match] += matching(row, ids, tokens[sequence, query]) / total


@_compiled
@no_type_check
def gradient_block(
    scores: Any,
    values: Any,
    start: int,
    first: int,
    rows: int,
    columns: int,
    causal: bool,
    window: int,
    present: Any,
    order: Any,
    stays: bool,
    bias: Any,
    other: Any,
    other_mean: Any,
    by_key: Any,
    by_offset: Any,
    square: Any,
) -> None:
    """Replace values, the products of output gradients and values, by the score gradient, and add its sums.

    Args:
        scores: [matrix, query, key], of the queries start ... with the keys first ...; overwritten.
        values: [matrix, query, key].
        start: First query.
        first: First key.
        rows: Rows of the grid.
        columns: Columns of the grid.
        causal: Whether keys after the query are hidden.
        window: Largest visible distance; n for all.
        present: [token], or empty if all tokens are present.
        order: [token], a permutation, or empty.
        stays: Whether the order permutes only the keys that a query sees.
        bias: [head, offset] in units of ln 2, or empty; matrices are those of all heads of consecutive sequences.
        other: [matrix, query], float64: log2 of the sum of 2^score over keys that are left out, or empty.
        other_mean: [matrix, query], float64: mean over these keys of the products, weighted by attention.
        by_key: [matrix, key], float64: sums over queries.
        by_offset: [matrix, offset], float64: sums over pairs.
        square: [matrix], float64: sum of squares.
    """
    matrices, queries, width = scores.shape
    n, kind = rows * columns, scores.dtype.type
    hidden = np.finfo(scores.dtype).min / kind(4)
    lanes, line = np.empty(LANES, scores.dtype), np.empty(n, scores.dtype)
    keys, offsets = np.empty(n, scores.dtype), np.empty(by_offset.shape[1], scores.dtype)
    for matrix in range(matrices):
        for beginning in range(0, queries, TOGETHER):
            ending = min(beginning + TOGETHER, queries)
            begin, end = reached(start + beginning, start + ending, rows, columns, window)
            keys[first : first + width] = 0
            offsets[begin:end] = 0
            for r in range(beginning, ending):
                query = start + r
                row, gradient = scores[matrix, r], values[matrix, r]
                if len(present) and not present[query]:
                    gradient[:] = 0
                    continue
                if len(bias):
                    source = order[query] if len(order) and not stays else query
                    add_bias(row, first, columns, first_index(source, rows, columns), bias[matrix % len(bias)])
                low, high = visible(query, n, causal, window)
                if len(present) or len(order):
                    arrange(row, first, low, high, present, order, stays, hidden, line)
                    row[low - first : high - first] = line[: high - low]
                    arrange(gradient, first, low, high, present, order, stays, kind(0), line)
                    gradient[low - first : high - first] = line[: high - low]
                gradient[: low - first] = 0
                gradient[high - first :] = 0
                row, gradient = row[low - first : high - first], gradient[low - first : high - first]
                peak = largest(row, lanes)
                total, _ = weights(row, peak)
                mean, share = dot(row, gradient) / total, 1.0
                if len(other):
                    share = 1 / (1 + 2 ** (other[matrix, r] - peak - math.log2(total)))
                    mean = share * mean + (1 - share) * other_mean[matrix, r]
                gradient_of_row(row, kind(share / total), gradient, kind(mean))
                if len(other):
                    centre(gradient, low, present)
                square[matrix] += dot(gradient, gradient)
                at = first_index(query, rows, columns)
                add_row(gradient, kind(1), low, columns, at, keys[low:high], offsets)
            add(keys[first : first + width], by_key[matrix, first : first + width])
            add(offsets[begin:end], by_offset[matrix, begin:end])


@_compiled
@no_type_check
def score_block(
    scores: Any,
    start: int,
    first: int,
    rows: int,
    columns: int,
    causal: bool,
    window: int,
    present: Any,
    order: Any,
    stays: bool,
    bias: Any,
    by_offset: Any,
    by_key: Any,
    means: Any,
    square: Any,
) -> None:
    """Subtract from each score the mean of its row, and add the sums of these differences.

    Args:
        scores: [matrix, query, key], float64, of the queries start ... with the keys first ...; overwritten.
        start: First query.
        first: First key.
        rows: Rows of the grid.
        columns: Columns of the grid.
        causal: Whether keys after the query are hidden.
        window: Largest visible distance; n for all.
        present: [token], or empty if all tokens are present.
        order: [token], a permutation, or empty.
        stays: Whether the order permutes only the keys that a query sees.
        bias: [head, offset], or empty.
        by_offset: [matrix, offset]: sums over pairs.
        by_key: [matrix, key]: sums over queries.
        means: [matrix, query]: means of the rows, of all queries.
        square: [matrix]: sum of squares.
    """
    n, line = rows * columns, np.empty(rows * columns)
    for matrix in range(len(scores)):
        for r in range(scores.shape[1]):
            query = start + r
            if len(present) and not present[query]:
                continue
            row = scores[matrix, r]
            if len(bias):
                source = order[query] if len(order) and not stays else query
                add_bias(row, first, columns, first_index(source, rows, columns), bias[matrix % len(bias)])
            low, high = visible(query, n, causal, window)
            if len(present) or len(order):
                arrange(row, first, low, high, present, order, stays, 0.0, line)
                row[low - first : high - first] = line[: high - low]
            row = row[low - first : high - first]
            means[matrix, query] = centre(row, low, present)
            square[matrix] += dot(row, row)
            at = first_index(query, rows, columns)
            add_row(row, 1.0, low, columns, at, by_key[matrix, low:high], by_offset[matrix])


@_sum
@no_type_check
def total(x: Any) -> Any:
    """Return the sum."""
    result = x.dtype.type(0)
    for j in range(len(x)):
        result += x[j]
    return result


@_elementwise
@no_type_check
def subtract(x: Any, value: Any) -> None:
    """Subtract a number."""
    for j in range(len(x)):
        x[j] -= value


@_compiled
@no_type_check
def centre(x: Any, low: int, present: Any) -> Any:
    """Subtract from the numbers at the keys low ... that are present their mean, and return it; the others are 0."""
    count = len(x) if not len(present) else present[low : low + len(x)].sum()
    mean = x.dtype.type(total(x) / count)
    if not len(present):
        subtract(x, mean)
        return mean
    for j in range(len(x)):
        if present[low + j]:
            x[j] -= mean
    return mean

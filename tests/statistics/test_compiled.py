"""Compiled loops: accuracy on long rows, independence of threads, and use without a cache or numba."""

import os
import subprocess
import sys
import weakref

import pytest
import torch

from attnprobe.scores import Scores
from attnprobe.statistics import compiled
from attnprobe.statistics.gradient import gradient_statistics
from attnprobe.statistics.pattern import pattern_statistics

pytest.importorskip("numba")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_long_rows_are_as_accurate_with_compiled_loops_as_with_torch(dtype, monkeypatch):
    """Rows of more than one chunk, and of all lanes and a remainder; errors of sums of 2,000 weights or products."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, dz = torch.randn(4, 1, 1, 2051, 8, generator=generator, dtype=torch.float64)
    s = 2 * q @ k.mT / 8**0.5
    pattern = s.softmax(-1)
    gradient = pattern * (dz @ v.mT - (pattern * (dz @ v.mT)).sum(-1, keepdim=True))
    expected = {
        "mass_by_key": pattern.sum(-2),
        "entropy": torch.special.entr(pattern).sum(-1).mean(-1),
        "by_key": gradient.sum(-2),
        "square": gradient.square().sum((-2, -1)),
    }
    offset = torch.arange(2051) - torch.arange(2051)[:, None] + 2050
    for name, x in (("mass_by_offset", pattern / 2051), ("by_offset", gradient)):
        expected[name] = torch.zeros(4101, dtype=torch.float64).index_add(0, offset.flatten(), x.flatten())[None, None]
    tokens = torch.randint(5, (1, 2051), generator=generator)
    same = torch.stack([tokens[0, :, None] == tokens[0], tokens[0, :, None] == tokens[0].roll(1)]).tril(-1)
    same[1, :, 0] = False
    expected["matched_mass"] = (pattern * same).sum((-2, -1)) / same.any(-1).sum(-1)
    errors = {}
    for way, smallest in (("torch", sys.maxsize), ("compiled", 0)):
        monkeypatch.setattr(compiled, "SMALLEST", smallest)
        scores = Scores((2 * q).to(dtype), k.to(dtype))
        found = vars(pattern_statistics(scores, tokens=tokens)) | vars(
            gradient_statistics(scores, v.to(dtype), dz.to(dtype))
        )
        errors[way] = {
            name: float((found[name] - x).square().mean().sqrt() / x.abs().max()) for name, x in expected.items()
        }
    for name, error in errors["compiled"].items():
        assert error <= 2 * errors["torch"][name] + 8 * torch.finfo(torch.float64).eps, (name, errors)


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(compiled, "SMALLEST", 0)
    q, k, v, dz = torch.randn(4, 2, 3, 150, 4)
    found, threads = [], torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            tokens = torch.arange(300).view(2, 150) % 7
            of_pattern = pattern_statistics(Scores(q, k, causal=True), top=2, tokens=tokens)
            of_gradient = gradient_statistics(Scores(q, k, causal=True), v, dz)
            found.append([of_pattern.mass_by_key, of_pattern.top_keys, of_pattern.matched_mass, of_gradient.by_offset])
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_a_failure_in_a_thread_is_raised_and_leaves_the_number_of_threads():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(ZeroDivisionError):
            list(compiled.in_threads([lambda: 1 / 0, lambda: 1]))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_few_results_of_threads_exist_at_a_time():
    class Result:
        pass

    exist, most, threads = weakref.WeakSet(), 0, torch.get_num_threads()

    def task():
        exist.add(result := Result())
        return result

    try:
        torch.set_num_threads(3)
        for _ in compiled.in_threads(task for _ in range(50)):
            most = max(most, len(exist))
    finally:
        torch.set_num_threads(threads)
    assert 1 <= most <= 2 * 3 + 1


PROGRAM = """
import resource
import torch
from attnprobe.statistics import Scores, compiled, pattern_statistics
compiled.SMALLEST, compiled.SHORTEST = 0, 1
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))  # as on a full disk
q = torch.ones(1, 1, 3, 2)
print(pattern_statistics(Scores(q, q)).mass_by_key.tolist())
"""


@pytest.mark.slow
def test_loops_are_compiled_where_their_code_cannot_be_kept(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "default", "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[[[1.0, 1.0, 1.0]]]\n"
    assert "compiled anew in every process" in done.stderr and "NUMBA_CACHE_DIR" in done.stderr

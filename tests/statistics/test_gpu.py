"""Kernels for a GPU: they compile for one, and are not used where they give wrong numbers.

Their numbers are tested in Triton's interpreter (test_engine.py with TRITON_INTERPRET=1), which runs on the CPU.
"""

import os

import pytest
import torch

from attnprobe.statistics import blocks

triton = pytest.importorskip("triton", reason="needs Triton: pip install triton")
POINTERS = {
    "_softmax": {"scores": "*fp32", "pattern": "*fp32", "entropy": "*fp64", "level": "*fp64"},
    "_gradient": {"scores": "*fp32", "products": "*fp32"},
    "_add_by_offset": {"x": "*fp32", "total": "*fp64"},
}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter replaces the compiler")
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("name", POINTERS)
@pytest.mark.parametrize("type", ["*fp32", "*fp64"])
@pytest.mark.parametrize("constants", [(), ("rows",), ("rows", "columns", "start", "first", "queries", "width")])
def test_kernels_compile_for_a_gpu_that_is_not_there(name, type, constants):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from attnprobe.statistics import gpu

    kernel = getattr(gpu, name)
    pointers = {argument: type if kind == "*fp32" else kind for argument, kind in POINTERS[name].items()}
    ones = [argument for argument in kernel.arg_names if argument in constants]  # Triton compiles for 1 specially
    signature = dict.fromkeys(kernel.arg_names, "i32") | pointers | dict.fromkeys([*ones, "lanes"], "constexpr")
    places = {argument: (kernel.arg_names.index(argument),) for argument in [*ones, "lanes"]}
    values = {place: gpu.LANES if argument == "lanes" else 1 for argument, place in places.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    assert ".target sm_90" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_devices_use_torch(device):
    blocks.gpu_kernels.cache_clear()
    if os.environ.get("TRITON_INTERPRET") != "1":
        assert blocks.gpu_kernels(device) is None


@pytest.mark.parametrize("name", ["softmax", "gradient", "add_by_offset"])
def test_kernels_that_give_wrong_numbers_are_not_used(name, monkeypatch):
    """Other kernels stand for those of a GPU: right ones, of which one gives wrong numbers."""
    from attnprobe.statistics import gpu

    def softmax(scores, pattern):
        torch.softmax(scores, -1, out=pattern)
        return torch.special.entr(pattern.double()).sum(-1), scores.double().logsumexp(-1)

    def gradient(scores, products):
        pattern = scores.softmax(-1)
        products.copy_(pattern * (products - (pattern * products).sum(-1, keepdim=True)))

    def add_by_offset(x, total, start, first, rows, columns):
        for query in range(x.shape[1]):
            zero = columns - 1 - start - query + first
            total[:, zero : zero + x.shape[2]] += x[:, query]

    right = {"softmax": softmax, "gradient": gradient, "add_by_offset": add_by_offset}
    for other, kernel in right.items():
        monkeypatch.setattr(gpu, other, kernel)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    blocks.gpu_kernels.cache_clear()
    assert blocks.gpu_kernels("cpu") is gpu
    blocks.gpu_kernels.cache_clear()

    def wrong(x, out, *rest):
        found = right[name](x, out, *rest)
        out *= 1.01
        return found

    monkeypatch.setattr(gpu, name, wrong)
    with pytest.warns(RuntimeWarning, match="Triton could not be used, so torch is: Tensor-likes are not close"):
        assert blocks.gpu_kernels("cpu") is None
    blocks.gpu_kernels.cache_clear()

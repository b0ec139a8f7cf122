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
def test_kernels_compile_for_a_gpu_that_is_not_there(name, type):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from attnprobe.statistics import gpu

    kernel = getattr(gpu, name)
    pointers = {argument: type if kind == "*fp32" else kind for argument, kind in POINTERS[name].items()}
    signature = dict.fromkeys(kernel.arg_names, "i32") | pointers | {"lanes": "constexpr"}
    source = ASTSource(fn=kernel, signature=signature, constexprs={(len(signature) - 1,): gpu.LANES})
    assert ".target sm_90" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_devices_use_torch(device):
    blocks.gpu_kernels.cache_clear()
    if os.environ.get("TRITON_INTERPRET") != "1":
        assert blocks.gpu_kernels(device) is None


def test_kernels_that_give_wrong_numbers_are_not_used(monkeypatch):
    from attnprobe.statistics import gpu

    def uniform(scores, pattern):
        return torch.zeros(pattern.fill_(1 / scores.shape[-1]).shape[:2]), None

    monkeypatch.setattr(gpu, "softmax", uniform)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    blocks.gpu_kernels.cache_clear()
    with pytest.warns(RuntimeWarning, match="Triton could not be used, so torch is: Tensor-likes are not close"):
        assert blocks.gpu_kernels("cpu") is None
    blocks.gpu_kernels.cache_clear()

"""Products of matrices in float32, on processors half of which PyTorch leaves idle.

PyTorch gives them to MKL, which uses AVX-512 on Intel's processors alone. oneDNN, which PyTorch brings too, uses it on AMD's: on one core of an
EPYC of 2024, 240 GFLOP/s instead of 107, in the same precision. The sums are in another order, hence in other last bits.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

#: Multiplications from which a product repays the call from Python.
LARGE = 2**22

_lock, _within = threading.Lock(), []


@contextmanager
def widest_products(device: torch.device | str = "cpu") -> Iterator[str | None]:
    """Within the block, large products in float32 on a CPU are oneDNN's where MKL would use half of the processor.

    For all threads of the process: meant for one that trains and does nothing else, as ``kdlab run`` does, whose records say it.

    Returns:
        ``"oneDNN"``; None where nothing is changed.
    """
    if torch.device(device).type != "cpu" or not left_idle():
        yield None
        return
    with by_onednn():
        yield "oneDNN"


@cache
def left_idle() -> bool:
    """Whether this is a processor of AMD with AVX-512, and a PyTorch with both libraries."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available():
        return False
    known = Path("/proc/cpuinfo")
    return torch.backends.mkldnn.is_available() and known.exists() and "AuthenticAMD" in known.read_text()


@contextmanager
def by_onednn() -> Iterator[None]:
    """Within the block, large products in float32 on a CPU are oneDNN's, forward and backward."""
    with _lock:
        if not _within:
            library = torch.library.Library("aten", "IMPL")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there is another kernel
                for name, kernel in {"mm": _mm, "mm.out": _mm_out, "addmm_": _addmm_}.items():
                    library.impl(name, kernel, "CPU")
            _within.append(library)
        _within.append(None)
    try:
        yield
    finally:
        with _lock:
            _within.pop()
            if len(_within) == 1:
                _within.pop()._destroy()


def _mm(a: Tensor, b: Tensor) -> Tensor:
    if _fits(a, b):
        return _product(a, b)
    out = a.new_empty(a.shape[0], b.shape[1])
    return torch.ops.aten.addmm.out(out, a, b, beta=0, out=out)


def _mm_out(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    if _fits(a, b) and out.shape == (a.shape[0], b.shape[1]) and out.dtype == a.dtype:
        return out.copy_(_product(a, b))
    out.resize_(a.shape[0], b.shape[1])
    return torch.ops.aten.addmm.out(out, a, b, beta=0, out=out)


def _addmm_(total: Tensor, a: Tensor, b: Tensor, *, beta=1, alpha=1) -> Tensor:
    if total.shape != (a.shape[0], b.shape[1]):
        return total.copy_(torch.addmm(total, a, b, beta=beta, alpha=alpha))  # which says what is wrong
    if _fits(a, b) and beta == alpha == 1 and total.dtype == a.dtype:
        return total.add_(_product(a, b))
    return torch.ops.aten.addmm.out(total, a, b, beta=beta, alpha=alpha, out=total)


def _fits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype == torch.float32 and a.shape[1] == b.shape[0] and a.shape[0] * b.numel() >= LARGE


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a·b. Where a is the transpose of what lies in memory, as in the gradient of a weight, bᵀ·aᵀ is made: the smaller is copied."""
    if a.stride(0) == 1 and b.stride(0) != 1:
        return _linear(b.t(), a).t().contiguous()
    return _linear(a, b.t())


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """x·weightᵀ"""
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, None, "none", [], "")

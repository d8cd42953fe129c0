"""Products of matrices in float32, on processors half of which PyTorch leaves idle.

PyTorch gives them to MKL, which uses AVX-512 on Intel's processors alone. oneDNN, which PyTorch brings too, uses it on AMD's: on one core of an
EPYC of 2024, 240 GFLOP/s instead of 107, in the same precision. The sums are in another order, hence in other last bits.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

#: Multiplications from which a product repays the call from Python.
LARGE = 2**22

_lock, _within = threading.Lock(), []


@dataclass
class Made:
    """How many products were made otherwise than by PyTorch's choice, and by what."""

    by: str = "oneDNN"
    count: int = 0


_made = Made()


@contextmanager
def widest_products(device: torch.device | str = "cpu") -> Iterator[Made]:
    """Within the block, large products in float32 on a CPU are oneDNN's where MKL would use half of the processor.

    Those without a bias, forward and backward: layers without one, the gradients of all weights, and
    :class:`~kdlab.objectives.vocabulary.HeadLogits`. For all threads of the process, none of which may be multiplying as the block begins or ends:
    meant for a process that trains and does nothing else, as ``kdlab run`` does, whose records say it.
    """
    before, made = _made.count, Made()
    if torch.device(device).type != "cpu" or not left_idle():
        yield made
        return
    with by_onednn():
        try:
            yield made
        finally:
            made.count = _made.count - before


@cache
def left_idle() -> bool:
    """Whether this is a processor of AMD with AVX-512, and a PyTorch with both libraries."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available():
        return False
    known = Path("/proc/cpuinfo")
    return torch.backends.mkldnn.is_available() and known.exists() and "AuthenticAMD" in known.read_text()


@contextmanager
def by_onednn() -> Iterator[None]:
    """The same on any CPU whose PyTorch has oneDNN."""
    with _lock:
        if not _within:
            _within.append(_installed())
        _within.append(None)
    try:
        yield
    finally:
        with _lock:
            _within.pop()
            if len(_within) == 1:
                _within.pop()._destroy()


def _installed() -> torch.library.Library:
    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is another kernel
            for name, kernel in {"mm": _mm, "mm.out": _mm_out, "addmm_": _addmm_}.items():
                library.impl(name, kernel, "CPU")
    except BaseException:  # Ctrl-C too: all three or none
        library._destroy()
        raise
    return library


def _mm(a: Tensor, b: Tensor) -> Tensor:
    if _fits(a, b):
        return _product(a, b)
    return torch.addmm(a.new_empty(()), a, b, beta=0)


def _mm_out(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    if _fits(a, b, out):
        return out.copy_(_product(a, b))
    if a.ndim == b.ndim == 2 and out.shape == (a.shape[0], b.shape[1]):
        return torch.ops.aten.addmm.out(out, a, b, beta=0, out=out)
    return torch.mul(_mm(a, b), 1, out=out)  # which gives it a shape, and says so


def _addmm_(total: Tensor, a: Tensor, b: Tensor, *, beta=1, alpha=1) -> Tensor:
    if _fits(a, b, total) and beta == alpha == 1:
        return total.add_(_product(a, b))
    if a.ndim == b.ndim == 2 and total.shape == (a.shape[0], b.shape[1]):
        return torch.ops.aten.addmm.out(total, a, b, beta=beta, alpha=alpha, out=total)
    return total.copy_(torch.addmm(total, a, b, beta=beta, alpha=alpha))  # which says what is wrong


def _fits(a: Tensor, b: Tensor, out: Tensor | None = None) -> bool:
    """Whether a·b is one that oneDNN makes, into ``out`` as it is."""
    return (
        a.ndim == b.ndim == 2
        and a.dtype == b.dtype == torch.float32
        and a.shape[1] == b.shape[0]
        and a.shape[0] * b.numel() >= LARGE
        and _by_rows_or_columns(a)
        and _by_rows_or_columns(b)
        and (out is None or (out.dtype == a.dtype and out.shape == (a.shape[0], b.shape[1])))
    )


def _by_rows_or_columns(x: Tensor) -> bool:
    """Whether x lies in memory row after row, or column after column: not so interleaved or overlapping that oneDNN cannot describe it."""
    (m, n), (down, right) = x.shape, x.stride()
    return (right == 1 and down >= n) or (down == 1 and right >= m)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a·b. Where a is the transpose of what lies in memory, as in the gradient of a weight, bᵀ·aᵀ is made: the smaller is copied."""
    _made.count += 1
    if a.stride(0) == 1 and b.stride(0) != 1:
        return _linear(b.t(), a).t().contiguous()
    return _linear(a, b.t())


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """x·weightᵀ"""
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, None, "none", [], "")

"""``vocabulary``: a loss taken from hidden states, beside the loss of all logits, the bare products, Liger Kernel and TRL.

One generalised Jensen–Shannon divergence, forward and backward, of the same hidden states and heads. Extra peak memory is
what a contestant adds to its inputs: on CUDA the allocator's peak, on a CPU the growth of the largest resident set of a
process of its own, which counts the libraries' buffers too, and the gradients.
"""

import importlib
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..objectives import GeneralisedJSD, HeadLogits
from ..study.records import provenance
from ..study.run import peak_memory
from .timing import BenchmarkError, quartiles

#: At most so many times what it is compared with.
GOALS = {
    "seconds": {"all logits": 1.0, "bare products": 1.15},
    "bytes": {"all logits": 0.10, "Liger": 0.60},
}


@dataclass(frozen=True)
class Size:
    """What is multiplied, of which type, and where."""

    tokens: int = 2048
    student: int = 512
    teacher: int = 1024
    words: int = 32_000
    precision: str = "float32"
    device: str = "cpu"

    @classmethod
    def of(cls, device: str, size: str | None = None, precision: str | None = None) -> "Size":
        """A size as the command takes it; on CUDA that of an 8-billion model is the default.

        Raises:
            BenchmarkError: for what is no size.

        >>> Size.of("cpu", "64x8x8x100").words
        100
        """
        on_cuda = torch.device(device).type == "cuda"
        size = size or ("8192x4096x4096x128256" if on_cuda else "2048x512x1024x32000")
        precision = precision or ("bfloat16" if on_cuda else "float32")
        numbers = size.replace("×", "x").split("x")
        if len(numbers) != 4 or not all(n.isdecimal() and int(n) > 1 for n in numbers):
            raise BenchmarkError(f"a size is four numbers above one, such as 2048x512x1024x32000, not {size!r}.")
        if precision not in ("float32", "bfloat16"):
            raise BenchmarkError(f"precision is float32 or bfloat16, not {precision!r}.")
        return cls(*map(int, numbers), precision, device)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The student's hidden states and weight, and the teacher's: logits of deviation one and two."""

        def normal(rows, columns, deviation):
            dtype = getattr(torch, self.precision)
            return torch.empty(rows, columns, dtype=dtype, device=self.device).normal_(std=deviation)

        h, W = normal(self.tokens, self.student, 1.0), normal(self.words, self.student, self.student**-0.5)
        t, U = (
            normal(self.tokens, self.teacher, 1.0),
            normal(self.words, self.teacher, 2 * self.teacher**-0.5),
        )
        return h.requires_grad_(), W.requires_grad_(), t, U


def from_all_logits(h, W, t, U):
    loss, _ = (1.0 * GeneralisedJSD())(student_logits=h @ W.T, teacher_logits=t @ U.T)
    loss.backward()
    return loss.detach()


def from_hidden_states(h, W, t, U):
    loss, _ = (1.0 * GeneralisedJSD())(student_logits=HeadLogits(h, W), teacher_logits=HeadLogits(t, U))
    loss.backward()
    return loss.detach()


@torch.no_grad()
def bare_products(h, W, t, U):
    """The four that no way can do without, each in one piece: the student's logits stand in for their gradient."""
    z = h @ W.T
    t @ U.T
    h.grad, W.grad = z @ W, z.T @ h


def liger(h, W, t, U):
    """Liger Kernel's own loss: chunks of 1,024 tokens; compiled on CUDA alone."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    labels = torch.zeros(len(h), dtype=torch.long, device=h.device)
    how = {"weight_hard_loss": 0.0, "weight_soft_loss": 1.0, "compiled": h.is_cuda}
    loss = LigerFusedLinearJSDLoss(**how)(h, W, t, U, labels)
    loss.backward()
    return loss.detach()


def trl(h, W, t, U):
    """TRL's loss of its trainer for generalised distillation, which takes all logits."""
    GKDTrainer = imported("trl.experimental.gkd").GKDTrainer
    labels = torch.zeros(1, len(h), dtype=torch.long, device=h.device)
    loss = GKDTrainer.generalized_jsd_loss((h @ W.T)[None], (t @ U.T)[None], labels=labels, beta=0.5)
    loss.backward()
    return loss.detach()


CONTESTANTS: dict[str, Callable] = {
    "all logits": from_all_logits,
    "kdlab": from_hidden_states,
    "bare products": bare_products,
}


#: Other libraries, where they can be imported.
PEERS = (("Liger", "liger_kernel.chunked_loss", liger), ("TRL", "trl.experimental.gkd", trl))


def contestants() -> dict[str, Callable]:
    """With Liger and TRL where they can be imported."""
    found = dict(CONTESTANTS)
    for name, module, way in PEERS:
        with suppress(ImportError, RuntimeError):  # transformers' way to say that something is missing is the latter
            imported(module)
            found[name] = way
    return found


def imported(module: str):
    """A module, without the remarks that it makes on its import."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def _peak(way, size, pipe):
    """Bytes that a contestant adds; in a process of its own."""
    torch.set_num_threads(1)
    inputs = size.inputs()
    with suppress(OSError):  # on Linux a process begins with its parent's mark: bring it down to what is in use
        Path("/proc/self/clear_refs").write_text("5")
    before = _mark()
    way(*inputs)
    pipe.send(_mark() - before)


def _mark() -> int:
    """The most bytes that this process has had in memory."""
    try:
        status = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except OSError:  # not Linux
        return peak_memory("cpu") or 0


def extra_peak(way: Callable, size: Size) -> int:
    """Bytes that a contestant needs at most, beyond its inputs."""
    if torch.device(size.device).type == "cuda":
        inputs = size.inputs()
        torch.cuda.reset_peak_memory_stats(size.device)
        before = torch.cuda.memory_allocated(size.device)
        way(*inputs)
        return torch.cuda.max_memory_allocated(size.device) - before
    here, there = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_peak, args=(way, size, there))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        raise BenchmarkError(f"{way.__name__} ended without a result: is there memory for it?") from None
    finally:
        process.join()


def fits(way: Callable, device) -> bool:
    """Whether there is memory for what ``way`` does."""
    try:
        way()
    except torch.OutOfMemoryError:
        return False
    finally:
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()
    return True


def measured(size: Size, seconds: float = 60.0, rounds: int = 5, ways: dict[str, Callable] | None = None) -> dict:
    """Let contestants take turns until the time is up, at least ``rounds`` times. What it gives can be written as JSON.

    Those for which the device has too little memory are left out, and named. ``ways`` are other contestants than all.

    Raises:
        BenchmarkError: if kdlab's own is one of them.
    """
    peers = () if ways else PEERS
    origin, ways, inputs = provenance(size.device), dict(ways or contestants()), size.inputs()
    every, times, until = list(ways), {name: [] for name in ways}, time.monotonic() + seconds

    def lap(way):
        inputs[0].grad = inputs[1].grad = None
        start = time.perf_counter()
        way(*inputs)
        if torch.device(size.device).type == "cuda":
            torch.cuda.synchronize(size.device)
        return time.perf_counter() - start

    for name, way in list(ways.items()):
        if not fits(partial(lap, way), size.device):  # which warms up
            del ways[name]
    if "kdlab" not in ways:
        raise BenchmarkError("the device has too little memory for this size: give a smaller one with --size.")
    while len(times["kdlab"]) < rounds or time.monotonic() < until:
        for name in list(ways)[:: -1 if len(times["kdlab"]) % 2 else 1]:
            times[name].append(lap(ways[name]))
    peaks = {name: extra_peak(way, size) for name, way in ways.items()}
    summary = {name: {"seconds": quartiles(times[name]), "bytes": peaks[name]} for name in ways}
    goals = []
    for what, others in GOALS.items():
        for other, most in others.items():
            if other not in ways:
                continue
            if what == "seconds":  # of rounds that stand side by side
                pairs = zip(times["kdlab"], times[other], strict=True)
                ratio = quartiles([ours / theirs for ours, theirs in pairs])["median"]
            else:
                ratio = peaks["kdlab"] / max(peaks[other], 1)
            goals.append({"of": what, "other": other, "most": most, "ratio": ratio, "met": ratio <= most})
    return {
        "benchmark": "vocabulary",
        "provenance": origin,
        "threads": torch.get_num_threads(),
        "size": asdict(size),
        "seconds": {name: times[name] for name in ways},
        "left_out": [name for name in every if name not in ways],
        "not_installed": [name for name, *_ in peers if name not in every],
        "summary": summary,
        "goals": goals,
    }


def table(result: dict) -> str:
    """What :func:`measured` gave, as lines of text."""
    size = result["size"]
    where = f"vocabulary: {result['provenance']['device']}, {result['threads']} threads"
    what = f"{size['tokens']} tokens, widths {size['student']} and {size['teacher']}, {size['words']} words"
    lines = [f"{where}; {what}, {size['precision']}"]
    lines += [f"  {'':<16}{'seconds (quartiles)':>28}{'extra peak, MB':>18}"]
    for name, found in result["summary"].items():
        low, median, high = (found["seconds"][key] for key in ("low", "median", "high"))
        lines.append(f"  {name:<16}{f'{median:.3f} ({low:.3f}–{high:.3f})':>28}{found['bytes'] / 1e6:>18,.0f}")
    for name in result["left_out"]:
        lines.append(f"  {name:<16}{'too little memory':>28}")
    for name in result["not_installed"]:
        lines.append(f"  {name:<16}{'cannot be imported':>28}  pip install 'kdlab[peers]'")
    for goal in result["goals"]:
        met = "met" if goal["met"] else "not met"
        lines.append(
            f"  kdlab's {goal['of']}, {goal['other']} = 1: {goal['ratio']:.3f}; at most {goal['most']:g}: {met}"
        )
    return "\n".join(lines)

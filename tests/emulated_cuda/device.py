"""An emulated CUDA device where there is none: tensors that say they are on ``cuda:0``, and compute on the CPU.

With ``guard.cpp`` preloaded, PyTorch's own autograd engine, autocast and fused optimisers run as they would there. The emulation

- refuses to mix tensors or generators of two devices;
- knows what makes the host wait for the device, and warns, raises or lets it pass as ``torch.cuda.set_sync_debug_mode`` says;
- keeps a capture as a list of operations, whose replay runs them again in the same places; waiting within a capture fails, and leaves
  stream and generator as PyTorch leaves them, unusable;
- demands of fused optimisers the memory layouts that CUDA demands.

It knows nothing of the numerics and speed of kernels, of races between streams, of memory pools, and of several devices.
"""

import contextlib
import ctypes
import threading
import warnings
import weakref
from functools import cache
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)
#: Operations that wait for the device, by the beginning of their names.
WAITING = (
    "aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten._unique2", "aten.equal", "aten.is_nonzero",
    "aten._linalg_check_errors", "aten.repeat_interleave.Tensor",
)  # fmt: skip
DRAWING = ("rand", "normal", "uniform", "bernoulli", "multinomial", "exponential", "random_")

state = SimpleNamespace(mode=0, capture=None, broken=False, stream=0, waits=0)
live = weakref.WeakSet()
lock = threading.RLock()


class OnDevice(torch.Tensor):
    """A tensor of the emulated device; ``inner`` holds its numbers."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CUDA,
        )
        made.inner = inner
        live.add(made)
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        with lock:  # the engine has threads of its own
            return dispatch(func, args, kwargs or {})

    def __repr__(self):
        return f"OnDevice({self.inner})"

    def tolist(self):
        wait("tolist")
        return self.inner.tolist()

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = OnDevice(self.inner.clone(memory_format=torch.preserve_format)).requires_grad_(self.requires_grad)
            memo[id(self)] = (
                torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied
            )
        return memo[id(self)]


class Mode(TorchDispatchMode):
    """Within it, what is made on ``"cuda"`` is on the emulated device."""

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # which costs as much as all else that is done for an operation

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with lock:
            return dispatch(func, args, kwargs or {})


def wait(what: str) -> None:
    """The host waits for the device."""
    state.waits += 1
    if state.capture is not None:
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")
    if state.mode == 1:
        warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=2)
    if state.mode == 2:
        raise RuntimeError(f"called a synchronizing CUDA operation ({what})")


def is_cuda(device) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def plain(x):
    return x.inner if isinstance(x, OnDevice) else x


def leaves(*nested):
    """What is in lists, tuples and dictionaries."""
    for x in nested:
        if isinstance(x, (list, tuple)):
            yield from leaves(*x)
        elif isinstance(x, dict):
            yield from leaves(*x.values())
        else:
            yield x


def mapped(change, x):
    """The same nesting of what ``change`` makes of its leaves."""
    if isinstance(x, (list, tuple)):
        return type(x)([mapped(change, each) for each in x])
    if isinstance(x, dict):
        return {key: mapped(change, each) for key, each in x.items()}
    return change(x)


@cache
def told(func) -> SimpleNamespace:
    """What there is to know of an operation: where its arguments are written to, and whether it waits, draws or indexes."""
    name, arguments = str(func), func._schema.arguments
    return SimpleNamespace(
        name=name,
        waits=name.startswith(WAITING),
        draws=any(part in name for part in DRAWING),
        indexes=name.startswith(("aten.index", "aten._unsafe_index", "aten._index")),
        written=[(i, a.name) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write],
    )


def dispatch(func, args, kwargs):
    of, found = told(func), list(leaves(args, kwargs))
    name = of.name
    ours = [x for x in found if isinstance(x, OnDevice)]
    others = [
        x for x in found if isinstance(x, torch.Tensor) and not isinstance(x, OnDevice) and x.device.type == "cpu"
    ]
    device = kwargs.get("device")
    if name == "aten._to_copy.default" and (is_cuda(device) or (ours and device is not None and not is_cuda(device))):
        return moved(func, args[0], kwargs)
    if name == "aten.copy_.default" and isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
        wait("copy_")
        plain(args[0]).copy_(plain(args[1]))
        return args[0]
    if not ours and not is_cuda(device):
        return func(*args, **kwargs)
    check_devices(of, args, ours, others)
    generator = next((x for x in found if isinstance(x, torch.Generator)), None)
    if generator is not None and generator.device.type != "cuda":
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{generator.device}' ({name})")
    if of.waits:
        wait(name)
    if of.indexes and len(args) > 1 and isinstance(args[1], (list, tuple)):
        if any(isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            wait(f"{name} with a boolean mask")
    if name.startswith(("aten._fused_sgd_", "aten._fused_adam")):
        check_layouts(args, 3 if "sgd" in name else 4)
    return computed(func, of, args, kwargs, generator)


def moved(func, source, kwargs):
    """A copy from one device to the other."""
    if not kwargs.get("non_blocking") or state.capture is not None:
        wait(f"copy of {tuple(source.shape)}") if not (
            is_cuda(kwargs["device"]) and isinstance(source, OnDevice)
        ) else None
    how = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking", "pin_memory")}
    if not is_cuda(kwargs["device"]):
        return func(source.inner, **how).clone(memory_format=torch.preserve_format)
    made = func(plain(source), **how)
    if made.untyped_storage().data_ptr() == plain(source).untyped_storage().data_ptr():
        made = made.clone()
    recorded(func, (plain(source),), how, made, fresh=True)
    return OnDevice(made)


def check_devices(of, args, ours, others) -> None:
    if not ours or all(x.ndim == 0 for x in others):
        return
    if of.indexes:
        places = args[1] if isinstance(args[1], (list, tuple)) else []
        if all(any(x is place for place in places) for x in others if x.ndim):
            wait("an index that is on the CPU")
            return
    raise RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({of.name})"
    )


def check_layouts(args, lists: int) -> None:
    """That parameters, gradients and what the optimiser keeps lie alike in memory."""
    first = args[0]
    for other in args[1:lists]:
        for a, b in zip(first, other, strict=True) if len(other) == len(first) else ():
            if a.dtype != b.dtype or a.shape != b.shape or a.inner.stride() != b.inner.stride():
                raise RuntimeError("Expected check_fast_path_restrictions(...) to be true, but got false.")


def computed(func, of, args, kwargs, generator):
    inner, named = mapped(plain, args), {k: mapped(plain, v) for k, v in kwargs.items() if k != "pin_memory"}
    if is_cuda(named.get("device")):
        del named["device"]
    out = drawn(func, inner, named, generator) if of.draws else func(*inner, **named)
    written = [
        x
        for number, argument in of.written
        for x in leaves(args[number] if number < len(args) else kwargs.get(argument))
        if isinstance(x, OnDevice)
    ]
    recorded(func, inner, named, out, fresh=not written, generator=generator)
    known = {id(x.inner): x for x in written}

    def wrapped(x):
        return known[id(x)] if id(x) in known else OnDevice(x) if isinstance(x, torch.Tensor) else x

    return mapped(wrapped, out)


def drawn(func, args, kwargs, generator):
    """Draw from the device's generator, with the CPU's way of drawing."""
    generator = default if generator is None else generator
    if state.capture is not None and generator._cdata not in [x._cdata for x in state.capture.generators]:
        raise RuntimeError("Attempt to increase offset for a CUDA generator not in capture mode.")
    if generator is default and state.broken:
        raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
    args = tuple(None if isinstance(x, torch.Generator) else x for x in args)
    kwargs = {k: None if isinstance(v, torch.Generator) else v for k, v in kwargs.items()}
    before = torch.default_generator.get_state()
    torch.default_generator.set_state(generator.get_state())
    try:
        return func(*args, **kwargs)
    finally:
        generator.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(before)


# Graphs -----------------------------------------------------------------------------------------------------------------


def recorded(func, args, kwargs, out, *, fresh, generator=None) -> None:
    if state.capture is not None:
        state.capture.tape.append((func, args, kwargs, out, fresh, generator))


class CUDAGraph:
    def __init__(self):
        self.tape, self.generators = [], [default]

    def register_generator_state(self, generator):
        self.generators.append(generator)

    def replay(self):
        for func, args, kwargs, out, fresh, generator in self.tape:
            again = drawn(func, args, kwargs, generator) if told(func).draws else func(*args, **kwargs)
            if fresh:
                for place, value in zip(leaves(out), leaves(again), strict=True):
                    if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():
                        place.copy_(value)


class graph:
    """A capture: nothing that is computed within it counts, but where it would be."""

    def __init__(self, made, stream=None, **_):
        self.made, self.stream = made, stream

    def __enter__(self):
        self.kept = [(x.inner, x.inner.clone(memory_format=torch.preserve_format)) for x in list(live)]
        self.drawn_from = [(x, x.get_state()) for x in self.made.generators]
        self.before, state.stream = state.stream, self.stream.number
        state.capture = self.made

    def __exit__(self, kind, error, traceback):
        state.capture = None
        with torch.no_grad():
            for place, value in self.kept:
                place.copy_(value)
        for generator, drawn_from in self.drawn_from:
            generator.set_state(drawn_from)
        if kind is not None:  # the stream is not put back, and the generator believes that the capture goes on
            state.broken = True
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        state.stream = self.before


class Stream:
    made = 0

    def __init__(self, *_, number=None, **__):
        if number is None:
            number = Stream.made = Stream.made + 1
        self.number = number

    def wait_stream(self, other):
        pass


@contextlib.contextmanager
def stream(entered):
    before, state.stream = state.stream, entered.number
    try:
        yield
    finally:
        state.stream = before


def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Fused attention by its formula."""
    scores = (q @ k.transpose(-1, -2)).float() * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v


def rms_norm(x, normalized_shape, weight=None, eps=None):
    """By its formula: the fused one has no derivative on a CPU."""
    axes, wide = tuple(range(-len(normalized_shape), 0)), x.to(torch.promote_types(x.dtype, torch.float32))
    least = torch.finfo(wide.dtype).eps if eps is None else eps
    scaled = wide * (wide.square().mean(axes, keepdim=True) + least).rsqrt()
    return (scaled if weight is None else scaled * weight).to(x.dtype)


def _set_mode(mode) -> None:
    state.mode = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)


def _set_stream(entered) -> None:
    state.stream = entered.number


def _synchronize(*_) -> None:
    if state.capture is not None:
        wait("synchronize")


def _allocated(*_) -> int:
    kept = {x.inner.untyped_storage().data_ptr(): x.inner.untyped_storage().nbytes() for x in list(live)}
    return sum(kept.values())


def install() -> Mode:
    """Put the emulation in the place of ``torch.cuda``; within what it returns, ``"cuda"`` is the emulated device."""
    global default
    ctypes.CDLL(None).stand_in()
    default = torch.Generator("cuda")
    told = {
        "_lazy_init": lambda: None, "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "is_bf16_supported": lambda *_, **__: True, "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: "an emulated device", "synchronize": _synchronize, "empty_cache": lambda: None,
        "device": lambda device: contextlib.nullcontext(), "Stream": Stream, "stream": stream, "set_stream": _set_stream,
        "current_stream": lambda *_: Stream(number=state.stream), "CUDAGraph": CUDAGraph, "graph": graph,
        "is_current_stream_capturing": lambda: state.capture is not None, "default_generators": (default,),
        "get_rng_state": lambda *_: default.get_state(), "set_rng_state": lambda new, *_: default.set_state(new),
        "manual_seed_all": lambda seed: default.manual_seed(seed), "reset_peak_memory_stats": lambda *_: None,
        "memory_allocated": _allocated, "max_memory_allocated": _allocated,
        "set_sync_debug_mode": _set_mode, "get_sync_debug_mode": lambda: state.mode,
    }  # fmt: skip
    for name, value in told.items():
        setattr(torch.cuda, name, value)
    torch.nn.functional.scaled_dot_product_attention, torch.nn.functional.rms_norm = attention, rms_norm
    torch.optim.Optimizer._accelerator_graph_capture_health_check = lambda self: None
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    return Mode()

"""State dicts as tensors and JSON. Most are tensors alone; quantised modules and those with extra state hold more."""

import ast
import hashlib
import inspect
import json
import re
import textwrap
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .protocols import fused_of

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def state_of(model: nn.Module) -> dict:
    """A model's state dict under the names that it has without ``torch.compile``, DataParallel and DistributedDataParallel."""
    plain = plain_names(model)
    return {plain(name): value for name, value in model.state_dict().items()}


def place_of(tensor: Tensor) -> int | None:
    """Where a tensor's numbers lie; None of a kind of tensor that does not say so."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return None


def load_state(model: nn.Module, state: dict) -> None:
    """Fill a model, wrapped or not, from what :func:`state_of` gave of one."""
    plain, own = plain_names(model), model.state_dict()
    names = {plain(name): name for name in own}
    filled = type(own)((names.get(name := plain(given), name), value) for given, value in state.items())
    filled._metadata = own._metadata  # by which quantised modules know the layout
    model.load_state_dict(filled)


def plain_names(model: nn.Module):
    """What takes out of the name of a layer or tensor what wrappers have put there."""
    around = [f"{path}.module" for path, part in model.named_modules() if isinstance(part, _WRAPPERS)]
    inside = {re.sub(r"^\.", "", name) for name in around}

    def plain(name: str) -> str:
        parts = name.split(".")
        kept = [part for i, part in enumerate(parts) if part != "_orig_mod" and ".".join(parts[: i + 1]) not in inside]
        return ".".join(kept)

    return plain


def take_apart(state: dict) -> tuple[dict[str, Tensor], dict]:
    """The tensors of a state dict, and as JSON what is not one; tensors in it are with the others.

    Raises:
        TypeError: for a value that is neither a tensor nor made of tensors, numbers, texts and the like.
    """
    tensors, rest = {}, {}
    for name, value in state.items():
        if _plain(value):
            tensors[name] = value
        else:
            rest[name] = _described(value, name, tensors)
    return tensors, rest


def put_together(tensors: dict[str, Tensor], rest: dict) -> dict:
    """The state dict that :func:`take_apart` was given."""
    tensors = dict(tensors)
    values = {name: _restored(what, tensors) for name, what in rest.items()}
    return tensors | values


def checksum(state: Iterable[tuple[str, object]]) -> str:
    """SHA-256 of named tensors, and of what else a state dict holds, in their order."""
    digest = hashlib.sha256()
    tensors, rest = take_apart({name: unpacked(value) for name, value in state})
    for name, value in tensors.items():
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(name.encode() + content.tobytes())
    if rest:
        digest.update(json.dumps(rest, sort_keys=True).encode())
    return digest.hexdigest()


def shapes(state: dict) -> list[tuple]:
    """Names and shapes of a state dict, by which checkpoints tell architectures apart."""
    return [(k, tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__) for k, v in state.items()]


def trained(model: nn.Module) -> dict[str, bool]:
    """Of each parameter, by the name that it has in the model when that is not wrapped, whether it is trained."""
    plain = plain_names(model)
    return {plain(name): p.requires_grad for name, p in model.named_parameters()}


def forward_pass(model: nn.Module) -> str:
    """What a model computes, besides its weights: SHA-256 of the kinds of its modules, their options and their code.

    Comments and layout of the code do not matter, nor do the wrappers that :func:`plain_names` takes out.
    """
    plain, parts = plain_names(model), []
    for name, part in model.named_modules():
        if not isinstance(part, _WRAPPERS) and not hasattr(part, "_orig_mod"):
            options = re.sub(r" at 0x[0-9a-f]+", "", part.extra_repr())
            parts.append((plain(name), type(part).__qualname__, options, _code(type(part))))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def leaves_logits(whose: str, model: nn.Module | None) -> dict:
    """For a checkpoint's identity: whether a model leaves its logits to the losses, whose rounding is another; nothing of one that cannot."""
    while isinstance(model, _WRAPPERS):
        model = model.module
    fused = fused_of(model)
    return {} if fused is None else {f"{whose}'s logits": {"fused": fused}}


def _code(kind: type) -> str:
    """The body of ``forward`` as Python reads it; nothing of PyTorch's own modules, and where there is no source."""
    if kind.__module__.partition(".")[0] == "torch":
        return ""
    try:
        return ast.dump(ast.parse(textwrap.dedent(inspect.getsource(kind.forward))))
    except (OSError, TypeError, SyntaxError):
        return ""


def unpacked(value):
    """What a quantised LSTM packs its weights in, for looking at it."""
    if isinstance(value, torch.ScriptObject):
        value = value.__getstate__()
    return tuple(map(unpacked, value)) if isinstance(value, (list, tuple)) else value


def _plain(value) -> bool:
    return isinstance(value, Tensor) and not value.is_quantized


def _described(value, name: str, tensors: dict):
    """JSON of a value; a tensor in it goes to ``tensors``, under a name of its own."""

    def kept(tensor: Tensor) -> str:
        place = f"{name}#{sum(key.startswith(f'{name}#') for key in tensors)}"
        tensors[place] = tensor
        return place

    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if _plain(value):
        return {"tensor": kept(value)}
    if isinstance(value, Tensor):  # quantised
        whole = {"quantised": kept(value.int_repr())}
        if value.qscheme() == torch.per_tensor_affine:
            return {**whole, "scale": value.q_scale(), "zero": value.q_zero_point()}
        scales, zeros = value.q_per_channel_scales(), value.q_per_channel_zero_points()
        return {**whole, "scales": kept(scales), "zeros": kept(zeros), "axis": value.q_per_channel_axis()}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": kept(torch.tensor(list(value), dtype=torch.uint8))}
    if isinstance(value, (list, tuple)):
        return {"list" if isinstance(value, list) else "tuple": [_described(x, name, tensors) for x in value]}
    if isinstance(value, dict):
        return {"dict": [[_described(x, name, tensors) for x in pair] for pair in value.items()]}
    raise TypeError(
        f"{name} of the model's state holds a {type(value).__name__}, which is neither a tensor nor JSON, and no pickle is written: "
        "let get_extra_state return tensors, numbers, texts, or lists and dictionaries of them."
    )


def _restored(what, tensors: dict):
    if not isinstance(what, dict):
        return what
    if "quantised" in what:
        whole = tensors.pop(what["quantised"])
        if "scale" in what:
            return torch._make_per_tensor_quantized_tensor(whole, what["scale"], what["zero"])
        scales, zeros = tensors.pop(what["scales"]), tensors.pop(what["zeros"])
        return torch._make_per_channel_quantized_tensor(whole, scales, zeros, what["axis"])
    ((kind, value),) = what.items()
    if kind == "tensor":
        return tensors.pop(value)
    if kind == "dtype":
        return getattr(torch, value)
    if kind == "bytes":
        return bytes(tensors.pop(value).tolist())
    if kind == "dict":
        return {_restored(k, tensors): _restored(v, tensors) for k, v in value}
    items = [_restored(x, tensors) for x in value]
    return tuple(items) if kind == "tuple" else items

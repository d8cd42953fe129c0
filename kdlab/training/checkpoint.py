"""Tensors on disk as safetensors with a JSON header: no pickle, whole or not there."""

import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import atomic_write, note_read
from .state import checksum, load_state, place_of, put_together, state_of, take_apart


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged, or of another run."""


def require_safetensors() -> Any:
    """The safetensors package, or a sentence about how to get it."""
    try:
        import safetensors.torch
    except ImportError:
        raise ImportError("checkpoints need safetensors: pip install 'kdlab[study]'.") from None
    return safetensors


def save_tensors(
    path: str | PathLike[str], state: dict[str, Any], header: dict[str, Any], last: Callable[[], None] | None = None
) -> None:
    """Write a state dict and a JSON-able header to ``path`` in one step; an older file survives a failure.

    ``last`` is called when all is written and nothing of it counts yet.

    Raises:
        TypeError: for what is kept neither as a tensor nor as JSON (see ``kdlab.training.state``).
    """
    tensors, rest = take_apart(state)
    tensors, tied = _once(tensors)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    seen = set()  # safetensors takes no memory twice
    for name, tensor in contiguous.items():
        if (place := tensor.untyped_storage().data_ptr()) in seen:
            contiguous[name] = tensor.clone()
        seen.add(place)
    beside = {name: json.dumps(what) for name, what in (("state", rest), ("tied", tied)) if what}
    content = require_safetensors().torch.save(contiguous, {"kdlab": json.dumps(header), **beside})
    with atomic_write(path) as part:
        part.write_bytes(content)
        if last is not None:
            last()


def _once(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tied weights are one tensor of several names: it under the first, and of each other name which that is."""
    once, tied, first = {}, {}, {}
    for name, tensor in tensors.items():
        place = place_of(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device
        if tensor.numel() and place[0] is not None and (one := first.setdefault(place, name)) != name:
            tied[name] = one
        else:
            once[name] = tensor
    return once, tied


def load_tensors(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote.

    Raises:
        CheckpointError: if the file is missing, truncated or not kdlab's.
    """
    safetensors = require_safetensors()
    if not note_read(path).is_file():
        what = "is a folder, not a file" if Path(path).is_dir() else "does not exist"
        raise CheckpointError(f"{path} {what}.")
    try:
        with safetensors.safe_open(path, "pt") as f:
            metadata = f.metadata()
            header = json.loads(metadata["kdlab"])
            rest, tied = (json.loads(metadata.get(name, "{}")) for name in ("state", "tied"))
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
            tensors |= {name: tensors[first] for name, first in tied.items()}
            return put_together(tensors, rest), header
    except (safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or was not written by kdlab: {error}") from error


def save_model(path: str | PathLike[str], model: nn.Module, header: dict[str, Any]) -> None:
    """Write a model's parameters, buffers and extra state, under the names that they have in it when it is not wrapped.

    Raises:
        TypeError: for extra state that is neither tensors nor JSON.
    """
    save_tensors(path, state_of(model), header)


def load_model(path: str | PathLike[str], model: nn.Module) -> dict[str, Any]:
    """Fill ``model``, wrapped or not, from ``path`` and return the header.

    Raises:
        CheckpointError: if the file is missing or damaged, or holds another architecture.
    """
    tensors, header = load_tensors(path)
    try:
        load_state(model, tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit this model: {str(error).splitlines()[1].strip()}") from error
    return header


def save_run(path: Path, student, objective, optimizer, sums: dict[str, Tensor], header: dict, last=None) -> None:
    """Everything that a run needs to go on bit for bit; what is drawn at random comes from the recipe's seed.

    ``last`` as in :func:`save_tensors`.
    """
    tensors = {f"student.{k}": v for k, v in state_of(student).items()}
    tensors |= {f"objective.{k}": v for k, v in objective.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in state.items() if v is not None}
    tensors |= {f"sum.{k}": v for k, v in sums.items()}
    save_tensors(path, tensors, {**header, "checksum": checksum(sorted(tensors.items()))}, last)


def load_run(path: Path, student, objective, optimizer, identity: dict, device="cpu") -> tuple[dict, dict]:
    """Put back what :func:`save_run` saved, if it is of the run that ``identity`` describes; return header and sums."""
    tensors, header = load_tensors(path)
    if "checksum" in header and header["checksum"] != checksum(sorted(tensors.items())):
        raise CheckpointError(
            f"{path} is damaged: its checksum does not fit what it holds; delete it to start that run anew."
        )
    if header.get("identity") != identity:
        # Earlier versions wrote none of these.
        later = "inputs", "forward pass", "student's logits", "teacher's logits", "trained parameters"
        known = {k: identity[k] for k in later if k in identity} | (header.get("identity") or {})
        if differs := [
            _difference(k, known, identity) for k in {**identity, **known} if known.get(k) != identity.get(k)
        ]:
            raise CheckpointError(
                f"{path} belongs to another run (other {', '.join(differs)}): give another path, or move it away to begin anew."
            )

    def part(prefix):
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    load_state(student, part("student."))
    objective.load_state_dict(part("objective."))
    state = {}
    for name, value in part("optimizer.").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    for parameter, held in optimizer.state.items():  # in its parameter's layout, which fused optimisers insist on
        for name, value in held.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                held[name] = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
    return header, {name: value.to(device) for name, value in part("sum.").items()}


def _difference(name: str, there: dict, here: dict) -> str:
    """What differs, by name; of a recipe the fields, with what they are in the checkpoint and here, and of many the first."""
    there, here = there.get(name), here.get(name)
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return name
    fields = [k for k in {**here, **there} if there.get(k) != here.get(k)]
    shown = [f"{k} {there.get(k)!r} in it and {here.get(k)!r} here" for k in fields]
    return f"{name}: {', '.join(shown[:8])}{f', and {len(shown) - 8} more' if len(shown) > 8 else ''}"

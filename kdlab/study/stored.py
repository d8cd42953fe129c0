"""Students that were kept, in the ``checkpoints`` of a book."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..files import sha256
from ..training import load_model, save_model
from ..training.state import checksum
from .named import network
from .records import RecordError, find_record
from .spec import Pretrained, Spec


def checkpoint_path(spec: Spec, book: Path) -> Path:
    return Path(book) / "checkpoints" / f"{spec.name}.safetensors"


def keep_student(spec: Spec, student: nn.Module, book: Path) -> dict[str, str]:
    """Store the trained student of ``spec`` in ``book``; how its record names the file."""
    path = checkpoint_path(spec, book)
    save_model(path, student, {"spec_hash": spec.hash})
    return {"file": path.name, "sha256": sha256(path)}


def weights_checksum(state: Mapping[str, Any]) -> str:
    """SHA-256 of a model's weights, of its own state dict or of its checkpoint's, in whatever order."""
    return checksum(sorted(state.items()))


def stored_student(spec: Spec, book: Path, num_classes: int) -> nn.Module | None:
    """The trained student of ``spec`` from ``book``, in evaluation mode; None where it is not stored.

    Raises:
        RecordError: if the stored file is not the one that its record names.
    """
    record = find_record(spec, Path(book) / "records")
    path = checkpoint_path(spec, book)
    if record is None or "checkpoint" not in record or not path.exists():
        return None
    if sha256(path) != record["checkpoint"]["sha256"]:
        raise RecordError(f"{path} is not the checkpoint that its record names.")
    model = network(spec.student)(num_classes)
    load_model(path, model)
    return model.eval()


def stored_in(places, spec: Spec | Pretrained, num_classes: int) -> nn.Module | None:
    """The student of a spec from the first of several books that has it, else None; one that is pretrained from where its weights are."""
    if isinstance(spec, Pretrained):
        return network(spec.student)(num_classes).eval()
    for place in places:
        if (model := stored_student(spec, place, num_classes)) is not None:
            return model
    return None

"""The teacher that chapters share."""

from torch import nn

from ..data import ImageData
from . import plans
from .records import RecordError, book_folder
from .run import checkpoint_path, run, stored_student


def book_teacher(data: ImageData, *, device="cpu") -> nn.Module:
    """The stored ResNet-20 for CIFAR-100; for the fall-back, one trained on the spot in about 20 seconds.

    Raises:
        RecordError: if the stored teacher is missing or is not the one of its record.
    """
    spec = plans.teacher(data.name)
    if data.fallback:
        return run(spec, data, device=device).student
    model = stored_student(spec, book_folder(), data.num_classes)
    if model is None:
        raise RecordError(
            f"{checkpoint_path(spec, book_folder())} is missing: it comes with the repository, or is made by "
            "'kdlab run teacher' in about 20 minutes."
        )
    return model.to(device)

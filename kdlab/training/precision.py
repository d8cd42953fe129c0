"""In which precision a model runs. What compares models, the objectives, stays in float32."""

from typing import Literal

import torch

Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """``torch.autocast`` to a precision; for ``"float32"`` none, whatever it is within.

    Raises:
        ValueError: for a precision that is not known.
    """
    check_precision(precision)
    lower = torch.bfloat16 if precision == "float32" else PRECISIONS[precision]
    return torch.autocast(torch.device(device).type, lower, enabled=precision != "float32")


def check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}.")


def fast_precision(device: torch.device | str = "cpu") -> Precision:
    """``"bfloat16"`` where the device multiplies matrices faster in it, else ``"float32"``.

    A GPU does from compute capability 8.0 (Ampere) on; earlier ones, such as the T4, V100 and P100, emulate it, slowly. V100 and T4 are
    fast in ``"float16"``, whose range is small: choose it yourself (:class:`~kdlab.training.recipe.Recipe`).
    """
    device = torch.device(device)
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def gradient_scaler(device: torch.device | str, precision: str) -> torch.amp.GradScaler | None:
    """What keeps the gradients of float16 within its range (Micikevicius et al. 2018, section 3.2); None for other precisions."""
    return torch.amp.GradScaler(torch.device(device).type) if precision == "float16" else None

"""One training loop, recipes, checkpoints and measures. May import objectives, models and data."""

from .checkpoint import CheckpointError, load_model, save_model
from .loop import fast_precision, fit
from .measures import accuracy, agreement, expected_calibration_error, measure, predict
from .recipe import Recipe
from .taps import Taps

__all__ = [
    "CheckpointError",
    "Recipe",
    "Taps",
    "accuracy",
    "agreement",
    "expected_calibration_error",
    "fast_precision",
    "fit",
    "load_model",
    "measure",
    "predict",
    "save_model",
]

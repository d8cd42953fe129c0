"""One training loop, recipes, checkpoints and measures. May import objectives, models and data."""

from .checkpoint import CheckpointError, load_model, save_model
from .loop import fit, fit_together
from .measures import (
    accuracy,
    agreement,
    evaluation_mode,
    expected_calibration_error,
    fitted_temperature,
    measure,
    measure_further,
    measure_tokens,
    predict,
)
from .precision import fast_precision
from .recipe import Recipe
from .stopping import Stopped
from .student import Learner
from .taps import Taps
from .teachers import CachedLogits, CacheError, FunctionTeacher, LogitsOfViews, write_logits

__all__ = [
    "CacheError",
    "CachedLogits",
    "CheckpointError",
    "FunctionTeacher",
    "Learner",
    "LogitsOfViews",
    "Recipe",
    "Stopped",
    "Taps",
    "accuracy",
    "agreement",
    "evaluation_mode",
    "expected_calibration_error",
    "fast_precision",
    "fit",
    "fit_together",
    "fitted_temperature",
    "load_model",
    "measure",
    "measure_further",
    "measure_tokens",
    "predict",
    "save_model",
    "write_logits",
]

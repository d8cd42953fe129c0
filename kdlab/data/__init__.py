"""Real data in their publishers' layouts, and a task whose posterior is known."""

from .download import DataError, folder
from .images import ImageData, Split, crop_and_flip, load_cifar10, load_cifar100, load_digits, load_images
from .posterior import ExactTeacher, Examples, KnownPosterior

__all__ = [
    "DataError",
    "ExactTeacher",
    "Examples",
    "ImageData",
    "KnownPosterior",
    "Split",
    "crop_and_flip",
    "folder",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_images",
]

"""Real images, texts and sentences in their publishers' layouts, and a task whose posterior is known."""

from .download import DataError, folder
from .examples import Examples, Loaded
from .gutenberg import load_books
from .images import (
    ImageData,
    Split,
    crop_and_flip,
    draw_boxes,
    load_cifar10,
    load_cifar100,
    load_digits,
    load_images,
    resample,
)
from .posterior import ExactTeacher, KnownPosterior
from .sentences import SentenceData, Sentences
from .text import Corpus, corpus_or_fallback, load_corpus, read_documents
from .tokens import TextData, Tokens

__all__ = [
    "Corpus",
    "DataError",
    "ExactTeacher",
    "Examples",
    "ImageData",
    "KnownPosterior",
    "Loaded",
    "SentenceData",
    "Sentences",
    "Split",
    "TextData",
    "Tokens",
    "corpus_or_fallback",
    "crop_and_flip",
    "draw_boxes",
    "folder",
    "load_books",
    "load_cifar10",
    "load_cifar100",
    "load_corpus",
    "load_digits",
    "load_images",
    "read_documents",
    "resample",
]

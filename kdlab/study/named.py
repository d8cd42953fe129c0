"""What a spec names: data sets and networks of kdlab, and those of one's own by their import paths."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from .. import models
from ..data import ImageData, SentenceData, TextData
from ..files import sha256
from ..huggingface import encoders
from ..language import load_text_data, parse
from . import images
from .spec import Spec


def load(name: str) -> ImageData | TextData | SentenceData:
    """The data set that a spec names: images, a text as :func:`~kdlab.language.tokeniser.load_text_data` names it, or sentences as
    :func:`~kdlab.huggingface.encoders.load_sentences` does; or of one's own,
    by the import path of a function that returns it."""
    if name in images.LOADERS:
        return images.LOADERS[name]()
    if ":" in name:
        return replace(imported(name)(), name=name)
    if "-sentences-" in name:
        return encoders.load_sentences(name)
    try:
        parse(name)
    except ValueError as error:
        raise ValueError(f"unknown data {name!r}: there are {', '.join(images.LOADERS)}; {error}") from None
    return load_text_data(name)


def network(name: str) -> Callable[[int], nn.Module]:
    """What makes a network of so many classes: a function of ``kdlab.models``, or a sentence encoder, by its name, or one's own by its import path.

    Raises:
        ValueError: if there is none.
    """
    if ":" in name:
        return imported(name)
    if name in encoders.ENCODERS:
        return encoders.ENCODERS[name]
    if not hasattr(models, name):
        raise ValueError(
            f'kdlab.models has no {name!r}; a network of your own is named by its import path, such as "my_package.nets:small".'
        )
    return getattr(models, name)


def imported(path: str):
    """What an import path names, ``"package.module:name"``.

    Raises:
        ValueError: if it is not there.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f'{path!r} cannot be imported ({error}): it is "package.module:name", of a package that is installed, or whose folder is on PYTHONPATH.'
        ) from error


def own_code(spec: Spec) -> dict[str, str]:
    """Of what a spec takes by its import path, the SHA-256 of the file that it is in: kdlab's commit says nothing of it."""
    paths = [path for path in (spec.student, spec.data) if ":" in path]
    return {path: sha256(Path(inspect.getsourcefile(imported(path)))) for path in paths}

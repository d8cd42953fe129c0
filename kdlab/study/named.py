"""What a spec names: data sets and networks of kdlab, and those of one's own by their import paths."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from .. import models
from ..data import DataError, ImageData, SentenceData, TextData
from ..files import sha256
from ..huggingface import encoders
from ..language import load_text_data, parse
from . import images
from .spec import Spec


def load(name: str) -> ImageData | TextData | SentenceData:
    """The data set that a spec names: images, a text as :func:`~kdlab.language.tokeniser.load_text_data` names it, or sentences as
    :func:`~kdlab.huggingface.encoders.load_sentences` does; or of one's own,
    by the import path of a function that returns it.

    Raises:
        ValueError: for a name that there is not.
        DataError: if the data cannot be had, or are damaged.
    """
    if name in images.LOADERS:
        return images.LOADERS[name]()
    if ":" in name:
        return replace(imported(name)(), name=name)
    if "-sentences-" in name:
        return no_stand_in(encoders.load_sentences(name))
    try:
        parse(name)
    except ValueError as error:
        raise ValueError(f"unknown data {name!r}: there are {', '.join(images.LOADERS)}; {error}") from None
    return no_stand_in(load_text_data(name))


def no_stand_in(data: ImageData | TextData | SentenceData) -> ImageData | TextData | SentenceData:
    """``data``, if they are those that were asked for: pages are built on what stands in for them, records are not made of it.

    Raises:
        DataError: if they stand in for data that could not be had, and why that was.
    """
    if data.fallback and data.reason:  # digits that were asked for stand in for nothing
        raise DataError(f"{data.name} cannot be had, and no record is made of what stands in for it: {data.reason}")
    return data


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
    """Of what a spec takes by its import path, the SHA-256 of the file that it is in: kdlab's commit says nothing of it.

    Raises:
        ValueError: for what is in no file of Python.
    """
    paths = [path for path in (spec.student, spec.data) if ":" in path]
    return {path: sha256(_file(path)) for path in paths}


def _file(path: str) -> Path:
    """Where what an import path names is written down: inside of ``functools.cache`` and the like; of a ``partial`` where its arguments are."""
    found = inspect.unwrap(imported(path))
    if isinstance(found, partial):
        found = importlib.import_module(path.partition(":")[0])
    try:
        return Path(inspect.getsourcefile(found))
    except TypeError:
        raise ValueError(
            f"{path!r} is written in no file of Python, by whose checksum a record knows it: name a function or a class of your own."
        ) from None

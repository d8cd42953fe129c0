"""Every call of kdlab in the tests is held against its signature: types by beartype, axes by jaxtyping.

What a function was given and what it gave back are looked at once it has *returned*. So the tests of what is refused see kdlab's own
sentence; and whatever is not refused is what the signature says, or one of the two is wrong.
"""

import functools
import inspect
import sys
from dataclasses import is_dataclass
from importlib.machinery import PathFinder, SourceFileLoader
from itertools import chain, repeat
from types import FunctionType
from typing import Any, get_type_hints

import torch
from beartype import BeartypeConf
from beartype.door import is_bearable
from jaxtyping import jaxtyped

#: Those whose signatures are held. What ``study``, ``benchmarks`` and ``figures`` say of theirs is not yet.
ROOMS = tuple(f"kdlab.{room}" for room in ("objectives", "models", "data", "training", "language", "theory"))
AN_INT_IS_A_FLOAT = BeartypeConf(is_pep484_tower=True)


class SignatureError(AssertionError):
    """A call that is not what the signature says."""


def _said(value):
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"{value!r:.200}"


def _kind(value):
    """What of a value its annotation can tell: the same for two calls, and the second is not looked at."""
    if isinstance(value, torch.Tensor):
        return type(value), value.dtype, tuple(value.shape)
    if type(value) in (tuple, list, dict) and len(value) > 50:
        return object()  # unlike any other
    if type(value) in (tuple, list):
        return type(value), *map(_kind, value)
    if type(value) is dict:
        return dict, *((_kind(name), _kind(part)) for name, part in value.items())
    return (type(value), value) if isinstance(value, str | int) else type(value)


@functools.cache
def checked(function):
    """The function, which holds each call that returns against its annotations."""
    written = inspect.unwrap(function)
    if not written.__annotations__ or inspect.isgeneratorfunction(written):
        return function
    hints, kinds, seen = {}, {}, set()
    for name, parameter in inspect.signature(function).parameters.items():
        kinds.setdefault(parameter.kind, []).append(name)
    by_place = [
        *kinds.get(inspect.Parameter.POSITIONAL_ONLY, ()),
        *kinds.get(inspect.Parameter.POSITIONAL_OR_KEYWORD, ()),
    ]
    named = {*chain(*kinds.values()), "return"}
    further, others = (
        kinds.get(kind, [None])[0] for kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    )

    def compare(args, kwargs, result):
        like = tuple(_kind(part) for part in (args, kwargs, result))
        if like in seen:
            return
        if not hints:  # only now are all names of its module there
            hints.update(get_type_hints(written, include_extras=True))
        with jaxtyped("context"):  # in which axes of one name have one size
            for name, value in (
                *zip(chain(by_place, repeat(further)), args, strict=False),
                *kwargs.items(),
                ("return", result),
            ):
                hint = hints.get(name, Any) if name in named else hints.get(others, Any)
                if type(value).__name__ == "Interruptible" and hint is not type(value):  # stands for its split
                    value = value.split
                if hint is not Any and not is_bearable(value, hint, conf=AN_INT_IS_A_FLOAT):
                    where = f"{written.__module__}.{written.__qualname__}"
                    raise SignatureError(f"{where}, {name}: {hint}, and not {_said(value)}.")
        seen.add(like)

    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        if result is not NotImplemented and not compiling():
            compare(args, kwargs, result)
        return result

    compiling = torch.compiler.is_compiling
    # With the globals of its module, by which doctest knows what is of that module.
    call = FunctionType(call.__code__, written.__globals__, closure=call.__closure__)
    return functools.wraps(function)(call)


def _checked_member(member, module):
    """A function, or what is made of one, if it is of this module."""
    if isinstance(member, FunctionType):
        return checked(member) if member.__module__ == module else member
    if isinstance(member, (staticmethod, classmethod)):
        return type(member)(_checked_member(member.__func__, module))
    if type(member) is property:
        parts = (member.fget, member.fset, member.fdel)
        return property(*(_checked_member(part, module) for part in parts), member.__doc__)
    return member


class _Loader(SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        for name, thing in list(vars(module).items()):
            if isinstance(thing, FunctionType):
                setattr(module, name, _checked_member(thing, module.__name__))
            elif inspect.isclass(thing) and thing.__module__ == module.__name__:
                for member, value in list(vars(thing).items()):
                    if member == "__init__" and is_dataclass(thing) and not hasattr(thing, "__post_init__"):
                        continue  # it refuses nothing itself: who takes it does
                    new = _checked_member(value, module.__name__)
                    if new is not value:
                        setattr(thing, member, new)


class _Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        found = PathFinder.find_spec(name, path, target) if name.startswith(ROOMS) else None
        if found is not None and type(found.loader) is SourceFileLoader:
            found.loader = _Loader(found.loader.name, found.loader.path)
        return found


def install() -> None:
    """Before kdlab is imported."""
    sys.meta_path.insert(0, _Finder)

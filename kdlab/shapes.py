"""Types with shapes, in jaxtyping's notation: ``Float[Tensor, "*batch N"]`` is a floating-point tensor whose last axis is called N.

An axis of one name has one size throughout a signature; ``*batch`` is any number of axes, ``""`` none. Nothing is checked in use, and
jaxtyping is no dependency: where it is not installed, such a type is that of the tensor alone. The tests install it, and hold every call
against it (``tests/typechecked.py``).
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Integer, Num, Shaped
else:
    try:
        from jaxtyping import Bool, Float, Integer, Num, Shaped
    except ImportError:

        class Shaped:
            """``Shaped[Tensor, "…"]``, the tensor's type alone."""

            def __class_getitem__(cls, tensor_and_shape):
                return tensor_and_shape[0]

        Bool = Float = Integer = Num = Shaped

__all__ = ["Bool", "Float", "Integer", "Num", "Shaped", "with_shapes"]


def with_shapes(data: Any) -> str:
    """What a data class that holds tensors is shown as, its ``__repr__``: types and shapes in place of their numbers."""
    shown = (f"{field.name}={_shown(getattr(data, field.name))}" for field in fields(data))
    return f"{type(data).__name__}({', '.join(shown)})"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name!r}: {_shown(part)}' for name, part in value.items())}}}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})" if len(value) < 10 else f"tuple of {len(value)}"
    if is_dataclass(value) or not hasattr(value, "dtype"):
        return repr(value)
    device = str(getattr(value, "device", "cpu"))
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}{'' if device == 'cpu' else f' on {device}'}"

"""Types with shapes, in jaxtyping's notation: ``Float[Tensor, "*batch N"]`` is a floating-point tensor whose last axis is called N.

An axis of one name has one size throughout a signature; ``*batch`` is any number of axes, ``""`` none. Nothing is checked in use, and
jaxtyping is no dependency: where it is not installed, such a type is that of the tensor alone. The tests install it, and hold every call
against it (``tests/typechecked.py``).
"""

from typing import TYPE_CHECKING

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

__all__ = ["Bool", "Float", "Integer", "Num", "Shaped"]

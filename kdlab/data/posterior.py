"""A task whose true posterior is known, so that dark knowledge can be compared with the truth."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdlab.shapes import Float, Integer, with_shapes

from .examples import Examples


class ExactTeacher(nn.Module):
    """The true posterior as a teacher: its softmax at temperature one is p(y | x)."""

    def __init__(self, task: "KnownPosterior") -> None:
        super().__init__()
        self.noise = task.noise
        self.register_buffer("centres", task.centres)

    def forward(self, inputs: Float[Tensor, "*n D"]) -> Float[Tensor, "*n classes"]:
        return -torch.cdist(inputs, self.centres).square() / (2 * self.noise**2)


@dataclass(frozen=True)
class KnownPosterior:
    r"""Classes drawn from a hierarchical Gaussian mixture.

    Superclass centres are drawn from :math:`\mathcal N(0, a^2 I)`, class centres :math:`\mu_c` from
    :math:`\mathcal N(\text{centre}, b^2 I)`, examples of class :math:`c` from :math:`\mathcal N(\mu_c, \sigma^2 I)`,
    all classes equally likely. Hence exactly

    .. math:: p(y = c \mid x) = \operatorname{softmax}_c\bigl(-\|x - \mu_c\|^2 / 2\sigma^2\bigr).

    Attributes:
        centres: :math:`\mu`, float32, shape ``(classes, dimensions)``.
        superclass_of: int64, shape ``(classes,)``.
        noise: :math:`\sigma`.
    """

    __repr__ = with_shapes

    centres: Float[Tensor, "classes D"]
    superclass_of: Integer[Tensor, " classes"]
    noise: float

    @classmethod
    def draw(
        cls,
        *,
        superclasses: int = 5,
        classes_each: int = 4,
        dimensions: int = 16,
        between: float = 1.0,
        within: float = 0.5,
        noise: float = 0.8,
        seed: int = 0,
    ) -> "KnownPosterior":
        r"""Draw a task: ``between`` is :math:`a`, ``within`` is :math:`b`, ``noise`` is :math:`\sigma`."""
        generator = torch.Generator().manual_seed(seed)
        tops = between * torch.randn(superclasses, 1, dimensions, generator=generator)
        offsets = within * torch.randn(superclasses, classes_each, dimensions, generator=generator)
        return cls(
            centres=(tops + offsets).flatten(0, 1),
            superclass_of=torch.arange(superclasses).repeat_interleave(classes_each),
            noise=noise,
        )

    @property
    def num_classes(self) -> int:
        return len(self.centres)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Examples:
        """``n`` examples with inputs of shape ``(n, dimensions)``."""
        labels = torch.randint(self.num_classes, (n,), generator=generator)
        noise = torch.randn(n, self.centres.shape[1], generator=generator)
        return Examples(self.centres[labels] + self.noise * noise, labels)

    def posterior_logits(self, inputs: Float[Tensor, "*n D"]) -> Float[Tensor, "*n classes"]:
        """Logits of shape ``(n, classes)`` whose softmax at temperature one is the true p(y | x)."""
        return ExactTeacher(self)(inputs)

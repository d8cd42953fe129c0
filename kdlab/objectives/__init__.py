"""What to match: pure functions of tensors, and the terms and sum that compose them.

May import torch alone.
"""

from .response import (
    cross_entropy,
    distillation_loss,
    forward_kl,
    permute_dark_knowledge,
    reduce,
    reverse_kl,
    soft_targets,
)
from .softening import entropy, log_soften, soften
from .terms import CrossEntropy, ForwardKL, Objective, PermutedSoftTargets, ReverseKL, SoftTargets, Term

__all__ = [
    "CrossEntropy",
    "ForwardKL",
    "Objective",
    "PermutedSoftTargets",
    "ReverseKL",
    "SoftTargets",
    "Term",
    "cross_entropy",
    "distillation_loss",
    "entropy",
    "forward_kl",
    "log_soften",
    "permute_dark_knowledge",
    "reduce",
    "reverse_kl",
    "soft_targets",
    "soften",
]

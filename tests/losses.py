"""Every loss of logits in one form, so that what holds for all is stated once."""

import inspect
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdlab.objectives import (
    cross_entropy,
    decoupled_kd,
    dist_loss,
    distillation_loss,
    divergences,
    forward_kl,
    generalised_jsd,
    logit_mse,
    negative_log_acceptance,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    smooth_labels,
    soft_targets,
    soften,
    standardise,
    terms,
    total_variation,
)
from kdlab.theory import reference

#: Every divergence of logits, as its file has them: a new one is held to all that the tests say of divergences.
DECLARED = {
    name: function
    for name, function in vars(divergences).items()
    if inspect.isfunction(function)
    and not name.startswith("_")
    and function.__module__ == divergences.__name__
    and {"student_logits", "teacher_logits"} <= inspect.signature(function).parameters.keys()
}
#: The term of each, by its name; None where there is none.
TERM_OF = {
    name: next(
        (t for t in vars(terms).values() if inspect.isclass(t) and getattr(t, "function", None) is function), None
    )
    for name, function in DECLARED.items()
}
#: Whose closed form has another name.
OTHER_NAMES = {"generalised_jsd": "jensen_shannon"}


def textbook(name, factor=lambda T: 1.0, **options):
    """Value and gradient of the reference, each a function of z, t and T."""
    value, slope = getattr(reference, name), getattr(reference, f"{name}_gradient")
    return (
        lambda z, t, T: factor(T) * value(z, t, T, **options),
        lambda z, t, T: factor(T) * slope(z, t, T, **options),
    )


#: loss(z, t, **options), the textbook's value, the textbook's gradient.
CLOSED_FORMS = {
    "forward_kl": (forward_kl, *textbook("forward_kl")),
    "reverse_kl": (reverse_kl, *textbook("reverse_kl")),
    "skewed_forward_kl": (skewed_forward_kl, *textbook("skewed_forward_kl", skew=0.1)),
    "skewed_reverse_kl": (skewed_reverse_kl, *textbook("skewed_reverse_kl", skew=0.1)),
    "jsd": (generalised_jsd, *textbook("jensen_shannon", beta=0.5)),
    "scaled_jsd": (
        partial(generalised_jsd, beta=0.1, scaled=True),
        *textbook("jensen_shannon", lambda T: 1 / 0.09, beta=0.1),
    ),
    "total_variation": (total_variation, *textbook("total_variation")),
    "negative_log_acceptance": (negative_log_acceptance, *textbook("negative_log_acceptance")),
    "soft_targets": (soft_targets, *textbook("forward_kl", lambda T: T**2)),
}
CLOSED_FORMS |= {
    name: (function, *textbook(name))
    for name, function in DECLARED.items()
    if name not in CLOSED_FORMS and name not in OTHER_NAMES and hasattr(reference, f"{name}_gradient")
}
DIVERGENCES = {name: loss for name, (loss, *_) in CLOSED_FORMS.items()}


def hard(z, t, y, *, temperature=1.0, **options):
    return cross_entropy(z, y, temperature=temperature, **options)


def hard_with_distribution(z, t, y, *, temperature=1.0, **options):
    return cross_entropy(z, soften(t.detach(), class_axis=-1), temperature=temperature, **options)


def smoothed(z, t, y, *, temperature=1.0, **options):
    target = smooth_labels(y.clamp(min=0), z.shape[-1], smoothing=0.3)
    return cross_entropy(z, target, temperature=temperature, **options)


def both(z, t, y, *, temperature=2.0, **options):
    return distillation_loss(z, t, y, temperature=temperature, hard_weight=0.3, **options)


def decoupled(z, t, y, *, temperature=2.0, **options):
    return decoupled_kd(z, t, y, temperature=temperature, **options)


def on_shapes(z, t, y, *, temperature=2.0, **options):
    return soft_targets(
        standardise(z, class_axis=-1), standardise(t, class_axis=-1), temperature=temperature, **options
    )


def squared_error(z, t, y, **options):
    return logit_mse(z, t, **options)


def centred_error(z, t, y, **options):
    return logit_mse(z, t, centred=True, **options)


def correlation(z, t, y, *, temperature=2.0, **options):
    return dist_loss(z, t, temperature=temperature, **options)


def of_logits(divergence, z, t, y, *, temperature=2.0, **options):
    return divergence(z, t, temperature=temperature, **options)


#: loss(z, t, y, **options) of probabilities, with a temperature.
OF_PROBABILITIES = {
    **{f.__name__: f for f in (hard, hard_with_distribution, both, decoupled)},
    **{name: partial(of_logits, loss) for name, loss in DIVERGENCES.items()},
}
SOFTENED = {**OF_PROBABILITIES, "smoothed": smoothed, "on_shapes": on_shapes}
#: loss(z, t, y, **options), a sum over distributions.
LOSSES = {**SOFTENED, "squared_error": squared_error, "centred_error": centred_error}
#: With the one that compares distributions with each other, and so takes no reduction and no count.
ALL = {**LOSSES, "dist": correlation}
#: Those that look at the teacher's logits and let a gradient through.
OF_BOTH = {name: loss for name, loss in ALL.items() if loss not in (hard, hard_with_distribution, smoothed)}


def each(losses, name="loss"):
    return pytest.mark.parametrize(name, [pytest.param(loss, id=key) for key, loss in losses.items()])


every_loss = each(LOSSES)
every_divergence = each(DIVERGENCES, "divergence")

temperatures = st.floats(0.2, 100)
pair_shapes = st.tuples(st.just(2), st.integers(1, 3), st.integers(2, 8))
pairs = arrays(np.float64, pair_shapes, elements=st.floats(-10, 10)).map(torch.from_numpy)
pairs32 = arrays(np.float32, pair_shapes, elements=st.floats(-40, 40, width=32)).map(torch.from_numpy)


def batch(*shape, scale=3.0, seed=0):
    """Student's logits, teacher's logits, labels."""
    generator = torch.Generator().manual_seed(seed)
    z, t = scale * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return z, t, torch.randint(shape[-1], shape[:-1], generator=generator)


def gradient(loss, z, *arguments, **options):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(loss(z, *arguments, **options), z)[0]


def refused(loss, error, sentence, *arguments, **options):
    with pytest.raises(error, match=sentence):
        loss(*arguments, **options)

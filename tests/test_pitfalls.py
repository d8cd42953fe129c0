"""Mistakes that real distillation code made: each criterion holds here, and catches the planted mistake.

``mutations.py`` plants the same mistakes in copies of the package, and shows that these tests catch them there too.
"""

import inspect
import math
import os
import random
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode

from kdlab import files, objectives, training
from kdlab.benchmarks import acceptance, by_hand, timing
from kdlab.benchmarks import training as training_rounds
from kdlab.data import DataError, Examples, Split, Tokens, images
from kdlab.data.examples import Loaded
from kdlab.data.tokens import mapped, numbered
from kdlab.huggingface import CausalLM, without_adapter
from kdlab.language import (
    CacheError,
    OwnText,
    TeacherCache,
    caches,
    generate,
    speculate,
    text,
    tokenise_documents,
    train_tokeniser,
    write_cache,
)
from kdlab.models import GPT, Ahead, MultiToken
from kdlab.objectives import (
    CRD,
    DIST,
    ActivationAttention,
    AttentionMaps,
    BinaryCrossEntropy,
    BinarySoftTargets,
    Constant,
    ContrastiveMemory,
    Cosine,
    CrossEntropy,
    DecoupledKD,
    ForwardKL,
    GeneralisedJSD,
    HardTargets,
    HeadLogits,
    HiddenCosine,
    HiddenMSE,
    InfoNCE,
    LearnedTemperature,
    Linear,
    LogitMSE,
    MemoryBank,
    MergedVocabulary,
    NegativeLogAcceptance,
    PermutedSoftTargets,
    Projector,
    ReverseKL,
    RKDAngle,
    RKDDistance,
    SimilarityPreserving,
    SkewedForwardKL,
    SkewedReverseKL,
    SmoothedLabels,
    SoftTargets,
    SparseForwardKL,
    SparseTargets,
    SpreadSoftTargets,
    Step,
    Term,
    TotalVariation,
    activation_attention,
    attention_from_qk,
    attention_map_mse,
    binary_cross_entropy,
    binary_soft_targets,
    cross_entropy,
    decoupled_kd,
    dist_loss,
    distillation_loss,
    entropy,
    forward_kl,
    generalised_jsd,
    global_count,
    hidden_cosine,
    hidden_mse,
    info_nce,
    log_soften,
    logit_mse,
    loss_as_in,
    match_layers,
    negative_log_acceptance,
    next_token,
    permute_dark_knowledge,
    reduce,
    restrict_vocabulary,
    reverse_kl,
    rkd_angle,
    rkd_distance,
    sampled_kl,
    similarity_preserving,
    skewed_forward_kl,
    skewed_reverse_kl,
    smooth_labels,
    soft_targets,
    soften,
    sparse_forward_kl,
    spread_dark_knowledge,
    standardise,
    terms,
    total_variation,
    weight_factor,
)
from kdlab.objectives.conventions import CONVENTIONS
from kdlab.study import Spec, answers, grown, plans, run, runner, statements
from kdlab.study.evidence import Among, Quantity, evidence
from kdlab.study.flat import row as row_of
from kdlab.study.named import load
from kdlab.study.power_law import fit_power_law, measured_curve, worth
from kdlab.study.records import RecordError, provenance, write_record
from kdlab.study.results import Results
from kdlab.study.runner import PlanError
from kdlab.study.statistics import against, summary
from kdlab.study.stored import checkpoint_path, weights_checksum
from kdlab.study.when_it_pays import held_out
from kdlab.theory import reference
from kdlab.training import (
    LogitsOfViews,
    Recipe,
    Taps,
    accuracy,
    agreement,
    checkpoint,
    checks,
    determinism,
    expected_calibration_error,
    fast_precision,
    fit,
    fitted_temperature,
    load_model,
    measure,
    measures,
    optimizers,
    predict,
    save_model,
    state,
    taps,
    teachers,
    views,
)
from kdlab.training.taps import call

QUICK = Recipe(epochs=3, batch_size=32, learning_rate=0.01, schedule="cosine")


def pair(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z, t = 3 * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return z, t, torch.randint(shape[-1], shape[:-1], generator=generator)


def gradient(loss, z, *arguments, **options):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(loss(z, *arguments, **options), z)[0]


def near(a, b, rtol=1e-9, atol=1e-12):
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    return a.shape == b.shape and torch.allclose(a, b, rtol=rtol, atol=atol)


def without_labels(loss):
    return lambda z, t, y, **how: loss(z, t, **how)


DIVERGENCES = {
    "forward KL": forward_kl,
    "reverse KL": reverse_kl,
    "skewed forward KL": skewed_forward_kl,
    "skewed reverse KL": skewed_reverse_kl,
    "JSD": partial(generalised_jsd, beta=0.3),
    "scaled JSD": partial(generalised_jsd, beta=0.3, scaled=True),
    "total variation": total_variation,
    "negative log acceptance": negative_log_acceptance,
}
DECLARED = {  # as their file has them
    name: function
    for name, function in vars(objectives.divergences).items()
    if inspect.isfunction(function) and "teacher_logits" in inspect.signature(function).parameters and not name.startswith("_")
    and function.__module__ == objectives.divergences.__name__
}  # fmt: skip
DIVERGENCES |= {
    name: function
    for name, function in DECLARED.items()
    if name != "generalised_jsd" and function not in DIVERGENCES.values()
}
LOSSES = {name: without_labels(divergence) for name, divergence in DIVERGENCES.items()} | {
    "cross-entropy": lambda z, t, y, **how: cross_entropy(z, y, **how),
    "soft targets": without_labels(soft_targets),
    "hard and soft": partial(distillation_loss, hard_weight=0.3),
    "decoupled": decoupled_kd,
}
MEANS = LOSSES | {  # everything that is a mean over positions; hidden states are given in place of logits
    "logit MSE": without_labels(logit_mse),
    "hidden MSE": without_labels(hidden_mse),
    "hidden cosine": without_labels(hidden_cosine),
}
MASKED = MEANS | {"DIST": without_labels(dist_loss)}

each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
each_mean = pytest.mark.parametrize("loss", MEANS.values(), ids=MEANS)
each_masked = pytest.mark.parametrize("loss", MASKED.values(), ids=MASKED)


# Losses


def has_the_factor(loss):
    """Whether the gradient is T times that of the softened logits: without T², it would be 1/T of it."""
    z, t, y = pair(5, 4)

    def fits(T):
        return near(gradient(loss, z, t, y, temperature=T), T * gradient(loss, z / T, t / T, y, temperature=1.0))

    return fits(2.0) and fits(8.0)


def seeded(loss):
    def call(*arguments, **options):
        torch.manual_seed(0)
        return loss(*arguments, **options)

    return call


def as_function(term):
    return seeded(
        lambda z, t, y, temperature: term(temperature=temperature)(student_logits=z, teacher_logits=t, labels=y)
    )


@pytest.mark.parametrize(
    "loss",
    [
        without_labels(soft_targets),
        partial(distillation_loss, soft_weight=1),
        partial(decoupled_kd),
        without_labels(dist_loss),
        *(as_function(term) for term in (SoftTargets, PermutedSoftTargets, DecoupledKD, DIST)),
    ],
    ids=["soft targets", "hard and soft", "decoupled", "DIST", "SoftTargets", "Permuted", "DecoupledKD", "DIST()"],
)  # fmt: skip
def test_temperature_squared(loss):
    """T² is left out, or applied only when another option is set."""
    assert has_the_factor(loss)
    assert not has_the_factor(without_labels(forward_kl))


def test_temperature_squared_in_closed_form():
    """T² is left out, or applied only when another option is set."""
    z, t, y = pair(4, 6)
    for T in (1.0, 2.0, 8.0):
        closed = T * (reference.softmax(z, T) - reference.softmax(t, T)) / len(z)
        assert near(gradient(soft_targets, z, t, temperature=T), closed)
        assert near(gradient(distillation_loss, z, t, y, temperature=T, hard_weight=0.0), closed)
        for how in ({"mask": torch.ones_like(y, dtype=torch.bool)}, {"count": 4}, {"reduction": "sum"}):
            scale = 4 if "reduction" in how else 1
            assert near(gradient(soft_targets, z, t, temperature=T, **how), scale * closed)
        two = T * (reference.softmax(z[:, :2], T) - reference.softmax(t[:, :2], T)) / len(z)
        assert near(gradient(decoupled_kd, z[:, :2], t[:, :2], y % 2, temperature=T), two)


@each_divergence
def test_no_temperature_squared_where_none_is_said(divergence):
    """T² slips into a divergence that is said to be without."""

    def has_no_factor(loss):
        z, t, _ = pair(4, 6)
        return near(gradient(loss, z, t, temperature=4.0), gradient(loss, z / 4, t / 4, temperature=1.0) / 4.0)

    assert has_no_factor(divergence)
    assert not has_no_factor(soft_targets)


@each_loss
def test_mean_over_classes(loss):
    """The mean divides by the number of classes too where the mean over examples was meant."""

    def ignores_empty_classes(loss):
        z, t, y = pair(4, 6)
        more = [torch.cat([x, x.new_full((4, 6), -1e4)], -1) for x in (z, t)]
        return near(loss(*more, y), loss(z, t, y))

    assert ignores_empty_classes(loss)
    assert not ignores_empty_classes(
        lambda z, t, y: F.kl_div(F.log_softmax(z, -1), F.log_softmax(t, -1), log_target=True, reduction="none").mean()
    )


def test_sums_and_means_are_those_of_the_published_weights():
    """A sum over heads, features or pairs stands where a mean was meant, or one form of a loss for another."""
    generator = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 3, 8, generator=generator)
    maps = torch.rand(2, 3, 2, 5, 5, generator=generator)
    assert near(hidden_mse(s.repeat(1, 2), t.repeat(1, 2)), hidden_mse(s, t), rtol=1e-6)
    doubled = attention_map_mse(*maps.repeat_interleave(2, dim=2))
    assert near(doubled, attention_map_mse(*maps), rtol=1e-6)
    assert near(attention_map_mse(*maps), (maps[0] - maps[1]).square().sum((-1, -2)).mean(), rtol=1e-6)
    one, other = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    assert activation_attention(one, other) == 1.0  # the mean of two squares, as released
    assert near(activation_attention(one, other, form="paper"), math.sqrt(2), rtol=1e-6)  # the norm
    points, wider = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [5.0]])
    assert near(rkd_distance(points, wider), 4 * 0.45**2 / 2 / 9, rtol=1e-6)  # nine pairs, the diagonal too
    assert near(similarity_preserving(torch.eye(2), torch.ones(2, 2)), 1 - math.sqrt(0.5), rtol=1e-6)


@each_masked
def test_padding_weighs_nothing(loss):
    """The sum over masked tokens is divided by the count of all tokens, so that padded batches weigh less."""
    z, t, y = pair(3, 5, 6)
    mask = torch.rand(3, 5) < 0.6

    def is_padding_invariant(loss):
        padded = torch.cat([torch.stack([z, t]), 5 * torch.randn(2, 3, 4, 6)], 2)
        return near(loss(*padded, F.pad(y, (0, 4)), mask=F.pad(mask, (0, 4))), loss(z, t, y, mask=mask), rtol=1e-6)

    assert is_padding_invariant(loss)
    assert not is_padding_invariant(lambda z, t, y, mask: forward_kl(z, t, mask=mask, reduction="none").mean())


@pytest.mark.parametrize("normalise", ["none", "queries", "entries"])
def test_padding_weighs_nothing_in_attention(normalise):
    """Padded queries and keys count, so that padded batches weigh less."""
    maps = torch.rand(2, 3, 2, 5, 5)
    mask = torch.tensor([[True] * 5, [True] * 4 + [False], [True] * 2 + [False] * 3])

    def is_padding_invariant(loss):
        padded = [F.pad(x, (0, 3, 0, 3), value=v) for x, v in zip(maps, (7.0, 3.0), strict=True)]
        return near(
            loss(*padded, mask=F.pad(mask, (0, 3)), normalise=normalise),
            loss(*maps, mask=mask, normalise=normalise),
            rtol=1e-6,
        )

    def by_the_term(s, t, mask, normalise):
        layers = {"student_hidden": {"attention:a": s}, "teacher_hidden": {"attention:a": t}}
        return AttentionMaps("a", normalise=normalise)(**layers, hidden_mask=mask)

    assert is_padding_invariant(attention_map_mse) and is_padding_invariant(by_the_term)
    assert not is_padding_invariant(lambda s, t, mask, normalise: attention_map_mse(s, t, normalise=normalise))


@each_mean
def test_gradient_accumulation(loss):
    """Accumulated gradients are normalised by each micro-batch, so that N of one differ from one of N."""
    z, t, y = pair(2, 6, 5)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    whole = gradient(loss, z, t, y, mask=mask)

    def accumulated(loss):
        return torch.stack([gradient(loss, *part) for part in zip(z, t, y, mask, strict=True)])

    assert near(accumulated(lambda z, t, y, m: loss(z, t, y, mask=m, count=mask.sum())), whole)
    assert near(accumulated(lambda z, t, y, m: loss(z, t, y, mask=m, reduction="sum") / mask.sum()), whole)
    assert not near(accumulated(lambda z, t, y, m: loss(z, t, y, mask=m) / 2), whole)


@pytest.mark.parametrize(
    "term",
    [
        CrossEntropy(), SmoothedLabels(), ForwardKL(), ReverseKL(), SkewedForwardKL(), SkewedReverseKL(),
        GeneralisedJSD(), TotalVariation(), NegativeLogAcceptance(), SoftTargets(), SoftTargets(standardised=True),
        LogitMSE(), DecoupledKD(),
        HiddenMSE("h"), HiddenCosine("h"), HiddenMSE("h", projector=Projector("linear", 5, 5)),
    ],
    ids=repr,
)  # fmt: skip
def test_masks_and_counts_reach_every_term(term):
    """A term leaves the mask or the count out, so that its weight depends on the padding."""
    z, t, y = pair(2, 6, 5)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    term = term.double()

    def slopes(rows, count):
        def loss(h):
            return term(
                student_logits=h, teacher_logits=t[rows], labels=y[rows].where(mask[rows], -100), mask=mask[rows],
                count=count, student_hidden={"h": h}, teacher_hidden={"h": t[rows]}, hidden_mask=mask[rows],
                hidden_count=count,
            )  # fmt: skip

        return gradient(loss, z[rows])

    whole = slopes(slice(None), None)
    assert whole[mask].any() and not whole[~mask].any()
    assert near(torch.cat([slopes(slice(i, i + 1), mask.sum()) for i in (0, 1)]), whole)


def test_ranks_divide_by_the_count_of_all(monkeypatch):
    """Each rank divides by its own count, so that tokens weigh more on a rank with more padding."""
    z, t, _ = pair(2, 6, 5)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])

    def averaged(count):  # as DistributedDataParallel averages the gradients of the ranks
        ranks = zip(z, t, mask, strict=True)
        return torch.stack([gradient(soft_targets, z, t, mask=m, count=count(m)) for z, t, m in ranks]) / 2

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.fill_(mask.sum()))
    whole = gradient(soft_targets, z, t, mask=mask)
    assert near(averaged(global_count), whole)
    assert not near(averaged(lambda m: m.sum()), whole)


def test_divergence_not_squared_error_of_probabilities():
    """The mean squared error of probabilities times T² stands in for the divergence."""
    z, t, _ = pair(4, 6)
    limit = reference.logit_matching(z, t).mean()

    def becomes_logit_matching(loss):
        return near(loss(z, t, temperature=1e5), limit, rtol=1e-3)

    assert becomes_logit_matching(soft_targets)
    assert near(logit_mse(z, t, centred=True) / 2, limit)
    assert not becomes_logit_matching(
        lambda z, t, temperature: temperature**2 * F.mse_loss(soften(z, temperature), soften(t, temperature))
    )


@each_mean
def test_divergence_not_cross_entropy(loss):
    """What is called KL is a cross-entropy, or the other way round."""
    z, t, y = pair(4, 6)

    def is_zero_at_equality(loss):
        return near(loss(t, t, y), 0.0) and near(gradient(loss, t, t, y), torch.zeros_like(t))

    has_labels = loss in (LOSSES["cross-entropy"], LOSSES["hard and soft"])
    assert is_zero_at_equality(loss) != has_labels
    assert not is_zero_at_equality(lambda z, t, y: cross_entropy(z, soften(t)))
    assert near(cross_entropy(z, soften(t)), forward_kl(z, t) + entropy(t).mean())
    one_hot = torch.full_like(t, -1e4).scatter(-1, y.unsqueeze(-1), 0.0)
    assert near(cross_entropy(z, y), forward_kl(z, one_hot))


def fidelity(z, t, y):
    return torch.tensor(measure(z, y, t)["kl_to_teacher"])


KNOWN = {  # for a teacher of logits (2, 1, 0), a student of equal ones and label 0; and with the two exchanged; by hand
    "forward KL": (LOSSES["forward KL"], ForwardKL(), 0.2662, 0.3090),
    "reverse KL": (LOSSES["reverse KL"], ReverseKL(), 0.3090, 0.2662),
    "skewed forward KL": (LOSSES["skewed forward KL"], SkewedForwardKL(), 0.2165, 0.2345),
    "skewed reverse KL": (LOSSES["skewed reverse KL"], SkewedReverseKL(), 0.2345, 0.2165),
    "JSD": (LOSSES["JSD"], GeneralisedJSD(beta=0.3), 0.0565, 0.0596),
    "soft targets": (
        partial(LOSSES["soft targets"], temperature=1),
        SoftTargets(temperature=1),
        0.2662,
        0.3090,
    ),
    "decoupled": (partial(decoupled_kd, temperature=1), DecoupledKD(temperature=1), 1.1166, 1.1898),
    "measured": (fidelity, None, 0.2662, 0.3090),
}


@pytest.mark.parametrize(("loss", "term", "value", "exchanged"), KNOWN.values(), ids=KNOWN)
def test_direction(loss, term, value, exchanged):
    """KL(student‖teacher) stands in for KL(teacher‖student)."""
    student, teacher, label = torch.zeros(1, 3), torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])

    def is_in_the_right_direction(loss):
        return round(loss(student, teacher, label).item(), 4) == value

    assert is_in_the_right_direction(loss)
    assert not is_in_the_right_direction(lambda z, t, y: loss(t, z, y))
    assert round(loss(teacher, student, label).item(), 4) == exchanged
    if term is not None:
        assert is_in_the_right_direction(lambda z, t, y: term(student_logits=z, teacher_logits=t, labels=y))


ENDS = {  # a family, and what it is at its two ends
    "JSD": (lambda z, t, beta: generalised_jsd(z, t, beta=beta), None, None),
    "scaled JSD": (lambda z, t, beta: generalised_jsd(z, t, beta=beta, scaled=True), forward_kl, reverse_kl),
    "skewed forward KL": (lambda z, t, skew: skewed_forward_kl(z, t, skew=skew), forward_kl, None),
    "skewed reverse KL": (lambda z, t, skew: skewed_reverse_kl(z, t, skew=skew), reverse_kl, None),
}


@pytest.mark.parametrize(("family", "first", "last"), ENDS.values(), ids=ENDS)
def test_divergences_do_not_jump_at_their_ends(family, first, last):
    """A Jensen–Shannon divergence jumps at β = 0 and β = 1."""
    z, t, _ = pair(4, 6)
    z, t = z / 3, t / 3

    def is_continuous(family):
        gaps = [(abs(family(z, t, e) - family(z, t, 0)), abs(family(z, t, 1 - e) - family(z, t, 1)))
                for e in (1e-2, 1e-4, 1e-6, 1e-8)]  # fmt: skip
        return all(gap < 1e-6 for gap in gaps[-1]) and gaps == sorted(gaps, key=sum, reverse=True)

    def jumping(z, t, beta):
        return {0: forward_kl, 1: reverse_kl}.get(beta, partial(generalised_jsd, beta=beta))(z, t)

    assert is_continuous(family)
    assert near(family(z, t, 0), first(z, t) if first else 0.0)
    assert near(family(z, t, 1), last(z, t) if last else 0.0)
    assert all(family(z, t, beta) > 0 for beta in np.linspace(0.05, 0.95, 19))
    assert not is_continuous(jumping)


def oracle(name, z, t, y, T):
    """A loss by its textbook formula in float64, on log-probabilities."""

    def others(logits):
        log = reference.log_softmax(logits, T)
        rest = log[np.arange(log.shape[-1]) != y[:, None]].reshape(len(log), -1)
        total = np.logaddexp.reduce(rest, -1, keepdims=True)
        return np.concatenate([np.take_along_axis(log, y[:, None], -1), total], -1), rest - total

    def hard(T):
        return -np.take_along_axis(reference.log_softmax(z, T), y[:, None], -1)[:, 0]

    (p_true, p_other), (q_true, q_other) = others(t), others(z)
    values = {
        "forward KL": reference.forward_kl(z, t, T),
        "reverse KL": reference.reverse_kl(z, t, T),
        "skewed forward KL": reference.skewed_forward_kl(z, t, T),
        "skewed reverse KL": reference.skewed_reverse_kl(z, t, T),
        "JSD": reference.jensen_shannon(z, t, T, beta=0.3),
        "scaled JSD": reference.jensen_shannon(z, t, T, beta=0.3) / 0.21,
        "total variation": reference.total_variation(z, t, T),
        "negative log acceptance": reference.negative_log_acceptance(z, t, T),
        "cross-entropy": hard(T),
        "soft targets": T**2 * reference.forward_kl(z, t, T),
        "hard and soft": 0.3 * hard(1.0) + 0.7 * T**2 * reference.forward_kl(z, t, T),
        "decoupled": T**2 * (reference.kl(p_true, q_true) + 8 * reference.kl(p_other, q_other)),
    }
    return values[name] if name in values else getattr(reference, name)(z, t, T)


def survives_extremes(name, loss):
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 1e2, 1e4):
        logits = size * (2 * torch.rand(2, 6, 5, generator=generator) - 1)
        logits[:, 0] = size * torch.tensor([1.0, -1.0, 0.0, 0.5, -0.5])  # one example where both agree
        y = torch.tensor([0, 1, 2, 3, 4, 0])
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            z, t = logits.to(dtype)
            for T in (0.05, 1.0, 4.0):
                try:
                    value = loss(z, t, y, temperature=T, reduction="none")
                except ValueError:  # it is infinite, and refused
                    return False
                exact = oracle(name, z.double().numpy(), t.double().numpy(), y.numpy(), T)
                close = near(value, exact, rtol=1e-4, atol=1e-5 * max(1, T**2))
                if not close or value.dtype != torch.float32:
                    return False
    return True


@pytest.mark.parametrize("name", LOSSES)
def test_log_of_softmax(name):
    """log(softmax(x)) stands in for log_softmax, or the softmax is taken in half precision."""

    def textbook(z, t, y, temperature, reduction):
        p, q = ((x.float() / temperature).softmax(-1) for x in (t, z))
        return (p * (p / q).log()).sum(-1)

    assert survives_extremes(name, LOSSES[name])
    assert not survives_extremes("forward KL", textbook)


def test_masks_of_minus_a_thousand():
    """A class is masked by adding −1000 to its logit: at extreme logits or low temperature it comes through."""

    def by_a_thousand(z, t, y, temperature, reduction):
        true = F.one_hot(y, z.shape[-1])
        p, q = (torch.log_softmax(x.float() / temperature, -1) for x in (t, z))
        both = [torch.stack([(x.exp() * m).sum(-1) for m in (true, 1 - true)], -1).log() for x in (p, q)]
        rest = [torch.log_softmax(x.float() / temperature - 1000.0 * true, -1) for x in (t, z)]
        losses = [(a.exp() * (a - b)).sum(-1) for a, b in (both, rest)]
        return temperature**2 * (losses[0] + 8 * losses[1])

    assert survives_extremes("decoupled", decoupled_kd)
    assert not survives_extremes("decoupled", by_a_thousand)

    ahead = torch.tensor([[-1e3], [0.0], [1e3]]).expand(1, 1, 3, 1)  # whoever comes later looks far better
    for mask in ({"causal": True}, {"mask": torch.ones(3, 3, dtype=torch.bool).tril()}):
        maps = attention_from_qk(torch.full((1, 1, 3, 1), 10.0), ahead, scale=1.0, **mask)
        assert torch.equal(maps[0, 0], torch.eye(3))

    z = torch.randn(3, 8) - 1e4
    kept = restrict_vocabulary(z, torch.tensor([0, 3]), rest=True)
    assert near(soften(kept)[:, -1], 1 - soften(z)[:, [0, 3]].sum(-1), rtol=1e-3)

    s, t = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    far = torch.tensor([[0.0, -1.0]])  # and the other example of the class would be nearest of all
    alike = info_nce(s, t, labels=torch.tensor([1, 1]), temperature=1e-4, negatives=far)
    alone = [info_nce(s[i : i + 1], t[i : i + 1], temperature=1e-4, negatives=far) for i in (0, 1)]
    assert near(alike, sum(alone) / 2)


# Sequences


def aligned_losses(z, t, y):
    """The loss at each position, of logits and labels as a language model gives them."""
    return distillation_loss(**next_token(z, t, y), hard_weight=0.5, reduction="none")


def test_labels_in_step_with_logits():
    """Labels are shifted by one against the logits."""

    def each_label_is_that_of_the_next_token(losses):
        z, t, y = pair(2, 6, 5)
        before = losses(z, t, y)

        def changed_by(z, t, y):
            return (losses(z, t, y) != before).any(0).nonzero().flatten().tolist()

        for position in range(6):
            z2, t2, y2 = z.clone(), t.clone(), y.clone()
            z2[:, position], t2[:, position] = z[:, position].flip(-1), t[:, position].flip(-1)
            y2[:, position] = (y[:, position] + 1) % 5
            predicts = [position] if position < 5 else []
            predicted = [position - 1] if position > 0 else []
            found = changed_by(z2, t, y), changed_by(z, t2, y), changed_by(z, t, y2)
            if before.shape != (2, 5) or found != (predicts, predicts, predicted):
                return False
        return True

    def unshifted(z, t, y):
        return distillation_loss(z, t, y, hard_weight=0.5, reduction="none")[:, 1:]

    def shifted_twice(z, t, y):
        return aligned_losses(z, t, y.roll(-1, 1))

    assert each_label_is_that_of_the_next_token(aligned_losses)
    assert not each_label_is_that_of_the_next_token(unshifted)
    assert not each_label_is_that_of_the_next_token(shifted_twice)


@pytest.mark.parametrize("ignored", [-100, 3])
def test_ignored_tokens_weigh_nothing(ignored):
    """The number of ignored labels is not used, or only by one of the losses."""
    z, t, y = pair(2, 6, 5)
    y[0, 4:], y[1, 2], y[1, 5] = ignored, ignored, 1
    counted = y[:, 1:] != ignored

    def ignores(mask):
        seen = next_token(z, t, y, ignore_index=ignored)
        teacher, mask = seen["teacher_logits"], seen["mask"] if mask is None else mask
        slope = gradient(lambda z: soft_targets(z, teacher, mask=mask), seen["student_logits"])
        return torch.equal(slope.any(-1), counted)

    def both(z):
        return distillation_loss(**next_token(z, t, y, ignore_index=ignored), hard_weight=0.5)

    assert ignores(None)
    assert not ignores(torch.ones_like(counted))
    slope = gradient(both, z)
    assert torch.equal(slope[:, :-1].any(-1), counted) and not slope[:, -1].any()


def test_end_of_sequence_is_learned_though_it_is_also_the_padding():
    """The end of a sequence is masked because padding has its number: the student never learns to stop."""
    pad = end = 0
    z, t, _ = pair(1, 6, 4)
    y = torch.tensor([[1, 2, 3, end, -100, -100]])  # padding is marked; the end is a label like others

    def learns_to_stop(mask):
        def loss(z):
            seen = next_token(z, t, y)
            return distillation_loss(**seen | ({} if mask is None else {"mask": mask}), hard_weight=0.5)

        slope = gradient(loss, z)
        return bool(slope[0, 2].any()) and not slope[0, 3:].any()

    assert learns_to_stop(None)
    by_value = torch.tensor([[1, 2, 3, end, pad, pad]])[:, 1:] != pad
    assert not learns_to_stop(by_value)


def test_top_k_teacher():
    """The top k of the teacher are renormalised and called KL: it can be negative, or is biased."""
    z, t, _ = pair(64, 12)
    tokens = t.topk(4).indices
    kept = soften(t).gather(-1, tokens)
    renormalised = kept / kept.sum(-1, keepdim=True)
    surer = t.scatter_add(-1, tokens, torch.full_like(kept, 0.5))  # a student with more on the kept tokens

    def restricted(z, t, rest=True):
        return forward_kl(*(restrict_vocabulary(x, tokens, rest=rest) for x in (z, t)), reduction="none")

    def cut(z, t):
        return (kept * (kept.log() - log_soften(z).gather(-1, tokens))).sum(-1)

    def against_the_whole(z, t):
        return (renormalised * (renormalised.log() - log_soften(z).gather(-1, tokens))).sum(-1)

    def slope(loss, z):
        return gradient(lambda z: loss(z, t).sum(), z).gather(-1, tokens)

    def is_a_divergence(loss):
        return bool((loss(z, t) >= 0).all() and (loss(surer, t) >= 0).all()) and near(loss(t, t), torch.zeros(64))

    def is_unbiased(loss):
        """Whether the kept tokens are pulled as by the whole vocabulary, by q − p, and not at all at equality."""
        expected = (soften(z) - soften(t)).gather(-1, tokens)
        return near(slope(loss, z), expected) and near(slope(loss, t), torch.zeros_like(kept))

    assert is_a_divergence(restricted) and is_unbiased(restricted)
    assert bool((restricted(z, t) <= forward_kl(z, t, reduction="none") + 1e-12).all())
    given_the_kept = partial(restricted, rest=False)  # a divergence, but blind to what the student puts elsewhere
    assert is_a_divergence(given_the_kept) and not is_unbiased(given_the_kept)
    assert near(slope(given_the_kept, z).sum(-1), torch.zeros(64))
    assert not is_a_divergence(cut)  # negative
    assert not is_a_divergence(against_the_whole)  # more than zero at equality, where it pulls the kept tokens up:
    assert bool((slope(against_the_whole, t) < 0).all())


def test_vocabularies_of_different_size():
    """Vocabularies of different size are padded with zeros, which are not impossible but likely."""
    z, t, y = pair(4, 6)
    sentence = "must share one set of classes, but the student has 6 and the teacher 5"
    for name in LOSSES.keys() - {"cross-entropy"}:
        with pytest.raises(ValueError, match=sentence):
            LOSSES[name](z, t[:, :5], y % 5)
    narrow = forward_kl(z[:, :5], t[:, :5])
    impossible, zeros = (forward_kl(*(F.pad(x[:, :5], (0, 1), value=v) for x in (z, t))) for v in (-1e4, 0.0))
    assert near(impossible, narrow) and not near(zeros, narrow)
    padded = restrict_vocabulary(F.pad(t[:, :5], (0, 3)), torch.arange(5))
    assert near(forward_kl(z[:, :5], padded), narrow)
    order = torch.tensor([3, 0, 4, 1, 2])  # the same tokens, by the numbers of another vocabulary
    assert near(forward_kl(restrict_vocabulary(z[:, :5], order), t[:, order]), narrow)


# Language models


def words(seed=0):
    torch.manual_seed(seed)
    model = GPT(7, width=8, layers=1, heads=1, context=6).double()
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    return model


def sequences(blocks=8):
    row = torch.randint(7, (blocks * 6 + 1,), generator=torch.Generator().manual_seed(0))
    return Tokens(row.to(torch.int16), 6, torch.ones(7, dtype=torch.long))


def test_micro_batches_of_texts_of_uneven_length(monkeypatch):
    """The training loop divides each micro-batch by its own number of tokens, so that short texts weigh more."""
    inputs, labels, _ = next(sequences().batches(8))
    uneven = Examples(inputs, labels.masked_fill(torch.arange(6) > torch.arange(8)[:, None] % 5, -100))

    def trained(parts):
        student = words()
        recipe = replace(QUICK, epochs=1, batch_size=8, micro_batches=parts, augment=False)
        fit(student, CrossEntropy() + ForwardKL(), train=uneven, teacher=words(1), recipe=recipe)
        return student.embedding.weight.detach()

    assert near(trained(4), trained(1))
    halves = [(slice(i, i + 2), {"count": 4 * (uneven.labels[i : i + 2] >= 0).sum()}) for i in range(0, 8, 2)]
    whole = trained(1)
    monkeypatch.setattr("kdlab.training.step.micro_batches", lambda n, labels, inputs: halves)
    assert not near(trained(4), whole)


def test_nothing_is_learned_of_the_prompt(monkeypatch):
    """The labels of the prompt are learned too, in distillation on the student's own text."""
    inputs, labels, _ = next(sequences().batches(8))

    def slope():
        own, targets = OwnText(4)(words(), inputs, labels, 0.5, torch.Generator().manual_seed(0))
        z = words()(own).detach()
        objective = CrossEntropy() + ReverseKL()
        how = {"teacher_logits": words(1)(own), "labels": targets, "mask": targets != -100}
        return gradient(lambda z: objective(student_logits=z, **how)[0], z)

    def leaves_the_prompt_out(found):
        return not found[:, :3].any() and bool(found[:, 3:].any())  # the fourth is followed by what it wrote

    assert leaves_the_prompt_out(slope())
    monkeypatch.setattr(text, "after_prompt", lambda text, prompt: (text[:, :-1], text[:, 1:]))
    assert not leaves_the_prompt_out(slope())


def test_a_cache_knows_whose_it_is(tmp_path):
    """The cache of another teacher, or of another text, is used without a word."""
    write_cache(tmp_path / "cache", words(1), sequences(), entries=2)
    assert TeacherCache(tmp_path / "cache", sequences(), words(1)).header["entries"] == 2
    with pytest.raises(CacheError, match="another teacher"):
        TeacherCache(tmp_path / "cache", sequences(), words(2))
    with pytest.raises(CacheError, match="another text"):
        TeacherCache(tmp_path / "cache", sequences()[:7], words(1))


def test_what_is_drawn_of_a_teacher_is_unbiased():
    """The largest entries, scaled to sum to one, are taken for the teacher: what is rare is never learned."""
    p = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).expand(5000, 4)

    def is_right_on_average(kind):
        kept = caches.keep(p, kind, 2, torch.Generator().manual_seed(0))
        return bool(((kept.dense().mean(0) - p[0]).abs() < 0.02).all())

    assert is_right_on_average("sampled")
    assert not is_right_on_average("top-k") and not is_right_on_average("top-k-rest")


def test_losses_from_hidden_states_are_those_of_the_logits():
    """Where logits are never all there, the softcap is forgotten, or the temperature."""
    z, t, y = pair(6, 5)
    weight = torch.randn(9, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = y.clamp(max=4)

    def agree(T, softcap, spoilt=lambda head: head):
        student, teacher = (HeadLogits(h, weight, softcap=softcap) for h in (z, t))
        objective = CrossEntropy() + SoftTargets(temperature=T) + GeneralisedJSD(temperature=T)
        found, expected = (
            objective(student_logits=a, teacher_logits=b, labels=y)[0]
            for a, b in ((spoilt(student), teacher), (student.dense(), teacher.dense()))
        )
        return near(found, expected)

    for T in (1.0, 3.0):
        for softcap in (None, 4.0):
            assert agree(T, softcap)
    assert not agree(3.0, 4.0, lambda head: replace(head, softcap=None))
    assert not agree(3.0, 4.0, lambda head: replace(head, hidden=head.hidden / 3))


@torch.no_grad()
def test_what_was_rewound_is_not_attended_to():
    """Keys and values that stand behind the end of a shorter prompt are attended to."""
    model, inputs = words(), next(sequences().batches(2))[0]
    lengths, more = torch.tensor([2, 4]), torch.tensor([[1], [3]])

    def follows_the_prompts(attend_to):
        cache = model.cache(2)
        model(inputs, cache)
        cache.rewind(attend_to)
        found = model(more, cache)[:, 0]
        alone = [model(torch.cat([row[:n], m])[None])[0, -1] for row, n, m in zip(inputs, lengths, more, strict=True)]
        return near(found, torch.stack(alone))

    assert follows_the_prompts(lengths)
    assert not follows_the_prompts(torch.tensor([4, 5]))


# Models


class Attends(nn.Module):
    """An attention that calls PyTorch's fused one."""

    def __init__(self, key_heads=4, **options):
        super().__init__()
        self.key_heads, self.options = key_heads, options

    def forward(self, x):
        q, k, v = x, x[:, : self.key_heads].flip(-1), x[:, : self.key_heads].roll(1, -2)
        return F.scaled_dot_product_attention(q, k, v, **self.options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.9},
        {"attn_mask": torch.ones(5, 5).tril(1).bool()},
        {"attn_mask": 3 * torch.randn(5, 5, generator=torch.Generator().manual_seed(0))},
        {"key_heads": 2, "enable_gqa": True},
        {"key_heads": 2, "enable_gqa": True, "is_causal": True, "scale": 0.5},
    ],
    ids=["plain", "causal", "scale", "boolean mask", "additive mask", "grouped", "together"],
)
def test_fused_path_is_the_reference_path(options, monkeypatch):
    """The fused path differs from the reference path: a mask, a scale or the grouping is ignored."""
    x = torch.randn(2, 4, 5, 3)
    model = nn.Sequential(Attends(**options))

    def agrees():
        with Taps(model, ["attention:0"]) as tapped:
            output, captured = tapped(x)
        groups = 4 // options.get("key_heads", 4)
        v = x[:, : options.get("key_heads", 4)].roll(1, -2).repeat_interleave(groups, 1)
        assert torch.equal(output, model(x))
        return near(captured["attention:0"] @ v, output, rtol=1e-5, atol=1e-6)

    assert agrees()
    monkeypatch.setattr(taps, "attention_from_qk", lambda q, k, **_: attention_from_qk(2 * q, k))
    assert not agrees()


def step(seed=0):
    """What a training step shows to the terms: logits, labels, layers of both models, as leaves that want gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    def layers():
        maps = torch.randn(8, 2, 5, 5, generator=generator).softmax(-1).requires_grad_()
        return {"map": draw(8, 6, 4, 4), "embedding": draw(8, 6), "attention:block": maps}

    return {
        "student_logits": draw(8, 5), "teacher_logits": draw(8, 5), "student_hidden": layers(),
        "teacher_hidden": layers(), "labels": torch.arange(8) % 5, "index": torch.arange(8), "progress": 0.5,
    }  # fmt: skip


def every_term():
    """One of each term, with its defaults wherever it has any."""
    torch.manual_seed(0)
    return {
        **{term.__name__: term() for term in (
            CrossEntropy, SmoothedLabels, ForwardKL, ReverseKL, SkewedForwardKL, SkewedReverseKL, GeneralisedJSD,
            TotalVariation, NegativeLogAcceptance, SoftTargets, HardTargets, LogitMSE, DecoupledKD, DIST, PermutedSoftTargets,
            SpreadSoftTargets)},
        **{term.__name__: term("map") for term in (ActivationAttention, HiddenMSE, HiddenCosine)},
        **{term.__name__: term("embedding") for term in (RKDDistance, RKDAngle, SimilarityPreserving, InfoNCE)},
        "AttentionMaps": AttentionMaps("block"),
        "CRD": CRD("embedding", student_width=6, teacher_width=6, examples=32),
    }  # fmt: skip


def declared_terms():
    kinds = [kind for kind in vars(objectives.terms).values() if inspect.isclass(kind)]
    return [kind for kind in kinds if getattr(kind, "function", None) in DECLARED.values()]


def leaves(seen, who):
    return [seen[f"{who}_logits"], *seen[f"{who}_hidden"].values()]


@pytest.mark.parametrize("name", every_term())
def test_distilled_from_itself(name):
    """The student is distilled from itself because the wrong logits or the wrong layers were passed."""

    def learns_from_the_teacher(make):
        seen, other = step(), step()
        for kind in ("logits", "hidden"):
            other[f"teacher_{kind}"] = step(seed=1)[f"teacher_{kind}"]
        torch.manual_seed(0)
        loss = make()(**seen)
        loss.backward()
        torch.manual_seed(0)
        moved = any(leaf.grad is not None and leaf.grad.any() for leaf in leaves(seen, "student"))
        kept = all(leaf.grad is None for leaf in leaves(seen, "teacher"))
        return moved and kept and loss.item() != make()(**other).item()

    class FromItself(SoftTargets):
        def forward(self, *, student_logits, **_):
            return soft_targets(student_logits, student_logits.detach(), temperature=self.temperature)

    class WithoutDetach(SoftTargets):
        def forward(self, *, student_logits, teacher_logits, **_):
            return soft_targets(student_logits, teacher_logits, temperature=self.temperature)

    term = every_term()[name]
    assert learns_from_the_teacher(lambda: every_term()[name]) == term.needs_teacher
    assert term.needs_teacher == (name not in ("CrossEntropy", "SmoothedLabels"))
    assert not learns_from_the_teacher(FromItself) and not learns_from_the_teacher(WithoutDetach)


def test_positive_is_among_the_candidates():
    """The positive is not in the denominator of InfoNCE: the loss can be negative, and bounds nothing."""
    same = torch.eye(4)
    memory = ContrastiveMemory(4, 4, 32, width=4, negatives=16, loss="info_nce")
    memory.teacher_map.load_state_dict(memory.student_map.state_dict())
    labels = index = torch.arange(4)
    with torch.no_grad():
        for bank in (memory.student_bank, memory.teacher_bank):
            bank.entries[:4] = F.normalize(memory.student_map(same))

    def is_a_bound(loss):
        return bool(loss >= 0)

    assert is_a_bound(info_nce(same, same, temperature=0.5))
    assert near(info_nce(same, same, temperature=0.5), math.log(1 + 3 * math.exp(-2.0)), rtol=1e-6)
    assert is_a_bound(info_nce(same, same, temperature=0.5, negatives=torch.randn(3, 4)))
    assert is_a_bound(memory(same, same, labels, index))
    scores = same @ same.T / 0.5
    without = scores.masked_fill(torch.eye(4, dtype=torch.bool), -torch.inf).logsumexp(1) - scores.diagonal()
    assert not is_a_bound(without.mean())


def test_memory_is_keyed_by_example():
    """A memory bank is keyed by the position in the batch, while the data are shuffled."""
    embeddings, labels = torch.randn(32, 4), torch.randint(5, (32,))

    def after_an_epoch(order, key):
        torch.manual_seed(0)
        bank = MemoryBank(32, 4)
        for index in order.split(8):
            bank.update(key(index), embeddings[index], labels[index])
        return torch.cat([bank.entries, bank.labels.unsqueeze(1)], 1)

    def does_not_see_the_order(key):
        return near(after_an_epoch(torch.arange(32), key), after_an_epoch(torch.randperm(32), key))

    assert does_not_see_the_order(lambda index: index)
    assert not does_not_see_the_order(lambda index: torch.arange(len(index)))


# Temperatures and weights that change


def learned(maximum=21.0, theta=0.0, strength=1.0):
    temperature = LearnedTemperature(1.0, maximum, strength).double()
    nn.init.constant_(temperature.theta, theta)
    return temperature


@pytest.mark.parametrize("theta", [-2.0, 0.0, 3.0])
def test_curriculum_temperature_ascends(theta):
    """The gradient of a curriculum temperature has the wrong sign, so that it makes the task easy."""
    z, t, _ = pair(4, 6)
    theta = torch.tensor(theta, dtype=torch.float64)

    def plain(theta):  # the same temperature, without the reversed gradient
        return 1.0 + 20.0 * torch.sigmoid(theta)

    def loss_at(theta):
        return soft_targets(z, t, temperature=plain(theta))

    def slope_of(temperature, progress=0.5):
        soft_targets(z, t, temperature=temperature(progress)).backward()
        return temperature.theta.grad

    def makes_it_harder(slope):  # a step of descent along what the optimiser is given
        return bool(loss_at(theta - 1e-2 * slope.sign()) > loss_at(theta))

    slope = gradient(loss_at, theta)
    assert makes_it_harder(slope_of(learned(theta=theta)))
    assert not makes_it_harder(slope)
    for strength, progress, factor in ((0.3, 0.5, 0.3), (Linear(0, 1), 0.25, 0.25), (Linear(0, 1), 0.0, 0.0)):
        assert near(slope_of(learned(theta=theta, strength=strength), progress), -factor * slope)


def test_curriculum_temperature_stays_in_its_range():
    """A curriculum temperature leaves its range, or collapses to its floor unseen."""
    z, t, _ = pair(8, 6)

    def stays(temperature):
        optimiser = torch.optim.SGD(temperature.parameters(), lr=100.0)
        for _ in range(50):
            optimiser.zero_grad()
            soft_targets(z, t, temperature=temperature(0.5)).backward()
            optimiser.step()
            if not 1.0 <= temperature(0.5) <= 3.0:
                return False
        return True

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.T = nn.Parameter(torch.tensor(2.0))

        def forward(self, progress):
            return 2 * self.T.detach() - self.T  # which ascends too

    assert stays(learned(maximum=3.0)) and not stays(Bare())
    for theta, end in ((-1e4, 1.0), (1e4, 3.0)):
        assert learned(maximum=3.0, theta=theta)(0.5) == end
    _, values = (1.0 * SoftTargets(temperature=learned(maximum=3.0, theta=-1e4)))(**step())
    assert values["SoftTargets.temperature"] == 1.0  # a collapse is seen in the log


SCHEDULES = {  # and what each is, by hand, when x of the training is done
    "constant": (Constant(3.0), lambda x: 3.0),
    "linear": (Linear(8, 2), lambda x: 8 - 6 * x),
    "until": (Linear(8, 2, until=0.5), lambda x: max(8 - 12 * x, 2)),
    "cosine": (Cosine(8, 2), lambda x: 5 + 3 * math.cos(math.pi * x)),
    "step": (Step(8.0, {0.5: 4.0, 0.75: 2.0}), lambda x: 8 if x < 0.5 else 4 if x < 0.75 else 2),
    "times": (2 * Linear(4, 1), lambda x: 8 - 6 * x),
}
each_schedule = pytest.mark.parametrize(("schedule", "closed"), SCHEDULES.values(), ids=SCHEDULES)


class One(Term):
    """A term that is always one, so that the loss is its weight."""

    needs_teacher = False

    def forward(self, *, student_logits, **_):
        return 1.0 + 0.0 * student_logits.sum()


@each_schedule
def test_schedules_of_weights_and_temperatures_fire(schedule, closed, digits, linear, monkeypatch):
    """The schedule of a weight or a temperature has a typo and never fires."""
    recipe = replace(QUICK, epochs=4, learning_rate=1e-30, augment=False)
    expected = [np.mean([closed((epoch + step / 3) / 4) for step in range(3)]) for epoch in range(4)]

    def fires():
        objective = schedule * One() + 1e-30 * SoftTargets(temperature=schedule)
        history = fit(linear(), objective, train=digits.train, recipe=recipe, teacher=linear(1))
        logged = ([entry.get(name, math.nan) for entry in history] for name in ("loss", "SoftTargets.temperature"))
        return all(near(values, expected, rtol=1e-5) for values in logged)

    assert fires()
    if not isinstance(schedule, Constant):
        monkeypatch.setattr(terms, "at", lambda value, progress: value(0.0) if callable(value) else value)
        assert not fires()


@pytest.mark.parametrize(
    "term",
    [
        ForwardKL, ReverseKL, SkewedForwardKL, SkewedReverseKL, GeneralisedJSD, TotalVariation, NegativeLogAcceptance,
        SoftTargets, PermutedSoftTargets, SpreadSoftTargets, DecoupledKD, DIST,
    ],
)  # fmt: skip
@each_schedule
def test_schedules_of_temperatures_reach_every_term(term, schedule, closed):
    """A term takes a schedule for its temperature, and stays at the first value."""
    term = seeded(term(temperature=schedule)), seeded(term(temperature=closed(0.6)))
    seen = step() | {"progress": 0.6}
    assert near(term[0](**seen), term[1](**seen).detach(), rtol=1e-6)


# The loop


class Watching(Term):
    """Keeps what the loop shows to an objective."""

    student_layers = teacher_layers = ("model.1", "input:model.4")  # of what Noting holds
    extra_repr = "".format

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, **seen):
        self.seen.append(seen)
        return seen["student_logits"].square().mean()


class Noting(nn.Module):
    """A model that keeps its inputs and its mode at each call."""

    def __init__(self, model):
        super().__init__()
        self.model, self.inputs, self.modes = model, [], []

    def forward(self, inputs):
        self.inputs.append(inputs.clone())
        self.modes.append(self.training)
        return self.model(inputs)


def network(width, seed):
    """The smallest network that has maps ("1"), batch normalisation and an embedding ("input:4")."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.AvgPool2d(8), nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(16 * width, 10)
    )  # fmt: skip


def everything_learned(seed=0):
    """An objective with all that can be learned or remembered: projectors, a temperature, memory banks, random numbers."""
    torch.manual_seed(seed)
    return (
        0.2 * CrossEntropy()
        + 0.5 * PermutedSoftTargets(temperature=LearnedTemperature(1, 8))
        + 0.1 * HiddenMSE("1", projector=Projector("conv", 4, 6))
        + 0.1 * HiddenCosine("1", projector=Projector("orthogonal", 4, 6))
        + 0.1 * InfoNCE("input:4", projector=Projector("mlp", 64, 96))
        + 0.1 * CRD("input:4", student_width=64, teacher_width=96, examples=96, width=4, negatives=16)
    )


def test_student_and_teacher_are_their_own(digits):
    """The loop passes one model's logits or layers for the other's."""
    student, teacher, watching = Noting(network(4, 0)), Noting(network(6, 1)), Watching()
    tiny = replace(QUICK, epochs=1, learning_rate=1e-30)
    fit(student, watching, train=digits.train, recipe=tiny, teacher=teacher.eval())
    assert len(watching.seen) == 3
    for seen, inputs in zip(watching.seen, student.inputs, strict=True):
        for who, model in (("student", student.model), ("teacher", teacher.model)):
            shown = [seen[f"{who}_logits"], *seen[f"{who}_hidden"].values()]
            layers = model[:2](inputs), model[:4](inputs)
            assert all(map(near, shown, (model(inputs), *layers)))
            assert all(tensor.requires_grad == (who == "student") for tensor in shown)


def test_teacher_sees_what_the_student_sees(digits, linear):
    """Teacher outputs are kept by position while the data are shuffled and augmented."""
    student, teacher = Noting(linear(0)), Noting(linear(1))
    fit(student, SoftTargets(), train=digits.train, recipe=replace(QUICK, epochs=2), teacher=teacher)
    assert all(torch.equal(a, b) for a, b in zip(student.inputs, teacher.inputs, strict=True))
    assert not torch.equal(student.inputs[0], student.inputs[3])  # each epoch is shuffled and augmented anew


def test_memory_knows_the_examples_of_a_shuffled_epoch(digits):
    """A memory bank is keyed by the position in the batch, while the data are shuffled."""

    def knows_every_example(memory):
        options = {"recipe": replace(QUICK, epochs=1), "teacher": network(6, 1)}
        fit(network(4, 0), memory, train=digits.train, **options)
        banks = memory.memory.student_bank, memory.memory.teacher_bank
        return all(torch.equal(bank.labels, digits.train.labels) for bank in banks)

    class ByPosition(CRD):
        def forward(self, *, index, **seen):
            return super().forward(index=torch.arange(len(index)), **seen)

    widths = {"student_width": 64, "teacher_width": 96, "examples": 96}
    assert knows_every_example(CRD("input:4", **widths))
    assert not knows_every_example(ByPosition("input:4", **widths))


def teacher_is_untouched(digits, teacher):
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    modes = [module.training for module in teacher.modules()]
    fit(
        network(4, 0),
        everything_learned(),
        train=digits.train,
        recipe=replace(QUICK, epochs=1),
        teacher=teacher,
    )
    return (
        all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
        and [module.training for module in teacher.modules()] == modes
        and all(p.grad is None and p.requires_grad for p in teacher.parameters())
        and not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())
    )


def test_teacher_is_left_as_it_was(digits, monkeypatch):
    """The teacher is in training mode, is updated, keeps gradients, or keeps the hooks of those who looked into it."""
    teacher = network(6, 1).train()
    teacher[2].eval()  # a layer that was frozen stays frozen
    assert teacher_is_untouched(digits, teacher)
    teacher = network(6, 1).train()
    assert teacher_is_untouched(digits, teacher)
    monkeypatch.setattr(teacher, "eval", lambda: teacher)
    assert not teacher_is_untouched(digits, teacher)


def test_student_left_in_evaluation_mode(digits, linear, monkeypatch):
    """The student is left in evaluation mode after the first evaluation."""

    def trains_in_training_mode():
        student = Noting(linear(0)).eval()
        fit(student, CrossEntropy(), train=digits.train, recipe=QUICK, validation=digits.validation)
        modes = [(mode, len(inputs)) for mode, inputs in zip(student.modes, student.inputs, strict=True)]
        return modes == 3 * [(True, 32), (True, 32), (True, 32), (False, 48)]

    assert trains_in_training_mode()

    def forgetful(model):
        model.eval()
        model.train = lambda mode=True: model
        return nullcontext(model)

    monkeypatch.setattr(measures, "evaluation_mode", forgetful)
    assert not trains_in_training_mode()


def test_what_the_objective_learns_is_learned(digits):
    """Projectors and a learned temperature are not given to the optimiser, or memories stay as they were drawn."""

    def everything_moves(objective):
        before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
        recipe = replace(QUICK, epochs=1, weight_decay=0)
        fit(network(4, 0), objective.eval(), train=digits.train, recipe=recipe, teacher=network(6, 1))
        after = objective.state_dict()
        fixed = [name for name in before if torch.equal(before[name], after[name])]
        return all(name.endswith("weight.0.base") for name in fixed)  # the orthogonal map's origin

    assert everything_moves(everything_learned())
    frozen = 1.0 * HiddenMSE("1", projector=Projector("linear", 4, 6))
    frozen.parameters = lambda recurse=True: iter(())
    assert not everything_moves(frozen)


def resumes_bit_for_bit(digits, folder, optimizer):
    def options(seed):
        return {"objective": everything_learned(seed), "train": digits.train[:64], "teacher": network(6, 1)}

    def everything(student, given):
        return [*student.state_dict().values(), *given["objective"].state_dict().values()]

    recipe = replace(QUICK, epochs=2, optimizer=optimizer, learning_rate=1e-3)
    whole, given = network(4, 0), options(0)
    torch.manual_seed(11)
    history = fit(whole, recipe=recipe, **given)
    expected = everything(whole, given)

    class Killed(Exception):
        pass

    def kill(entry):
        raise Killed

    first, given = network(4, 0), options(0)
    torch.manual_seed(11)
    with pytest.raises(Killed):
        fit(first, recipe=recipe, checkpoint=folder / "run", report=kill, **given)
    second, given = network(4, 5), options(5)
    resumed = fit(second, recipe=recipe, checkpoint=folder / "run", **given)
    same = all(torch.equal(a, b) for a, b in zip(everything(second, given), expected, strict=True))
    return same and [entry["loss"] for entry in resumed] == [entry["loss"] for entry in history]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_everything_is_in_the_checkpoint(digits, tmp_path, optimizer):
    """Projectors, memory banks, random numbers or the data cursor are not in the checkpoint."""
    assert resumes_bit_for_bit(digits, tmp_path, optimizer)


@pytest.mark.parametrize(
    "forgotten",
    [
        "student.1",
        "student.2.running_mean",
        "objective.terms.1.temperature.theta",
        "objective.terms.2.projectors.0.map.0.weight",
        "objective.terms.2.projectors.0.map.1.running_mean",
        "objective.terms.3.projectors",
        "objective.terms.4.projector",
        "objective.terms.5.memory.student_map",
        "objective.terms.5.memory.teacher_map",
        "objective.terms.5.memory.student_bank.entries",
        "objective.terms.5.memory.teacher_bank.entries",
        "objective.terms.5.memory.teacher_bank.labels",
        "objective.terms.5.memory.normalisers",
        "optimizer.",
    ],
)
def test_each_part_of_the_checkpoint_is_needed(digits, tmp_path, forgotten, monkeypatch):
    """One part of the checkpoint is forgotten, and nobody notices."""
    save, found = checkpoint.save_tensors, []

    def forgetful(path, tensors, header, last):
        kept = {}
        for name, tensor in tensors.items():
            if not name.startswith(forgotten):
                kept[name] = tensor
                continue
            found.append(name)
            if not name.startswith("optimizer."):
                kept[name] = torch.zeros_like(tensor)
        save(path, kept, {**header, "checksum": checkpoint.checksum(sorted(kept.items()))}, last)

    monkeypatch.setattr(checkpoint, "save_tensors", forgetful)
    assert not resumes_bit_for_bit(digits, tmp_path, "sgd")
    assert found


def follows_the_schedule(digits, student, recipe, closed):
    """Whether each step moves every weight by the closed form's rate: the loss is the sum of the weights."""
    sums = []

    def sum_of_weights():
        sums.append(sum(p.detach().double().sum().item() for p in student.parameters()))
        return sum(p.sum() for p in student.parameters())

    class SumOfWeights(Term):
        needs_teacher = False

        def forward(self, **_):
            return sum_of_weights()

    fit(student, SumOfWeights(), train=digits.train, recipe=recipe)
    sum_of_weights()
    rates = -np.diff(sums) / sum(p.numel() for p in student.parameters())
    return near(rates, [closed(step / 3) for step in range(12)], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "closed"),
    [
        ({"milestones": (2, 3)}, lambda e: 1.0 if e < 2 else 0.1 if e < 3 else 0.01),
        ({"schedule": "cosine"}, lambda e: (1 + math.cos(math.pi * e / 4)) / 2),
        ({"schedule": "constant", "warmup_epochs": 2}, lambda e: min(e / 2, 1.0)),
    ],
    ids=["step", "cosine", "warm-up"],
)
def test_schedule_of_the_learning_rate_fires(digits, linear, monkeypatch, options, closed):
    """The learning-rate schedule has a typo and never fires."""
    recipe = Recipe(epochs=4, batch_size=32, learning_rate=1.0, momentum=0, weight_decay=0, augment=False, **options)
    assert follows_the_schedule(digits, linear(0), recipe, closed)
    monkeypatch.setattr(Recipe, "learning_rate_at", lambda self, epoch: self.learning_rate)
    assert not follows_the_schedule(digits, linear(0), recipe, closed)


# Models, teachers and data as they come


def ran(call):
    """What a call gives; that it fails is the assertion's matter, not an error of the test."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - whatever it is
        return pytest.fail(repr(error))


def language_model(kind="llama", **adapters):
    """A small model of transformers whose weights are large enough to matter, and adapters that are not zero."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    shape = {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    torch.manual_seed(0)
    if kind == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, max_position_embeddings=16))
    else:
        words = {
            **shape,
            "model_type": "gemma2",
            "head_dim": 4,
            "num_key_value_heads": 1,
            "final_logit_softcapping": 2.0,
        }
        sees = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = transformers.PaliGemmaForConditionalGeneration(
            transformers.PaliGemmaConfig(
                text_config={**words, "max_position_embeddings": 16},
                vision_config={"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14, **sees},
            )
        )
    for p in model.parameters():
        p.data.mul_(20 if p.ndim > 1 else 1)
    return peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, **adapters)) if adapters else model


WORDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def test_a_head_that_is_no_plain_map_is_called():
    """Adapters on the head are passed by: its weight is read, and they neither say nor learn anything."""
    inner = language_model(target_modules=["q_proj", "lm_head"])
    known = inner(input_ids=WORDS).logits
    assert ran(lambda: torch.allclose(CausalLM(inner)(WORDS), known, atol=1e-4))
    with pytest.raises(ValueError, match="no plain linear map"):
        CausalLM(inner).fused = True


def test_a_fused_head_is_compared_as_it_runs():
    """The comparison at the beginning is passed by a factor that is one then."""

    class Scaled(type(language_model())):
        scale = 1.0

        def forward(self, input_ids, logits_to_keep=0, **named):
            output = super().forward(input_ids, logits_to_keep=logits_to_keep, **named)
            output.logits = output.logits * self.scale
            return output

    lm = CausalLM(Scaled(language_model().config))
    lm.fused = True
    lm.model.scale = 2.0
    with pytest.raises(ValueError, match="scales its logits"):
        lm(WORDS)


@torch.no_grad()
def test_a_cache_of_transformers_forgets():
    """Rows that go back by different numbers of tokens go on from what they kept, and nothing else."""
    lm = CausalLM(language_model())
    cache = lm.cache(2)
    assert hasattr(cache, "kept")  # or it does not go on as the whole does, and reads all again
    lm(WORDS, cache)
    cache.rewind(torch.tensor([1, 4]))
    found = ran(lambda: lm(WORDS[:, :2], cache))
    for row, length in enumerate((1, 4)):
        whole = lm(torch.cat([WORDS[row, :length], WORDS[row, :2]])[None])
        assert near(found[row], whole[0, length:], rtol=1e-3, atol=1e-3)


def test_the_scale_of_a_head_is_read():
    """Of a Granite, logits are divided; fused, the loss would be that of another model."""
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    inner = transformers.GraniteForCausalLM(transformers.GraniteConfig(vocab_size=20, logits_scaling=8.0, **shape))
    lm = CausalLM(inner)
    ran(lambda: setattr(lm, "fused", True))
    assert near(lm(WORDS).dense(), inner(input_ids=WORDS).logits, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("what", ["softcap", "context"])
@torch.no_grad()
def test_a_nested_text_configuration_is_read(what):
    """The softcap and the context are looked for beside the configuration of the text, and not in it."""
    inner = language_model("nested").eval()
    lm = CausalLM(inner)
    if what == "context":
        assert lm.context == 16
        return
    ran(lambda: setattr(lm, "fused", True))
    assert near(lm(WORDS).dense(), inner(input_ids=WORDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("what", ["logits", "trained"])
def test_adapters_are_off_in_their_own_teacher(what):
    """A teacher that is the student itself says what the student says; or a look at it thaws what was frozen."""
    lm = CausalLM(language_model(target_modules=["q_proj", "v_proj"]))
    adapters = [p for p in lm.parameters() if p.requires_grad]
    adapters[0].requires_grad_(False)
    before = [p.requires_grad for p in lm.parameters()]
    found = without_adapter(lm)(WORDS)
    if what == "trained":
        assert [p.requires_grad for p in lm.parameters()] == before
        return
    for p in adapters:
        p.data.zero_()
    assert near(found, lm(WORDS), rtol=1e-4, atol=1e-4) and not found.requires_grad


class Seen(ForwardKL):
    """What a teacher said of the examples."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, **seen):
        self.seen.append((seen["index"], seen["teacher_logits"]))
        return super().forward(**seen)


def flat_examples(n=32):
    generator = torch.Generator().manual_seed(0)
    return Examples(torch.randn(n, 6, generator=generator), torch.arange(n) % 3)


BRIEF = Recipe(epochs=1, batch_size=8, learning_rate=0.1, augment=False, schedule="constant")


def test_a_student_that_shares_memory_is_no_student():
    """Parameters of another name, or other objects, are the teacher's own numbers."""
    teacher, student = nn.Linear(6, 3), nn.Linear(6, 3)
    student.weight = nn.Parameter(teacher.weight.data)
    with pytest.raises(ValueError, match="share 'weight': training the one would change the other"):
        fit(student, ForwardKL(), train=flat_examples(), teacher=teacher, recipe=BRIEF)


@pytest.mark.parametrize("what", ["dropout", "statistics"])
def test_a_shared_backbone_leaves_the_teacher_as_it_was(what):
    """What is frozen is shared: the teacher looks with the student's dropout, or its running statistics move."""
    torch.manual_seed(0)
    part = nn.Dropout(0.5) if what == "dropout" else nn.BatchNorm1d(6)
    backbone = nn.Sequential(nn.Linear(6, 6), part).requires_grad_(False)
    teacher, student = (nn.Sequential(backbone, nn.Linear(6, 3)) for _ in range(2))
    train, term = flat_examples(), Seen()
    if what == "statistics":
        with pytest.raises(ValueError, match="share '0.1.running_mean'.*requires_grad_.False..eval"):
            fit(student, term, train=train, teacher=teacher, recipe=BRIEF)
        part.eval()
    fit(student, term, train=train, teacher=teacher, recipe=BRIEF)
    assert student.training and part.training == (what == "dropout")
    with torch.no_grad(), training.evaluation_mode(teacher):
        known = teacher(train.inputs)
    assert all(torch.allclose(logits, known[index], atol=1e-6) for index, logits in term.seen)


def test_a_frozen_layer_stays_frozen():
    """Batch normalisation that was frozen moves on, for the student is put in training mode as a whole."""
    student = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    student[1].requires_grad_(False).eval()
    before = student[1].running_mean.clone()
    fit(student, CrossEntropy(), train=flat_examples(), recipe=BRIEF, validation=flat_examples())
    assert torch.equal(student[1].running_mean, before)
    assert [layer.training for layer in student] == [True, False, True]


def test_statistics_without_weights_stay_frozen():
    shared, x = nn.BatchNorm1d(6, affine=False), torch.randn(8, 6)
    student, teacher = (nn.Sequential(shared, nn.Linear(6, 3)) for _ in range(2))
    how = {"train": Examples(x, torch.arange(8) % 3), "teacher": teacher, "recipe": BRIEF}
    with pytest.raises(ValueError, match=r"freeze the layer, 0.requires_grad_\(False\).eval\(\)"):
        fit(student, SoftTargets(), **how)
    student.get_submodule("0").requires_grad_(False).eval()
    before = shared.running_mean.clone()
    assert "not refused" in refusal(lambda: fit(student, SoftTargets(), **how))
    assert torch.equal(shared.running_mean, before)
    student.eval()  # as a whole, as after a measurement: that freezes nothing
    fit(student, CrossEntropy(), **{**how, "teacher": None})
    assert not torch.equal(shared.running_mean, before)


def test_a_student_that_was_measured_trains_all_the_same():
    """A layer without parameters is taken for a frozen one, and dropout stays off."""
    student = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3)).eval()
    fit(student, CrossEntropy(), train=flat_examples(), recipe=BRIEF)
    assert student[0].training


def test_a_convolution_of_three_axes_trains():
    """Channels-last is asked of what has five axes."""
    student = nn.Sequential(nn.Conv3d(1, 3, 1), nn.Flatten(), nn.Linear(24, 3))
    train = Examples(torch.randn(8, 1, 2, 2, 2), torch.arange(8) % 3)
    assert len(ran(lambda: fit(student, CrossEntropy(), train=train, recipe=BRIEF))) == 1


class Counting(nn.Linear):
    """A layer with state that is no tensor."""

    counted = None

    def get_extra_state(self):
        return {"counted": self.counted, "kind": torch.float32, "pair": (1, torch.ones(2)), "raw": b"ab"}

    def set_extra_state(self, state):
        self.counted, self.restored = state["counted"], state


@pytest.mark.parametrize("what", ["checksum", "model", "run"])
def test_state_that_is_no_tensor_is_kept(what, tmp_path):
    """A state dict is taken for tensors alone."""
    one, other = Counting(6, 3), Counting(6, 3)
    one.counted = [1, 2.5, "three", None]
    other.load_state_dict({k: v for k, v in one.state_dict().items() if k != "_extra_state"}, strict=False)
    if what == "checksum":
        sums = [ran(lambda module=module: state.checksum(module.state_dict().items())) for module in (one, one, other)]
        assert sums[0] == sums[1] != sums[2]
    elif what == "model":
        ran(lambda: save_model(tmp_path / "model", one, {}))
        ran(lambda: load_model(tmp_path / "model", other))
        assert other.counted == one.counted and other.restored["raw"] == b"ab"
        assert other.restored["kind"] is torch.float32 and torch.equal(other.restored["pair"][1], torch.ones(2))
    else:
        how = {"train": flat_examples(), "recipe": BRIEF, "checkpoint": tmp_path / "run", "teacher": nn.Linear(6, 3)}
        ran(lambda: fit(one, ForwardKL(), **how))
        ran(lambda: fit(other, ForwardKL(), **how))
        assert other.counted == one.counted and torch.equal(other.weight, one.weight)


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_teacher_teaches_and_is_stored(tmp_path):
    """Packed weights are neither shape nor tensor."""
    made = [torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(6, 3))) for _ in range(2)]
    ran(lambda: fit(nn.Linear(6, 3), ForwardKL(), train=flat_examples(), teacher=made[0], recipe=BRIEF))
    ran(lambda: save_model(tmp_path / "model", made[0], {}))
    ran(lambda: load_model(tmp_path / "model", made[1]))
    inputs = flat_examples().inputs
    assert torch.equal(made[0](inputs), made[1](inputs))


def test_a_compiled_model_is_the_same_model(tmp_path):
    """The wrapper's name is part of every name in its checkpoint."""

    class Compiled(nn.Module):  # as torch.compile has it
        def __init__(self, model):
            super().__init__()
            self._orig_mod = model

    one, other = nn.Linear(6, 3), nn.Linear(6, 3)
    save_model(tmp_path / "model", Compiled(one), {})
    ran(lambda: load_model(tmp_path / "model", other))
    assert torch.equal(one.weight, other.weight)
    save_model(tmp_path / "again", nn.Sequential(nn.Linear(6, 3)), {})
    ran(lambda: load_model(tmp_path / "again", nn.Sequential(Compiled(one))))
    assert not torch.equal(one.weight, other.weight)


def test_bfloat16_that_is_emulated_is_not_fast(monkeypatch):
    """T4, V100 and P100 say that they support it."""
    for capability, fast in (
        ((6, 0), "float32"),
        ((7, 0), "float32"),
        ((7, 5), "float32"),
        ((8, 0), "bfloat16"),
        ((9, 0), "bfloat16"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None, known=capability: known)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        assert fast_precision("cuda") == fast


HALF = replace(BRIEF, epochs=3, precision="float16")


def test_small_gradients_are_scaled_in_float16():
    """A gradient of 1e-8 is zero in float16."""
    student = nn.Linear(6, 3)
    before = student.weight.detach().clone()
    fit(
        student, 1e-8 * CrossEntropy(), train=flat_examples(), recipe=replace(HALF, learning_rate=1e5, weight_decay=0.0)
    )
    moved = (student.weight - before).abs()
    assert moved.min() > 1e-6 and moved.max() < 0.1


def test_gradients_are_scaled_back_before_they_are_used():
    """They are clipped, or measured, with the scale on them."""
    found = []
    for precision in ("float32", "float16"):
        torch.manual_seed(0)
        student = nn.Linear(6, 3)
        recipe = replace(HALF, precision=precision, max_gradient_norm=0.1, weight_decay=0.0)
        history = fit(student, CrossEntropy(), train=flat_examples(), recipe=recipe, gradient_norms=True)
        found.append((student.weight.detach(), history[0]["CrossEntropy.gradient_norm"]))
    assert near(*(weight for weight, _ in found), rtol=0.01, atol=0.01)
    assert near(*(norm for _, norm in found), rtol=0.01, atol=0.01)


def test_a_gradient_without_room_in_float16_has_no_length(digits, tmp_path):
    """The step is left out and the scale halved; an infinite length kept the record from being written, after the training."""
    recipe = replace(HALF, batch_size=16, learning_rate=1e-6, schedule="constant")
    spec = Spec("tests", "alone", "digits", "resnet8_width4", 1e2 * CrossEntropy(), recipe, train_examples=96)
    try:
        said = run(spec, digits, book=tmp_path).record["epochs"]["gradient_norm"]
    except RecordError as error:
        said = str(error)
    assert said[0] is None and said[-1] > 0


def test_a_run_in_float16_goes_on_with_its_scale(tmp_path):
    """The scale begins anew, and with it steps are left out."""

    def trained(path, stop_after=None):
        torch.manual_seed(0)
        student = nn.Linear(6, 3)

        def report(entry):
            if entry["epoch"] == stop_after:
                raise InterruptedError

        how = {"train": flat_examples(), "recipe": replace(HALF, learning_rate=1e-6), "checkpoint": tmp_path / path}
        try:
            history = fit(student, 1e4 * CrossEntropy(), **how, report=report)
        except InterruptedError:
            return trained(path)
        return student.weight.detach(), [entry["gradient_scale"] for entry in history]

    whole, scales = trained("whole")
    assert scales[0] < 65536.0
    resumed, again = trained("parts", stop_after=1)
    assert torch.equal(whole, resumed) and scales == again


class Crops(torch.utils.data.Dataset):
    """Draws at random when it is asked for an example, from all three generators."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        noise = torch.rand(6) + float(np.random.rand()) + random.random()
        return noise + index, index % 3


def test_a_loader_can_be_gone_on_with(tmp_path):
    """Order and augmentation are drawn from wherever the generators stand."""

    def trained(path, stop_after=None):
        torch.manual_seed(0 if stop_after is None else 1)
        random.seed(stop_after)
        np.random.seed(stop_after)
        student = nn.Linear(6, 3)
        nn.init.ones_(student.weight), nn.init.zeros_(student.bias)
        steps = iter(range(100))
        how = {
            "train": torch.utils.data.DataLoader(Crops(), 8, shuffle=True),
            "recipe": replace(BRIEF, epochs=2),
            "checkpoint": tmp_path / path,
        }
        try:
            fit(student, CrossEntropy(), **how, stop=None if stop_after is None else lambda: next(steps) == stop_after)
        except training.Stopped:
            return ran(lambda: trained(path))
        return student.weight.detach()

    whole = trained("whole")
    assert torch.equal(whole, trained("parts", 2)) and torch.equal(whole, trained("others", 4))


def loaded(*tensors):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*tensors))


def test_what_cannot_be_validated_is_known_at_once():
    """A validation that cannot be read fails after a whole epoch."""
    steps = []
    for validation, sentence in (
        ([(torch.zeros(1, 6), torch.zeros(1))], "validation is a Split"),
        (Examples(torch.zeros(4, 6), torch.ones(4, 3)), "no probabilities of classes"),
        (loaded(torch.zeros(4, 6), torch.ones(4, 3)), "no probabilities of classes"),
        (loaded(torch.zeros(4, 6), torch.ones(4)), "no probabilities of classes"),
        (loaded(*[torch.zeros(4, 6)] * 3), "a batch of the DataLoader is"),
    ):
        with pytest.raises(Exception, match=sentence):
            fit(
                nn.Linear(6, 3),
                CrossEntropy(),
                train=flat_examples(),
                validation=validation,
                recipe=BRIEF,
                after_step=steps.append,
            )
    assert not steps


class Reader(nn.Module):
    """A mean over tokens that are no padding."""

    def __init__(self, classes=3):
        super().__init__()
        self.words, self.head = nn.Embedding(9, 6), nn.Linear(6, classes)

    def forward(self, input_ids, attention_mask=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.words(input_ids) * mask[..., None]
        return self.head(hidden.sum(1) / mask.sum(1, keepdim=True))


def read_examples(n=16):
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "input_ids": torch.randint(9, (n, 5), generator=generator),
        "attention_mask": torch.ones(n, 5, dtype=torch.long),
    }
    inputs["attention_mask"][:, 3:] = 0
    return Examples(inputs, torch.arange(n) % 3)


def test_attention_maps_are_those_before_dropout():
    """A module that returns its maps returns them after dropout: in training they differ from any other's by noise."""

    class Eager(nn.Module):
        def forward(self, x):
            maps = F.dropout((x @ x.mT).softmax(-1), 0.5, training=self.training)
            return maps @ x, maps

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Eager()

        def forward(self, x):
            return self.attention(x)[0]

    torch.manual_seed(0)
    model, x = First(), torch.randn(2, 5, 8)
    _, hidden = ran(lambda: Taps(model, ["attention:attention"])(x))
    torch.testing.assert_close(hidden["attention:attention"], (x @ x.mT).softmax(-1).unsqueeze(1))


def test_a_dictionary_is_read_by_its_names():
    """Inputs that are a dictionary reach the model as one argument, or without some of them."""
    torch.manual_seed(0)
    student, teacher, train = Reader(), Reader(), read_examples()
    with torch.no_grad():
        known = teacher(**train.inputs)
    assert torch.equal(ran(lambda: predict(teacher, train)), known)
    assert torch.equal(ran(lambda: Taps(teacher)(train.inputs))[0], known)
    term = Seen()
    ran(
        lambda: fit(
            student, term, train=train, teacher=teacher, validation=train, recipe=replace(BRIEF, micro_batches=2)
        )
    )
    assert all(torch.allclose(logits, known[index], atol=1e-6) for index, logits in term.seen)


class Tagger(Reader):
    """One row of logits a token."""

    def forward(self, input_ids, attention_mask):
        return self.head(self.words(input_ids))


def test_padding_of_a_dictionary_is_not_matched():
    """Hidden states of padding are matched as those of words."""
    torch.manual_seed(0)
    student, teacher, read = Tagger(), Tagger(), read_examples()
    labels = torch.ones(16, 5, dtype=torch.long).masked_fill(read.inputs["attention_mask"] == 0, -100)
    labels[:, 0] = -100  # is read, and not learned from
    difference = (student.words(read.inputs["input_ids"]) - teacher.words(read.inputs["input_ids"])).square().mean(-1)
    known = difference[:, :3].mean().item()
    for parts in (1, 2):
        recipe = replace(BRIEF, batch_size=16, micro_batches=parts, learning_rate=1e-12)
        (entry,) = fit(student, HiddenMSE("words"), train=Examples(read.inputs, labels), teacher=teacher, recipe=recipe)
        assert near(entry["HiddenMSE"], known, rtol=1e-5)


def test_padding_of_a_text_with_one_label_is_not_matched():
    """Where a label is of the whole text, hidden states of padding are matched as those of words."""
    torch.manual_seed(0)
    student, teacher, read = Reader(), Reader(), read_examples()
    difference = (student.words(read.inputs["input_ids"]) - teacher.words(read.inputs["input_ids"])).square().mean(-1)
    recipe = replace(BRIEF, batch_size=16, learning_rate=1e-12)
    (entry,) = fit(student, HiddenMSE("words"), train=read, teacher=teacher, recipe=recipe)
    assert near(entry["HiddenMSE"], difference[:, :3].mean().item(), rtol=1e-5)


def test_labels_that_are_the_tokens_themselves_are_refused():
    """transformers shifts labels inside its models; here a token would be learned from itself."""
    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    with pytest.raises(ValueError, match="labels are the input_ids themselves"):
        Examples({"input_ids": ids}, ids.masked_fill(ids == 0, -100))
    assert len(Examples({"input_ids": ids[:, :-1]}, ids[:, 1:])) == 2
    assert len(Examples(ids, ids)) == 2, (
        "of tensors without a name nobody knows: a text of one token says the same, shifted or not"
    )


def test_soft_labels_are_one_an_example():
    """Probabilities of classes are taken for labels of tokens, and masked."""
    torch.manual_seed(0)
    train = flat_examples()
    mixed = Examples(train.inputs, torch.softmax(torch.randn(32, 3), -1))
    student = nn.Linear(6, 3)
    known = cross_entropy(student(mixed.inputs), mixed.labels).item()
    recipe = replace(BRIEF, batch_size=32, learning_rate=1e-12)
    for parts in (1, 2):
        (entry,) = ran(
            lambda parts=parts: fit(
                student, CrossEntropy(), train=mixed, validation=mixed, recipe=replace(recipe, micro_batches=parts)
            )
        )
        assert near(entry["loss"], known, rtol=1e-5)
    z = student(mixed.inputs).detach()
    measured = ran(lambda: measure(z, mixed.labels))
    assert near(measured["cross_entropy"], known, rtol=1e-5)
    assert measured["accuracy"] == accuracy(z, mixed.labels.argmax(-1))


def test_images_that_are_not_the_data_set_are_refused(monkeypatch):
    """Noise of the right size is loaded as CIFAR-10, or its training images as its test images."""
    rows = np.random.default_rng(0).integers(0, 10, (20, 3073)).astype(np.uint8)
    monkeypatch.setattr(images, "fetch_archive", lambda **_: Path("cifar"))
    monkeypatch.setattr(images, "_read_rows", lambda path, n, size: rows)
    monkeypatch.setattr(images, "_read_names", lambda path: tuple("0123456789"))
    with pytest.raises(DataError, match="not hold the 50,000 images of CIFAR-10"):
        images.load_cifar10(validation_per_class=1)


def test_gradient_norms_pass_frozen_layers_by():
    """A frozen parameter has no gradient, and autograd says so in its own words."""
    student = nn.Sequential(nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 3))
    (entry,) = ran(lambda: fit(student, CrossEntropy(), train=flat_examples(), recipe=BRIEF, gradient_norms=True))
    assert entry["CrossEntropy.gradient_norm"] > 0
    student.requires_grad_(False)
    objective, z = 1.0 * CrossEntropy(), student(flat_examples().inputs).requires_grad_()
    _, values = objective(student_logits=z, labels=flat_examples().labels)
    with pytest.raises(ValueError, match="none of these requires a gradient"):
        objective.gradient_norms(values, student.parameters())


# The study


@dataclass(frozen=True)
class WatchedSplit(Split):
    """A split that notes in ``log`` when it is looked at."""

    log: list = None

    def batches(self, *arguments, **options):
        self.log.append("test")
        return super().batches(*arguments, **options)


def test_test_split_is_touched_once(digits, linear):
    """The best epoch is chosen on the test split."""
    log = []
    watched = WatchedSplit(**vars(digits.test), log=log)
    data = replace(digits, test=watched)
    recipe = Recipe(epochs=2, batch_size=32, augment=False, schedule="constant")
    spec = Spec("pitfalls", "alone", "digits", "resnet8", 1.0 * CrossEntropy(), recipe)
    done = run(spec, data, report=lambda spec, entry: log.append(entry["epoch"]))
    assert log == [1, 2, "test"]
    assert done.record["selection"].startswith("last epoch")
    assert done.record["test"]["accuracy"] == accuracy(done.test_logits, digits.test.labels)
    log.clear()
    fit(linear(), CrossEntropy(), train=digits.train, recipe=recipe, validation=watched,
        report=lambda entry: log.append(entry["epoch"]))  # fmt: skip
    assert log.index("test") < log.index(2)  # what the criterion would see


@pytest.mark.parametrize(
    "plan",
    [
        plans.first_distillation_cpu,
        plans.first_distillation_gpu,
        lambda: plans.first_distillation_live("cifar100", "bfloat16"),
        lambda: plans.first_distillation_live("digits", "float32"),
    ],
    ids=["cpu", "gpu", "live", "live on digits"],
)
def test_every_arm_is_treated_alike(plan):
    """The baseline is not tuned as the method is, or the seed is used as a hyper-parameter."""
    specs = [spec for spec in plan() if spec.study != "teacher"]
    arms = {arm: [spec for spec in specs if spec.arm == arm] for arm in ("alone", "kd", "permuted")}
    assert sum(map(len, arms.values())) == len(specs)
    for alone, kd, permuted in zip(*arms.values(), strict=True):
        assert alone.recipe == kd.recipe == permuted.recipe
        assert (alone.student, alone.data, alone.train_examples) == (kd.student, kd.data, kd.train_examples)
        assert alone.teacher is None and kd.teacher.hash == permuted.teacher.hash
    assert [spec.recipe.seed for spec in arms["kd"]] == list(range(len(arms["kd"])))
    assert len({replace(spec.recipe, seed=0) for spec in specs}) == 1


def every_default():
    """Every public name of the objectives, called with nothing but what it needs."""
    z, t, y = pair(4, 6)
    s, h = torch.randn(2, 4, 6)
    maps, attention = torch.randn(2, 4, 3, 5, 5), torch.randn(2, 4, 3, 5, 5).softmax(-1)
    memory = {"labels": y, "index": torch.arange(4)}
    few = objectives.SparseTargets(y[:, None], torch.ones(4, 1), 6)

    def of_logits(function):
        return lambda: function(z, t)

    def of_layers(function, layers=(s, h)):
        return lambda: function(*layers)

    def of_terms(term):
        return lambda: term(**step())

    def length(tokens):
        return (tokens != -100).sum(-1)

    texts = {"student_logits": z[:, None], "teacher_logits": t[:, None], "labels": y[:, None]}
    one = torch.ones(4, 1)
    aligned = objectives.AlignedLogits(t[:, None], one.bool(), one.long(), -one, 0 * one)
    return {
        **{f.__name__: of_logits(f) for f in (*DECLARED.values(), soft_targets, logit_mse, dist_loss)},
        **{term.__name__: lambda term=term: term()(student_logits=z, teacher_logits=t) for term in declared_terms()},
        **{f.__name__: of_layers(f) for f in (
            hidden_mse, hidden_cosine, rkd_distance, rkd_angle, similarity_preserving, info_nce)},
        **{f.__name__: of_layers(f, maps) for f in (activation_attention, attention_from_qk)},
        **{name: of_terms(term) for name, term in every_term().items()},
        "attention_map_mse": of_layers(attention_map_mse, attention),
        "soften": lambda: soften(z),
        "log_soften": lambda: log_soften(z),
        "entropy": lambda: entropy(z),
        "standardise": lambda: standardise(z),
        "squared_error": lambda: objectives.squared_error(z, t),
        "SquaredError": lambda: objectives.SquaredError()(student_logits=z, labels=t),
        "cross_entropy": lambda: cross_entropy(z, y),
        "decoupled_kd": lambda: decoupled_kd(z, t, y),
        "distillation_loss": lambda: distillation_loss(z, t, y, hard_weight=0.5),
        "smooth_labels": lambda: smooth_labels(y, 6),
        "permute_dark_knowledge": lambda: permute_dark_knowledge(t, y),
        "spread_dark_knowledge": lambda: spread_dark_knowledge(t, y),
        "reduce": lambda: reduce(s),
        "global_count": lambda: global_count(s > 0),
        "next_token": lambda: next_token(z[None], t[None], y[None])["student_logits"],
        "restrict_vocabulary": lambda: restrict_vocabulary(z, torch.arange(3)),
        "SharedVocabulary": lambda: objectives.SharedVocabulary(ForwardKL(), torch.arange(3))(student_logits=z, teacher_logits=t),
        "AlignedLogits": lambda: aligned[:1].values,
        "merge_vocabulary": lambda: objectives.merge_vocabulary(z, torch.arange(6), 6),
        "MergedVocabulary": lambda: objectives.MergedVocabulary(ForwardKL(), torch.arange(6))(student_logits=z, teacher_logits=t),
        "MergedSpans": lambda: objectives.MergedSpans()(**texts | {"teacher_logits": aligned}),
        "SortedProbabilities": lambda: objectives.SortedProbabilities()(**texts),
        "match_layers": lambda: torch.tensor(len(match_layers(["a", "b"], ["1", "2", "3"]))),
        "Projector": lambda: torch.cat([Projector(kind, 3, 4)(maps[0]) for kind in Projector.KINDS]),
        "MemoryBank": lambda: MemoryBank(8, 6).negatives(memory["index"], y, 4)[0],
        "ContrastiveMemory": lambda: ContrastiveMemory(6, 6, 8)(s, h, **memory),
        "Objective": lambda: sum(every_term().values())(**step())[0],
        "SparseTargets": lambda: few.dense(),
        "SparseForwardKL": lambda: objectives.SparseForwardKL()(student_logits=z, teacher_logits=few),
        "sparse_forward_kl": lambda: objectives.sparse_forward_kl(z, few),
        "HeadLogits": lambda: objectives.HeadLogits(s, h).dense(),
        "sampled_kl": lambda: objectives.sampled_kl(z, t),
        "advantages": lambda: objectives.advantages(z[:, 0], 2),
        "binary_soft_targets": lambda: binary_soft_targets(z, t),
        "binary_cross_entropy": lambda: binary_cross_entropy(z, t.sigmoid()),
        "BinarySoftTargets": lambda: BinarySoftTargets()(student_logits=z, teacher_logits=t),
        "BinaryCrossEntropy": lambda: BinaryCrossEntropy()(student_logits=z, labels=t.sigmoid()),
        "PolicyGradient": lambda: objectives.PolicyGradient(length, 2)(**texts),
        "TextKL": lambda: objectives.TextKL()(**texts),
        "SampledReverseKL": lambda: objectives.SampledReverseKL()(**texts),
        "sampled_gradient_variance": lambda: torch.stack(objectives.sampled_gradient_variance(z, t)),
        "MeanReward": lambda: objectives.MeanReward(length)(**texts),
        "Convention": lambda: torch.tensor(CONVENTIONS["kdlab"].temperature),
        "loss_as_in": lambda: loss_as_in("kdlab", z, t, temperature=4.0),
        "weight_factor": lambda: torch.tensor(weight_factor("TextBrewer", "kdlab", temperature=4.0)),
        "Term": lambda: One()(student_logits=z),
        "Constant": lambda: torch.tensor(Constant(4)(0.5)),
        "Linear": lambda: torch.tensor(Linear(8, 1)(0.5)),
        "Cosine": lambda: torch.tensor(Cosine(8, 1)(0.5)),
        "Step": lambda: torch.tensor(Step(8, {0.5: 1})(0.5)),
        "LearnedTemperature": lambda: LearnedTemperature()(0.5),
    }  # fmt: skip


def complaint(call):
    """What goes wrong when it is called, or nothing."""
    try:
        value = call()
    except Exception as error:  # noqa: BLE001 - whatever it is
        return repr(error)
    return "" if torch.isfinite(value).all() else "not finite"


@pytest.mark.parametrize("name", objectives.__all__)
def test_every_default_runs(name):
    """A default argument was never run, and its path crashes."""
    assert complaint(every_default()[name]) == ""
    assert complaint(lambda: soft_targets(*pair(4, 6)[:2], temperature=None)) != ""


@pytest.mark.parametrize(
    "name", [name for name in training.__all__ if name not in ("CacheError", "CheckpointError", "Stopped")]
)
def test_every_default_of_training_runs(name, digits, resnet, tmp_path):
    """A default argument was never run, and its path crashes."""
    z, t, y = pair(4, 6)
    model, epoch = resnet(), Recipe(epochs=1)
    words = GPT(6, width=4, layers=1, heads=1, context=4)
    text = Tokens(torch.arange(9, dtype=torch.int16) % 6, 4, torch.ones(6, dtype=torch.long))
    modules, further = MultiToken(words, 1, in_a_row=True), replace(text, ahead=1)

    def distil():
        objective = 0.1 * CrossEntropy() + 0.9 * SoftTargets()
        (entry,) = fit(model, objective, train=digits.train, recipe=epoch, teacher=resnet(1))
        return torch.tensor(entry["loss"])

    def several():
        learners = [training.Learner(resnet(i), CrossEntropy(), epoch) for i in range(2)]
        return torch.tensor([h[0]["loss"] for h in training.fit_together(learners, train=digits.train)])

    def store():
        save_model(tmp_path / "model", model, {})
        return torch.tensor(len(load_model(tmp_path / "model", model)))

    def kept():
        teachers.write_logits(tmp_path / "logits", model, digits.test)
        return teachers.CachedLogits(tmp_path / "logits")(torch.tensor([0]))

    calls = {
        "CachedLogits": kept,
        "FunctionTeacher": lambda: teachers.FunctionTeacher(model.eval(), "it")(torch.zeros(1, 3, 32, 32)),
        "Learner": several,
        "LogitsOfViews": lambda: training.LogitsOfViews(model, digits.train[:2].with_views(1)).table,
        "Recipe": lambda: torch.tensor(Recipe().learning_rate_at(0.0)),
        "Taps": lambda: Taps(model)(torch.zeros(1, 3, 32, 32))[0],
        "accuracy": lambda: torch.tensor(accuracy(z, y)),
        "agreement": lambda: torch.tensor(agreement(z, t)),
        "evaluation_mode": lambda: training.evaluation_mode(model).__enter__()(torch.zeros(1, 3, 32, 32)),
        "expected_calibration_error": lambda: torch.tensor(expected_calibration_error(z, y)),
        "fast_precision": lambda: torch.tensor(len(fast_precision())),
        "fit": distil,
        "fitted_temperature": lambda: torch.tensor(training.fitted_temperature(z, y)),
        "fit_together": several,
        "load_model": store,
        "measure": lambda: torch.tensor([*measure(z, y).values()]),
        "measure_tokens": lambda: torch.tensor([*training.measure_tokens([words], text)[0].values()]),
        "measure_further": lambda: torch.tensor(
            [*training.measure_further(modules, further, teacher=Ahead(words, 1))[0].values()]
        ),
        "predict": lambda: predict(model, digits.test),
        "save_model": store,
        "write_logits": kept,
    }
    assert complaint(calls[name]) == ""


# What does not count, and what does not exist


def unseen(monkeypatch, blind):
    """As on an accelerator and inside torch.compile: values are not looked at."""
    if blind:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


def shuffled(z, t, y, **how):
    order = torch.Generator().manual_seed(0)
    return soft_targets(z, permute_dark_knowledge(t, y, generator=order, mask=how.get("mask")), **how)


def spread(z, t, y, **how):
    return soft_targets(z, spread_dark_knowledge(t, y, temperature=4.0, mask=how.get("mask")), **how)


EVERY_LOSS = {
    **{name: without_labels(loss) for name, loss in {
        "forward KL": forward_kl, "reverse KL": reverse_kl, "skewed forward KL": skewed_forward_kl,
        "skewed reverse KL": skewed_reverse_kl, "JSD": generalised_jsd, "total variation": total_variation,
        "acceptance": negative_log_acceptance, "soft targets": soft_targets, "squared error": logit_mse,
        "centred error": partial(logit_mse, centred=True), "DIST": dist_loss,
        **{name: f for name, f in DECLARED.items() if name in DIVERGENCES},
        "JSD at its end": partial(generalised_jsd, beta=1.0, scaled=True), "zero": partial(skewed_forward_kl, skew=1.0),
        "shapes": lambda z, t, **how: SoftTargets(standardised=True)(student_logits=z, teacher_logits=t, **how),
    }.items()},
    "labels": lambda z, t, y, **how: cross_entropy(z, y, **how),
    "soft labels": lambda z, t, y, **how: cross_entropy(z, t.detach().softmax(-1), **how),
    "decoupled": decoupled_kd, "both": partial(distillation_loss, hard_weight=0.5), "shuffled": shuffled, "spread": spread,
}  # fmt: skip
blind = pytest.mark.parametrize("blind", [False, True], ids=["looked at", "not looked at"])


@blind
@pytest.mark.parametrize("name", EVERY_LOSS)
def test_what_is_masked_has_no_influence(name, blind, monkeypatch):
    z, t, y = pair(4, 5)
    unseen(monkeypatch, blind)
    loss, mask = EVERY_LOSS[name], torch.tensor([True, True, True, False])
    of_counted = gradient(loss, z[:3], t[:3], y[:3])
    for there in (math.nan, math.inf, -math.inf):
        z, t, y = z.clone(), t.clone(), y.clone()
        z[3], t[3], y[3] = there, there, -100
        assert near(loss(z, t, y, mask=mask), loss(z[:3], t[:3], y[:3]))
        found = gradient(loss, z, t, y, mask=mask)
        assert near(found[:3], of_counted) and not found[3].any()


def test_sentence_of_what_is_masked():
    z, mask = torch.tensor([[1.0, 0.0], [math.nan, 0.0]]), torch.tensor([True, False])
    assert "not refused" in refusal(lambda: soft_targets(z, z, mask=mask))
    assert "has 1 of 4 entries that are NaN" in refusal(lambda: soft_targets(z, z))


@blind
def test_masked_features_and_labels_have_no_influence(blind, monkeypatch):
    unseen(monkeypatch, blind)
    s, t, _ = pair(4, 5)
    mask, nan = torch.tensor([True, True, True, False]), math.nan
    s[3] = t[3] = nan
    for loss in (hidden_mse, hidden_cosine):
        found = gradient(loss, s, t, mask=mask)
        assert near(found[:3], gradient(loss, s[:3], t[:3])) and not found[3].any()
    maps, teacher = torch.rand(2, 1, 2, 3, 3, dtype=torch.float64)
    maps[:, :, 2], maps[:, :, :, 2] = nan, nan
    found = gradient(attention_map_mse, maps, teacher, mask=torch.tensor([[True, True, False]]))
    assert near(found[..., :2, :2], gradient(attention_map_mse, maps[..., :2, :2], teacher[..., :2, :2]))
    assert torch.isfinite(found).all()
    keys, queries = torch.rand(2, 1, 1, 3, 4, dtype=torch.float64)
    keys[..., 2, :] = nan
    seen = torch.tensor([True, True, False])
    found = gradient(lambda q, k: attention_from_qk(q, k, mask=seen).square().sum(), queries, keys)
    assert near(found, gradient(lambda q, k: attention_from_qk(q, k).square().sum(), queries, keys[..., :2, :]))
    z, y = torch.randn(1, 4, 5, dtype=torch.float64), torch.tensor([[1, 2, 3, -100]])
    z[0, 3] = nan
    found = gradient(
        lambda z, t: objectives.TextKL("exact")(student_logits=z, teacher_logits=t, labels=y), z, z.flip(-1)
    )
    assert torch.isfinite(found).all() and not found[0, 3].any()
    few = SparseTargets(torch.tensor([[1, 0], [-9, 7]]), torch.tensor([[0.9, 0.1], [nan, nan]], dtype=torch.float64), 5)
    found = gradient(sparse_forward_kl, z[0, 2:], few, mask=torch.tensor([True, False]))
    assert near(found[:1], gradient(sparse_forward_kl, z[0, 2:3], few[:1])) and not found[1].any()


@blind
@pytest.mark.parametrize("name", EVERY_LOSS)
def test_a_class_that_does_not_exist_is_as_if_it_were_not_there(name, blind, monkeypatch):
    unseen(monkeypatch, blind)
    z, t, y = pair(4, 5)
    if name in ("spread", "shuffled"):
        y = torch.full_like(y, 4)
    loss, nothing = EVERY_LOSS[name], torch.full((4, 2), -math.inf, dtype=torch.float64)
    longer = [torch.cat([x[:, :3], nothing, x[:, 3:]], 1) for x in (z, t)]
    moved = torch.where(y > 2, y + 2, y)
    if name == "shuffled":  # which classes are drawn differs; what they are does not
        once = shuffled(*longer, moved)
        assert math.isfinite(once)
        return
    assert near(loss(*longer, moved), loss(z, t, y))
    found = gradient(loss, longer[0], longer[1], moved)
    assert near(found[:, [0, 1, 2, 5, 6]], gradient(loss, z, t, y)) and not found[:, 3:5].any()


def test_probability_for_what_does_not_exist_is_refused(monkeypatch):
    z, t = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, -math.inf]])
    for infinite in (lambda: reverse_kl(z, t), lambda: forward_kl(t, z), lambda: cross_entropy(t, torch.tensor([2]))):
        assert "is infinite" in refusal(infinite)
    for finite in (forward_kl(z, t), generalised_jsd(z, t), total_variation(z, t), skewed_reverse_kl(z, t)):
        assert math.isfinite(finite)
    assert "−∞ in every class" in refusal(lambda: soften(t - math.inf))
    unseen(monkeypatch, True)
    assert reverse_kl(z, t) == math.inf  # and never a number


def refusal(call):
    """The sentence with which something is refused; of what is not, what it returned."""
    try:
        return f"not refused: {call()}"
    except (ValueError, TypeError) as error:
        return str(error)


def test_heads_of_words_that_do_not_exist():
    h, W, y = torch.randn(4, 3), torch.randn(6, 3), torch.tensor([0, 1, 2, 3])
    b = torch.tensor([0.0, 0.0, 0.0, 0.0, -math.inf, -math.inf])
    for term in (
        ForwardKL(),
        ReverseKL(),
        SkewedForwardKL(),
        GeneralisedJSD(),
        TotalVariation(),
        NegativeLogAcceptance(),
        SoftTargets(),
    ):
        found = []
        for bias, rows in ((b, slice(None)), (b[:4], slice(4))):
            hidden = h.clone().requires_grad_()
            teacher = HeadLogits(h.flip(0), W[rows], bias)
            total, _ = (CrossEntropy() + term)(
                student_logits=HeadLogits(hidden, W[rows], bias), teacher_logits=teacher, labels=y
            )
            found.append((total, *torch.autograd.grad(total, hidden)))
        assert all(near(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*found, strict=True)), term


# Precision that a loop of one's own undoes


def test_objectives_are_right_under_autocast():
    generator = torch.Generator().manual_seed(0)
    s, t = 30 * torch.randn(2, 6, 8, generator=generator)
    y, index = torch.tensor([0, 1, 0, 1, 2, 2]), torch.arange(6)
    crd = CRD("a", student_width=8, teacher_width=8, examples=9, width=4, negatives=9, momentum=0.0)
    projected = HiddenMSE("a", projector=Projector("linear", 8, 8))
    seen = {"student_hidden": {"a": s}, "teacher_hidden": {"a": t}, "labels": y, "index": index}

    class Mine(Term):  # a term of one's own
        def forward(self, *, student_hidden, teacher_hidden, **_):
            return (student_hidden["a"] @ teacher_hidden["a"].T).sum()

    losses = {
        "similarity": lambda: similarity_preserving(s, t),
        "InfoNCE": lambda: info_nce(s, t),
        "angle": lambda: rkd_angle(s, t),
        "maps": lambda: attention_from_qk(s[None], t[None]),
        "projector": lambda: projected(**seen),
        "CRD": lambda: (torch.manual_seed(0), crd.eval(), crd(**seen))[-1],
        "one's own": lambda: Mine()(**seen),
    }
    for name, loss in losses.items():
        outside = loss()
        crd.memory.normalisers.zero_()
        crd.memory._normalised = False
        for kind in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", kind):
                assert torch.equal(loss(), outside), name
    with torch.autocast("cpu", torch.float16):
        large = torch.tensor([[300.0, 0.0], [0.0, 300.0]])
        assert near(similarity_preserving(large, torch.ones(2, 2)), 1 - math.sqrt(0.5), rtol=1e-6)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_logits_of_another_half_than_autocast(half):
    z, t, y = pair(4, 5)
    z, t = z.to(half), t.to(half)
    other = {torch.float16: torch.bfloat16, torch.bfloat16: torch.float16}[half]
    for name, loss in EVERY_LOSS.items():
        if name in ("shuffled", "soft labels"):
            continue
        right = loss(z, t, y)
        with torch.autocast("cpu", other):
            assert complaint(lambda loss=loss: loss(z, t, y)) == "", name
            assert near(loss(z, t, y), right), name


def test_the_constant_of_crd_does_not_overflow():
    memory = ContrastiveMemory(4, 4, 8, width=4, negatives=8, temperature=0.01)
    x = torch.eye(4)
    memory.teacher_bank.entries[:4] = memory.student_bank.entries[:4] = x
    with torch.no_grad():
        for each in (memory.student_map, memory.teacher_map):
            each.map.weight.copy_(x)
            each.map.bias.zero_()
    assert torch.isfinite(memory(x, x, torch.arange(4), torch.arange(4))) and torch.isfinite(memory.normalisers).all()


def test_estimates_of_a_divergence_keep_their_digits():
    log_q, log_p = torch.tensor([-11.0, -0.25], dtype=torch.float16), torch.tensor([-1.0, -0.5], dtype=torch.float16)
    for kind in ("k1", "k2", "k3"):
        assert near(sampled_kl(log_q, log_p, kind), sampled_kl(log_q.float(), log_p.float(), kind))
    far = torch.tensor([-201.0]), torch.tensor([-1.0])
    assert sampled_kl(*far, "k1").item() == -200 and sampled_kl(*far, "k2").item() == 20_000
    assert "it was not drawn from the policy" in refusal(lambda: sampled_kl(*far))
    assert "NaN or infinite" in refusal(lambda: sampled_kl(torch.tensor([-math.inf]), torch.tensor([-1.0])))


def test_targets_in_half_precision_are_distributions():
    for seed in range(50):
        z, t, _ = pair(8, 100, seed=seed)
        target = t.softmax(-1).bfloat16()
        assert "not refused" in refusal(lambda z=z, target=target: cross_entropy(z, target))
    assert "sums to 1 only within" in refusal(lambda: cross_entropy(z, target * 0.98))


def test_the_rest_of_a_sure_teacher_is_kept(tmp_path):
    class Sure(nn.Module):
        def forward(self, tokens):
            z = torch.zeros(*tokens.shape, 7)
            z[..., 3] = math.log(6 * (1 - 8e-5) / 8e-5)
            return z

    row = numbered([0, 1, 2, 3, 4, 5, 6] * 3, 7)
    tokens = Tokens(row, 6, torch.ones(7, dtype=torch.long))
    write_cache(tmp_path / "cache", Sure(), tokens, kind="top-k-rest", entries=1)
    kept = TeacherCache(tmp_path / "cache")(torch.tensor([0]))
    assert near(1 - kept.probabilities.double().sum(-1), torch.full((1, 6), 8e-5), rtol=2e-3)
    z = Sure()(torch.zeros(1, 6))
    assert gradient(sparse_forward_kl, z, kept).abs().max() < 1e-6


# Inputs that are not what they seem


def test_sparse_targets_are_checked():
    two = torch.tensor([[0, 1]])
    for bad, sentence in (
        ([[-0.1, -2.4]], "log-probabilities go into SparseTargets.from_log_probabilities"),
        ([[0.9, 0.4]], "is more than one"),
        ([[0.9, -0.1]], "negative or NaN"),
        ([[math.nan, 0.1]], "negative or NaN"),
    ):
        assert sentence in refusal(lambda bad=bad: SparseTargets(two, torch.tensor(bad), 5))
    for tokens in ([[0, 5]], [[-1, 0]]):
        assert "must lie in 0 … 4" in refusal(
            lambda tokens=tokens: SparseTargets(torch.tensor(tokens), torch.tensor([[0.5, 0.5]]), 5)
        )
    some = torch.tensor([[0.5, 0.2]])
    assert "say rest=True" in refusal(lambda: sparse_forward_kl(torch.zeros(1, 5), SparseTargets(two, some, 5)))
    z, log_p = torch.randn(1, 5), torch.tensor([[0.5, 0.2, 0.0]]).log()  # two entries, and none
    of_server = SparseTargets.from_log_probabilities(torch.tensor([[0, 1, -1]]), log_p, 5)
    assert near(
        sparse_forward_kl(z, of_server), sparse_forward_kl(z, SparseTargets(two, some, 5, rest=True)), rtol=1e-6
    )
    assert "one token twice" in refusal(lambda: SparseTargets.from_log_probabilities(two * 0, some.log(), 5))


def test_temperatures_are_one_a_distribution():
    z, t, _ = pair(4, 3, 5)
    good = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    for shape in ((3, 1), (4, 1), (1, 4, 3, 1)):
        T = good.new_ones(shape)
        T.view(-1)[0] = 2
        for loss in (soft_targets, dist_loss):
            assert "not one a distribution" in refusal(lambda loss=loss, T=T: loss(z, t, temperature=T))
        assert "not one a distribution" in refusal(lambda T=T: soften(z, T))
    assert "not one a distribution" in refusal(lambda: soften(z[0, :1], good[:, None]))
    each = [soft_targets(z[i], t[i], temperature=float(T)) for i, T in enumerate(good)]
    assert near(soft_targets(z, t, temperature=good[:, None, None]), torch.stack(each).mean())


def test_the_class_axis_is_said():
    z, t, y = pair(2, 4, 4, 5)
    maps = [x.movedim(-1, 1) for x in (z, t)]
    for name, loss in EVERY_LOSS.items():
        if name not in ("soft labels", "shuffled", "spread", "shapes"):
            assert near(loss(*maps, y, class_axis=1), loss(z, t, y, class_axis=-1)), name
    assert near(soften(maps[0], class_axis=1), soften(z, class_axis=-1).movedim(-1, 1))
    assert near(entropy(maps[0], class_axis=1), entropy(z, class_axis=-1))
    square = torch.zeros(2, 4, 4, 4)  # whose labels fit either way
    for unsaid in (lambda: soften(z), lambda: soft_targets(*maps), lambda: cross_entropy(maps[0], y),
                   lambda: cross_entropy(square, y[..., :4].clamp(max=3)), lambda: accuracy(square, y.clamp(max=3))):  # fmt: skip
        assert "say class_axis=1" in refusal(unsaid)
    assert near(accuracy(maps[0], y, class_axis=1), accuracy(z, y))
    term = CrossEntropy(class_axis=1) + SoftTargets(class_axis=1)
    total, _ = term(student_logits=maps[0], teacher_logits=maps[1], labels=y, mask=y >= 0)
    assert near(total, cross_entropy(z, y) + soft_targets(z, t, class_axis=-1))


def test_vocabularies_are_restricted_where_it_is_advised():
    h, W, b, t = torch.randn(4, 3), torch.randn(8, 3), torch.randn(8), torch.randn(4, 6)
    full = F.linear(h, W, b)
    advice = refusal(lambda: forward_kl(full, t))
    assert (
        "restrict_vocabulary(student_logits, torch.arange(6))" in advice
        and "SharedVocabulary(term, torch.arange(6))" in advice
    )
    for tokens in (torch.arange(6), torch.tensor([7, 1, 2, 3, 4, 0])):
        shorter = restrict_vocabulary(HeadLogits(h, W, b), tokens)
        assert near(shorter.dense(), restrict_vocabulary(full, tokens), rtol=1e-5, atol=1e-6)
    kept = SparseTargets(torch.tensor([[0, 7, 2]]), torch.tensor([[0.5, 0.25, 0.25]]), 8)
    fewer = restrict_vocabulary(kept, torch.tensor([2, 5, 0]))
    assert near(fewer.dense(), [[1 / 3, 0, 2 / 3]], rtol=1e-6) and fewer.vocabulary == 3
    padded = restrict_vocabulary(
        replace(kept, probabilities=torch.tensor([[0.5, 0.0, 0.25]]), rest=True), torch.arange(7)
    )
    assert padded.rest and near(padded.dense(), [[0.5, 0, 0.25, 0, 0, 0, 0]], rtol=1e-6)


def test_measures_check_what_losses_check():
    z = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    for measured in (accuracy, expected_calibration_error, measure):
        assert "do not fit" in refusal(lambda measured=measured: measured(z, torch.tensor([[1], [0]])))
        assert "pass mask=labels >= 0" in refusal(lambda measured=measured: measured(z, torch.tensor([-100, 0])))
        assert "NaN" in refusal(lambda measured=measured: measured(z * math.nan, torch.tensor([1, 0])))
    y = torch.tensor([-100, 0])
    assert accuracy(z, y, mask=y >= 0) == 1 and measure(z, y, z, mask=y >= 0)["kl_to_teacher"] == 0
    assert "same examples" in refusal(lambda: agreement(z, z[:1]))
    sequence = z[None].expand(3, 2, 2), torch.tensor([[1, 0]] * 3)
    assert near(expected_calibration_error(*sequence), expected_calibration_error(z, torch.tensor([1, 0])))
    words = torch.cat([z, torch.full((2, 1), -math.inf)], 1)
    assert measure(words, torch.tensor([1, 0]), words) == measure(z, torch.tensor([1, 0]), z)
    sums = measures.defaultdict(float)
    log_q = log_soften(words)
    measures._add_up(sums, log_q, torch.tensor([1, 0]), log_q, 3)
    assert sums["kl_to_teacher"] == 0


def test_a_fitted_temperature_is_of_what_counts():
    """NaN in every comparison ends a bisection at its lower end, 0.001."""
    z, _, _ = pair(8, 3)
    y = torch.tensor([0, 1, 2, 0, 0, 1, 2, 1])
    right = fitted_temperature(z, y)
    assert 0.01 < right < 100
    assert near(fitted_temperature(torch.cat([z, torch.full((8, 1), -math.inf)], 1), y), right)
    padded = torch.cat([z, torch.full((1, 3), math.nan)]), torch.cat([y, torch.tensor([-100])])
    assert near(fitted_temperature(*padded, mask=padded[1] >= 0), right)
    assert near(fitted_temperature(z.T[None], y[None], class_axis=1), right)
    assert "pass mask=labels >= 0" in refusal(lambda: fitted_temperature(z, padded[1][1:]))
    assert "NaN" in refusal(lambda: fitted_temperature(z * math.nan, y))
    assert "is infinite" in refusal(lambda: fitted_temperature(z.where(torch.arange(3) != 0, -math.inf), y))
    assert "soft labels" in refusal(lambda: fitted_temperature(z, z.softmax(1)))
    assert "nothing to measure" in refusal(lambda: agreement(z[:0], z[:0]))


def test_labels_are_smoothed_over_classes_that_exist():
    z, _, y = pair(4, 5)
    longer = torch.cat([z[:, :3], torch.full((4, 2), -math.inf), z[:, 3:]], 1)
    moved = torch.where(y > 2, y + 2, y)
    for labels, others in ((y, moved), (z.softmax(1), longer.softmax(1))):
        right = SmoothedLabels(0.3)(student_logits=z, labels=labels)
        assert near(right, cross_entropy(z, objectives.smooth_labels(labels, 5, smoothing=0.3)), rtol=1e-6)
        assert "not refused" in refusal(lambda others=others: SmoothedLabels(0.3)(student_logits=longer, labels=others))
        assert near(SmoothedLabels(0.3)(student_logits=longer, labels=others), right, rtol=1e-6)

    def smoothed(hidden, weight, bias, labels):
        return (1.0 * SmoothedLabels(0.3))(student_logits=HeadLogits(hidden, weight, bias), labels=labels)[0]

    weight, bias = torch.eye(7).double()[:, [0, 1, 2, 5, 6]], longer[0].where(longer[0].isneginf(), 0.0)
    assert near(smoothed(z, weight, bias, moved), SmoothedLabels(0.3)(student_logits=z, labels=y), rtol=1e-6)
    slope = gradient(lambda z: SmoothedLabels(0.3)(student_logits=z, labels=y), z)
    assert near(gradient(smoothed, z, weight, bias, moved), slope, rtol=1e-6, atol=1e-6)
    absent = torch.full((4, 1), -math.inf), torch.full((4,), 5)
    both = [torch.cat([x, absent[0]], 1) for x in (z, 2 * z)]
    assert "does not exist" in refusal(lambda: decoupled_kd(*both, absent[1]))


@pytest.mark.parametrize(
    "term", [SoftTargets(), ReverseKL(), LogitMSE(), DIST(), SoftTargets(standardised=True), CrossEntropy()], ids=repr
)
def test_labels_of_minus_100_do_not_count_where_no_term_looks_at_them(term):
    z, t, y = pair(3, 4, 5)
    y[0, 2:] = y[2, 3] = -100
    objective = 1.0 * term
    found = objective(student_logits=z, teacher_logits=t, labels=y)[0]
    assert near(found, objective(student_logits=z, teacher_logits=t, labels=y, mask=y >= 0)[0])
    maps = [x.movedim(-1, 1) for x in (z, t)]
    if getattr(term, "class_axis", 0) is None:
        term = type(term)(class_axis=1, **(term.options if isinstance(term, SoftTargets) else {}))
        assert near((1.0 * term)(student_logits=maps[0], teacher_logits=maps[1], labels=y)[0], found)


def test_maps_of_labels_that_do_not_exclude_each_other():
    """Each place is an example; without a class axis, a row of a map would be."""
    z, t, _ = pair(2, 1, 3, 4)
    y = (t > 0).double()
    places = [x.movedim(1, -1).reshape(-1, 1) for x in (z, t, y)]
    for loss, term, other, key, flat in (
        (binary_soft_targets, BinarySoftTargets(class_axis=1), t, "teacher_logits", places[1]),
        (binary_cross_entropy, BinaryCrossEntropy(class_axis=1), y, "labels", places[2]),
    ):
        assert "say class_axis=1" in refusal(lambda loss=loss, other=other: loss(z, other))
        right = loss(places[0], flat)
        assert near(loss(z, other, class_axis=1), right)
        assert near(term(student_logits=z, **{key: other}), right)
        mask = torch.rand(2, 3, 4) < 0.5
        masked = loss(places[0], flat, mask=mask.flatten())
        assert near(loss(z, other, class_axis=1, mask=mask), masked)
        assert near(loss(z, other, class_axis=1, mask=mask[:, None]), masked)


def test_advantages_keep_their_digits():
    returns = torch.tensor([256.0, 258.0], dtype=torch.bfloat16)  # whose mean is no number of bfloat16
    assert objectives.advantages(returns, 2).tolist() == [-2, 2]


@pytest.mark.parametrize("kind", ["linear", "mlp", "orthogonal", "conv"])
def test_padding_does_not_reach_a_projector(kind):
    """The gradient of a weight is a product with what went in: zero times NaN is NaN, while the loss is a number."""
    maps = kind == "conv"
    mask = torch.tensor([[True, True, False], [True, True, True]])
    term = 1.0 * HiddenMSE("a", projector=Projector(kind, 4, 4))
    found = []
    for there in (7.0, math.nan):
        torch.manual_seed(0)
        hidden = torch.randn(2, 3, 4)
        hidden[~mask] = there
        hidden = hidden.movedim(-1, 1).unsqueeze(-1) if maps else hidden
        seen = {"student_hidden": {"a": hidden}, "teacher_hidden": {"a": 2 * hidden}}
        loss, _ = term(**seen, hidden_mask=mask.unsqueeze(-1) if maps else mask)
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(term.parameters()))]))
    assert torch.isfinite(found[1]).all() and near(*found, rtol=1e-6)


@pytest.mark.parametrize("term", [RKDDistance("a"), RKDAngle("a"), SimilarityPreserving("a"), InfoNCE("a")], ids=repr)
def test_relations_do_not_look_at_padding(term):
    s, t, _ = pair(3, 4, 2)
    mask = torch.tensor([[True, True, True, False], [True] * 4, [True, True, False, False]])
    seen = {"student_hidden": {"a": s}, "teacher_hidden": {"a": t}}
    found = (1.0 * term)(**seen, hidden_mask=mask)[0]
    for there in (99.0, math.nan):
        s[~mask], t[~mask] = there, -there
        assert near((1.0 * term)(**seen, hidden_mask=mask)[0], found)
    assert "pass hidden_mask" in refusal(lambda: (1.0 * term)(**seen, mask=mask))


def test_sparse_entries_of_nothing_are_not_there():
    """Padding of a shorter list would be a token that the teacher excludes, and whose share the rest lacks."""
    z, _, _ = pair(2, 5)
    short = SparseTargets(torch.tensor([[3], [1]]), torch.tensor([[0.6], [0.2]]).double(), 5, rest=True)
    padded = SparseTargets(
        torch.tensor([[3, 0], [0, 1]]), torch.tensor([[0.6, 0.0], [0.0, 0.2]]).double(), 5, rest=True
    )
    assert near(sparse_forward_kl(z, padded), sparse_forward_kl(z, short))
    assert near(gradient(sparse_forward_kl, z, padded), gradient(sparse_forward_kl, z, short))
    nothing = SparseTargets(torch.tensor([[0, 0]]), torch.zeros(1, 2).double(), 5, rest=True)
    assert sparse_forward_kl(z[:1], nothing) == 0
    rows = SparseTargets(
        torch.cat([padded.tokens, nothing.tokens]),
        torch.cat([padded.probabilities, nothing.probabilities]),
        5,
        rest=True,
    )
    hidden = torch.cat([z, z[:1]]).requires_grad_()
    dense, _ = (1.0 * SparseForwardKL())(student_logits=hidden * 1.0, teacher_logits=rows)
    (right,) = torch.autograd.grad(dense, hidden)
    fused, _ = (1.0 * SparseForwardKL())(student_logits=HeadLogits(hidden, torch.eye(5).double()), teacher_logits=rows)
    assert near(fused, dense) and near(torch.autograd.grad(fused, hidden)[0], right)


@pytest.mark.parametrize("surer", [30.0, 95.0, 120.0])
def test_what_no_probability_of_single_precision_holds_is_learned_of_the_rest(surer):
    """From hidden states: of e⁻⁹⁵ the sum has few digits, of e⁻¹²⁰ none; the logarithm has all."""
    targets = SparseTargets(torch.tensor([[0]]), torch.tensor([[0.75]]), 4, rest=True)
    z, terms = torch.tensor([[surer, 0.0, 0.0, -1.0]]), 1.0 * SparseForwardKL() + 0.5 * CrossEntropy()

    def loss(student, targets):
        return terms(student_logits=student, teacher_logits=targets, labels=torch.tensor([0]))[0]

    exact = gradient(loss, z.double(), targets.to(torch.float64))
    found = gradient(lambda h: loss(HeadLogits(h, torch.eye(4)), targets), z)
    assert near(found, exact.float(), rtol=1e-5)


def test_half_precision_is_a_distribution_for_every_term():
    """The rounding of bfloat16 is judged by that of float32 once it has been made wider."""
    hidden, weight, p = torch.randn(64, 8), torch.randn(100, 8), (2 * torch.randn(64, 100)).softmax(-1)
    kept = p.topk(100)
    head, targets = HeadLogits(hidden, weight), SparseTargets(kept.indices, kept.values.bfloat16(), 100)
    assert (p.bfloat16().double().sum(-1) - 1).abs().max() > 1e-3
    assert "not refused" in refusal(lambda: (1.0 * SparseForwardKL())(student_logits=head, teacher_logits=targets))
    assert "not refused" in refusal(lambda: SmoothedLabels()(student_logits=head.dense(), labels=p.bfloat16()))
    assert near(objectives.smooth_labels(p.bfloat16(), 100).sum(-1), torch.ones(64), rtol=1e-6)


def test_labels_say_where_the_classes_are():
    """Of maps and their labels, the axis of the classes is asked for where the labels say it."""
    z, t, _ = pair(2, 3, 4, 5)
    y = torch.randint(5, (2, 3, 4))
    assert "not refused" in refusal(lambda: distillation_loss(z, t, y, soft_weight=0.5))
    flat = distillation_loss(z.reshape(-1, 5), t.reshape(-1, 5), y.flatten(), soft_weight=0.5)
    assert near(distillation_loss(z, t, y, soft_weight=0.5), flat)


def test_unlabelled_images_and_misshapen_labels():
    """A label of −100 is no class, nor one that is left out; labels of another shape are taken."""
    x, y = torch.randn(8, 6), torch.arange(8) % 3
    unlabelled = Examples(x, y.where(torch.arange(8) > 1, -100))
    recipe = replace(BRIEF, batch_size=8, epochs=1)
    run = partial(fit, nn.Linear(6, 3), CrossEntropy(), train=unlabelled, validation=unlabelled, recipe=recipe)
    assert "not refused" in refusal(run)
    (entry,) = run()
    assert math.isfinite(entry["loss"]) and math.isfinite(entry["validation"]["cross_entropy"])
    for labels in (y[:, None], F.one_hot(y)):
        with pytest.raises(ValueError, match="do not fit logits"):
            fit(nn.Linear(6, 3), CrossEntropy(), train=Examples(x, labels), recipe=recipe)
    soft = Examples(x, torch.randn(8, 3).softmax(1).bfloat16())
    assert "not refused" in refusal(
        lambda: fit(nn.Linear(6, 3), SmoothedLabels(), train=soft, validation=soft, recipe=recipe)
    )


def test_gradient_norms_leave_out_frozen_layers():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    objective = 1.0 * CrossEntropy()
    total, values = objective(student_logits=model(torch.ones(1, 3)), labels=torch.tensor([0]))
    norms = objective.gradient_norms(values, model.parameters())
    total.backward()
    by_hand = sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None).sqrt()
    assert near(norms["CrossEntropy"], by_hand, rtol=1e-6)
    assert "none of these requires a gradient" in refusal(lambda: objective.gradient_norms(values, [model[0].weight]))


# What users ask for


def test_soft_labels():
    z, t, y = pair(6, 3)
    soft = 0.7 * F.one_hot(y, 3).double() + 0.3 * F.one_hot(y.flip(0), 3).double()
    mixed = 0.7 * cross_entropy(z, y) + 0.3 * cross_entropy(z, y.flip(0))
    assert near(CrossEntropy()(student_logits=z, labels=soft), mixed)
    smooth = 0.9 * mixed + 0.1 * cross_entropy(z, torch.full_like(z, 1 / 3))
    assert near(SmoothedLabels(0.1)(student_logits=z, labels=soft), smooth)
    for term in (DecoupledKD(), PermutedSoftTargets(), SpreadSoftTargets()):
        said = refusal(lambda term=term: term(student_logits=z, teacher_logits=t, labels=soft))
        assert said.startswith(type(term).__name__) and "soft labels" in said
    head = HeadLogits(torch.zeros(6, 2), torch.zeros(3, 2))
    assert "CrossEntropy" in refusal(lambda: (1.0 * CrossEntropy())(student_logits=head, labels=soft.float()))
    model = nn.Linear(3, 3)
    examples = Examples(z.float(), soft.float())
    objective = CrossEntropy() + SoftTargets() + HiddenMSE("")
    try:
        history = fit(
            model,
            objective,
            train=examples,
            teacher=nn.Linear(3, 3),
            validation=examples,
            recipe=replace(QUICK, batch_size=3),
        )
    except (ValueError, TypeError, RuntimeError) as error:
        history = error
    assert isinstance(history, list), history
    with torch.no_grad():
        assert near(
            history[-1]["validation"]["cross_entropy"], cross_entropy(model(z.float()), soft.float()), rtol=1e-5
        )


def test_vocabularies_of_more_than_16_bits(tmp_path):
    ids, large = [1, 70_000, 65_536, 2, 3, 99_999, 7], 100_000
    tokens = Tokens(numbered(ids, large), 3, torch.ones(large, dtype=torch.long))
    inputs, labels, _ = next(tokens.batches(2))
    assert inputs.flatten().tolist() == ids[:6] and labels.flatten().tolist() == ids[1:]
    (tmp_path / "ids.bin").write_bytes(np.array(ids, dtype=np.uint32).tobytes())
    assert torch.equal(mapped(tmp_path / "ids.bin", large), tokens.labels)
    small = Tokens(numbered([0, 65_535, 3, 4], 65_536), 3, torch.ones(65_536, dtype=torch.long))
    assert small.labels.dtype == torch.int16 and next(small.batches(1))[0].tolist() == [[0, 65_535, 3]]


class CountsOn(nn.Module):
    """Writes the next number, whatever was before."""

    vocabulary, context = 10, 99

    def cache(self, batch):
        return type("Forgets", (), {"rewind": lambda self, lengths: None})()

    def forward(self, tokens, cache=None):
        return 90.0 * F.one_hot((tokens + 1) % 10, 10).float()


def test_nothing_is_learned_after_the_end_of_a_text():
    prompts = torch.tensor([[1, 2], [5, 9], [7, 7]])
    assert generate(CountsOn(), prompts, tokens=4, stop=9).tolist() == [
        [1, 2, 3, 4, 5, 6], [5, 9, 0, 1, 2, 3], [7, 7, 8, 9, 0, 0]]  # fmt: skip
    assert generate(CountsOn(), prompts[2:], tokens=4).tolist() == [[7, 7, 8, 9, 0, 1]]
    assert generate(CountsOn(), prompts[2:], tokens=4, stop=(8, 9)).tolist() == [[7, 7, 8, 0, 0, 0]]
    inputs = torch.tensor([[7, 7, 0, 0, 0]])
    generator = torch.Generator().manual_seed(0)
    _, labels = OwnText(prompt=2, stop=9)(CountsOn(), inputs, inputs, 0.5, generator)
    assert labels.tolist() == [[-100, 8, 9, -100, -100]]
    assert repr(OwnText()) == "OwnText(prompt=32, probability=1.0, temperature=1.0, after=0.0, copies=1)"


def test_labels_that_do_not_exclude_each_other():
    z, t, _ = pair(4, 3)
    y = (t > 0).double()
    for T in (1.0, 4.0, 50.0):
        assert near(binary_soft_targets(z, t, temperature=T), reference.binary_soft_targets(z, t, T).mean())
        slope = reference.binary_soft_targets_gradient(z, t, T) / 4
        assert near(gradient(binary_soft_targets, z, t, temperature=T), slope)
    assert near(binary_cross_entropy(z, y), F.binary_cross_entropy_with_logits(z, y) * 3)
    two = torch.stack([z, torch.zeros_like(z)], -1), torch.stack([t, torch.zeros_like(t)], -1)
    assert near(binary_soft_targets(z, t), 3 * soft_targets(*two))
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[0, 0] = mask[3] = False
    z[~mask] = math.nan
    found = gradient(binary_soft_targets, z, t, mask=mask)
    assert near(found[1:3] * 3, gradient(binary_soft_targets, z[1:3], t[1:3]) * 2) and not found[~mask].any()
    assert "labels.float()" in refusal(lambda: BinaryCrossEntropy()(student_logits=t, labels=y.long()))
    assert "0 … 1" in refusal(lambda: BinaryCrossEntropy()(student_logits=t, labels=y + 0.5))
    assert "logits.unsqueeze(-1)" in refusal(lambda: binary_soft_targets(t[0], t[0]))
    assert near(BinarySoftTargets()(student_logits=t + 1, teacher_logits=t, labels=y), binary_soft_targets(t + 1, t))


# ---------------------------------------------------------------- sentences about results

RATE = Quantity("accuracy", "points", 100, 1)


def test_an_interval_that_touches_zero_decides_nothing():
    touching = {"hint": [0.9, 0.1, 0.8], "alone": [0.2, 0.3, 0.25]}
    said = statements.above("hint", "alone", touching, RATE)
    assert not said.holds and "not told apart" in said.text


def test_a_smaller_number_is_not_called_above():
    refused = []
    for how in ({"factor": 0.5}, {"by": -0.5}):
        try:
            statements.above("hint", "alone", {"hint": 0.3, "alone": 0.5}, RATE, **how)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) == 2 and all("calls a smaller number" in sentence for sentence in refused)


def test_a_statement_is_tried_on_evidence_to_the_contrary():
    def free(of):
        return statements.Said("kd leads", frozenset(["kd leads"]), True, (("kd", "alone"),))

    refused = []
    try:
        statements.stated(free, evidence({"kd": 0.6, "alone": 0.5}, RATE), "…")
    except statements.Survivor as survivor:
        refused.append(str(survivor))
    assert refused and "exchanged" in refused[0] and "signs turned" in refused[0] and "added" in refused[0]


def of_all_runs(spec):
    """A record that any run has, by which all that a plan may grow to is known."""
    return {"test": {}, "epochs": {name: [0.5] for name in ("validation.bits_per_byte", "validation.accuracy")}}


def test_a_plan_brings_the_teacher_of_its_students():
    specs = held_out(of_all_runs)
    assert {spec.teacher.hash for spec in specs if spec.teacher} <= {spec.hash for spec in specs}


def test_smoothing_stays_below_one_however_far_its_grid_grows():
    smoothings = [grown.objective("smoothed", 3.0**steps).terms[0].smoothing for steps in range(3)]
    assert smoothings == [0.1, 0.25, 0.5]  # the odds are multiplied: one to nine, to three, to one


def test_what_no_run_has_reached_counts_as_the_longest_that_was_run():
    tokens = [1, 1, 4, 4]
    alone, distilled = measured_curve(tokens, [3.0, 3.01, 2.0, 2.01]), measured_curve(tokens, [2.0, 2.01, 1.0, 1.01])
    found = worth(distilled, alone, 4.0)
    assert found.low == 1 and found.high == math.inf


def test_a_run_that_diverged_is_not_waited_for():
    specs = [plans.first_distillation_live("digits", "float32", seed=seed)[0] for seed in range(3)]
    ended = {
        s.hash: {"recipe": {"seed": s.recipe.seed}, "test": {"accuracy": 0.5} if s.recipe.seed else None} for s in specs
    }
    assert Results("of one's own", tuple(specs), ended).complete([specs[0].arm], at_least=3)


def test_who_leads_is_judged_over_all_arms():
    said = statements.leads("forward KL", {"skewed": 0.40, "forward KL": 0.55, "labels": 0.55}, RATE)
    assert not said.holds and "labels" in said.text


def test_the_best_of_many_is_judged_as_chosen_by_its_mean():
    """Ten arms of three runs; the lead of the best lies between what Dunnett's intervals ask and what Tukey's do."""
    runs = [[1.0, 0.0, -1.0], [0.0, -1.0, 1.0], [-1.0, 1.0, 0.0]]
    values = {f"a{i}": runs[i % 3] for i in range(10)}
    of, others = evidence(values, RATE), list(values)[:9]
    named, chosen = (of.differences("a9", others, correction=c)["a0"].low for c in ("dunnett", "tukey"))
    values["a9"] = [v - (named + chosen) / 2 for v in values["a9"]]
    of = evidence(values, RATE)
    assert of.differences("a9", others)["a0"].low > 0, "enough for an arm that was named beforehand"
    assert not statements.leads("a9", of).holds
    study = SimpleNamespace(
        mean=lambda arm, _: summary(values[arm]),
        against=lambda control, _, arms, **how: against(of.values, control, arms, **how),
    )
    assert answers.leaders(study, RATE, list(values)) == ("a9", others)


def test_arms_above_a_level_are_so_at_once():
    """Three runs of each: the interval of one arm alone lies above the level, and of ten arms together it does not."""
    values = {f"a{i}": [0.5, 0.51, 0.52] for i in range(10)}
    assert statements.only(["a0"], values, RATE, above=48, among=["a0"]).holds
    assert not statements.only(list(values), values, RATE, above=48, among=Among("all", list(values))).holds


def test_a_law_that_its_own_runs_refuse_is_none():
    tokens = np.repeat([0.25, 1.0, 4.0, 16.0], 2)
    losses = 1.7 + 0.6 * tokens**-0.4 + 0.05 * (tokens == 1.0) + 1e-3 * np.tile([1, -1], 4)
    refused = []
    try:
        fit_power_law(tokens, losses)
    except ValueError as error:
        refused.append(str(error))
    assert refused and "stray from it by more than runs of one length scatter" in refused[0]


def test_records_are_not_blamed_on_the_processor():
    of = replace(evidence({"kd": 0.5, "alone": 0.6}, RATE), source="records")
    assert "processor" not in statements.above("kd", "alone", of).markup


# Every field of a recipe, looked at from inside

PLAIN = Recipe(
    epochs=2, batch_size=8, optimizer="sgd", learning_rate=0.01, momentum=0.0, schedule="constant", milestones=(1,), decay=0.5,
    warmup_epochs=0.0, weight_decay=0.0, augment=False, precision="float32", seed=0, epoch_examples=24,
)  # fmt: skip


def inside(objective=None, **changes):
    """What is seen from inside a training, three steps an epoch: of each look the inputs, dtype and mode; of each step the optimiser."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 32, 32), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(40) % 3, (0.5,) * 3, (0.25,) * 3)
    seen = SimpleNamespace(student=[], teacher=[], steps=[], plain=next(split.batches(40, order=torch.arange(40)))[0])

    def watched(seed, looks):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
        model.register_forward_hook(lambda m, inputs, z: looks.append((inputs[0].clone(), z.dtype, m.training)))
        return model

    def step(optimizer, *_):
        groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        gradients = [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]
        seen.steps.append((type(optimizer), groups, gradients))

    hook = register_optimizer_step_pre_hook(step)
    try:
        objective = SoftTargets() if objective is None else objective
        recipe = replace(PLAIN, **changes)
        seen.history = fit(
            watched(0, seen.student), objective, train=split, teacher=watched(1, seen.teacher), recipe=recipe
        )
    finally:
        hook.remove()
    seen.rates = [groups[0]["lr"] for _, groups, _ in seen.steps]
    return seen


def _plain_pictures(seen, looks):
    """Whether every picture looked at is one of the data, as it is."""
    return all((x == seen.plain).flatten(1).all(1).any() for inputs, *_ in looks for x in inputs)


def _precision():
    def dtypes(precision):
        seen = inside(precision=precision)
        return {dtype for _, dtype, _ in seen.student}, {dtype for _, dtype, _ in seen.teacher}

    return all(
        dtypes(name) == ({dtype}, {dtype}) for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    )


def _average():
    """After one step, an average is so much of what was before it, and the rest of what is after it."""

    def left(decay):
        torch.manual_seed(0)
        student = nn.Linear(6, 3)
        before = student.weight.detach().clone()
        fit(student, CrossEntropy(), train=flat_examples(8), recipe=replace(BRIEF, ema_decay=decay))
        return before, student.weight.detach()

    (before, after), (_, mean), (_, longer) = left(0.0), left(0.1), left(0.99)
    return near(mean, 0.1 * before + 0.9 * after, rtol=1e-5) and near(longer, (2 * before + 9 * after) / 11, rtol=1e-5)


def left_after(errors, **changes):
    """The epoch whose weights the student is left with, where validation says these errors; and how many epochs there were."""
    told, weights, student = iter(errors), [], nn.Linear(6, 3)

    def measure(model, split):
        weights.append(model.weight.detach().clone())
        return {"error": next(told)}

    recipe = replace(BRIEF, epochs=len(errors), **changes)
    fit(student, CrossEntropy(), train=flat_examples(), validation=flat_examples(), measure=measure, recipe=recipe)
    return 1 + [torch.equal(student.weight, w) for w in weights].index(True), len(weights)


def _clipping():
    """The whole gradient has the length asked for: that of the student and of what the objective learns, together."""

    def lengths(limit):
        seen = inside(SoftTargets(temperature=LearnedTemperature(1, 21)), max_gradient_norm=limit)
        return torch.stack([torch.cat([g.flatten() for g in gradients]).norm() for *_, gradients in seen.steps])

    return near(lengths(1e-3), torch.full((6,), 1e-3), rtol=1e-2) and bool((lengths(0.0) > 1e-2).all())


def _optimizer():
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    seen = {name: inside(optimizer=name, epochs=1) for name in kinds}
    right = all({kind for kind, *_ in seen[name].steps} == {kinds[name]} for name in kinds)
    return right and seen["adamw"].steps[0][1][0]["betas"] == (0.9, 0.95)


def _augment():
    cropped, plain = inside(augment=True, epochs=1), inside(epochs=1)
    return _plain_pictures(plain, plain.student) and not _plain_pictures(cropped, cropped.student)


def _teacher_view():
    def alike(view):
        seen = inside(augment=True, teacher_view=view, epochs=1)
        return [torch.equal(a, b) for (a, *_), (b, *_) in zip(seen.student, seen.teacher, strict=True)]

    return all(alike("same")) and not any(alike("own"))


def _mixup():
    """Each picture lies between two of the data, and the teacher sees the same mixture, in its own view, too."""

    def between(seen):
        flat, ends = seen.plain.flatten(1), torch.cat([inputs for inputs, *_ in seen.student]).flatten(1)
        way = flat[:, None] - flat[None]
        share = ((ends[:, None, None] - flat[None, None]) * way).sum(-1) / way.square().sum(-1).clamp(min=1e-9)
        left = (flat + share[..., None] * way - ends[:, None, None]).abs().amax(-1)
        good = (left < 1e-3) & (share >= 0) & (share <= 1)
        return bool(good.flatten(1).any(1).all()) and not _plain_pictures(seen, seen.student)

    def alike(view):
        seen = inside(SoftTargets(temperature=4), mixup=True, teacher_view=view, epochs=1)
        return between(seen) and all(near(a, b) for (a, *_), (b, *_) in zip(seen.student, seen.teacher, strict=True))

    return alike("same") and alike("own")


def _teacher_mode():
    return all(
        {mode for *_, mode in inside(teacher_mode=name, epochs=1).teacher} == {name == "train"}
        for name in ("eval", "train")
    )


def _micro_batches():
    whole, parts = inside(epochs=1), inside(epochs=1, micro_batches=4)
    sizes = [len(inputs) for inputs, *_ in parts.student] == 12 * [2] and [len(i) for i, *_ in whole.student] == 3 * [8]
    return sizes and all(
        near(a, b, rtol=1e-4, atol=1e-6)
        for (*_, one), (*_, other) in zip(whole.steps, parts.steps, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def _seed():
    one, same, other = (inside(seed=seed, epochs=1).student for seed in (0, 0, 1))
    return torch.equal(one[0][0], same[0][0]) and not torch.equal(one[0][0], other[0][0])


def _order_is_new_each_epoch_and_whole():
    seen = inside(epoch_examples=None)
    return len(seen.steps) == 10 and len({x.sum().item() for inputs, *_ in seen.student[:5] for x in inputs}) == 40


FROM_INSIDE = {
    "epochs": lambda: (len(inside(epochs=3).steps), len(inside(epochs=3).history)) == (9, 3),
    "batch_size": lambda: {len(inputs) for inputs, *_ in inside(batch_size=12).student} == {12},
    "optimizer": _optimizer,
    "learning_rate": lambda: inside(learning_rate=0.02).rates == 6 * [0.02],
    "momentum": lambda: {g["momentum"] for _, groups, _ in inside(momentum=0.7).steps for g in groups} == {0.7},
    "schedule": lambda: near(
        inside(schedule="cosine").rates, [0.005 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    ),
    "milestones": lambda: near(
        inside(schedule="step", epochs=3, milestones=(1, 2)).rates, [0.01 * 0.5 ** (step // 3) for step in range(9)]
    ),
    "decay": lambda: near(inside(schedule="step", decay=0.1).rates, 3 * [0.01] + 3 * [0.001]),
    "warmup_epochs": lambda: near(inside(warmup_epochs=1.0).rates, [0, 0.01 / 3, 0.02 / 3, 0.01, 0.01, 0.01]),
    "weight_decay": lambda: {groups[0]["weight_decay"] for _, groups, _ in inside(weight_decay=0.3).steps} == {0.3},
    "augment": _augment,
    "precision": _precision,
    "seed": _seed,
    "teacher_view": _teacher_view,
    "teacher_mode": _teacher_mode,
    "mixup": _mixup,
    "epoch_examples": lambda: len(inside(epoch_examples=16).steps) == 4 and _order_is_new_each_epoch_and_whole(),
    "micro_batches": _micro_batches,
    "max_gradient_norm": _clipping,
    "ema_decay": _average,
    "best_by": lambda: left_after([2, 1, 3], best_by="lowest error") == (2, 3) and left_after([2, 1, 3]) == (3, 3),
    "patience": lambda: left_after([1, 2, 3, 0], best_by="lowest error", patience=2) == (1, 3),
}


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe)])
def test_every_field_of_a_recipe_is_seen_from_inside(field):
    """An option does nothing, and nobody notices: autocast is off, the objective's own gradient is not clipped."""
    assert FROM_INSIDE[field]()


def test_hidden_states_of_prompts_count_in_micro_batches():
    """In micro-batches hidden states are divided by the tokens with a label, and all that are read are matched."""
    inputs, labels, _ = next(sequences().batches(8))
    prompted = Examples(inputs, labels.masked_fill(torch.arange(6) <= torch.arange(8)[:, None] % 5, -100))

    def trained(parts):
        student, recipe = words(), replace(BRIEF, micro_batches=parts)
        fit(student, CrossEntropy() + HiddenMSE("embedding"), train=prompted, teacher=words(1), recipe=recipe)
        return student.embedding.weight.detach()

    assert near(trained(4), trained(1))


def test_the_deviation_of_a_group_is_that_of_a_sample():
    """GRPO's advantages divide by a deviation over G and not over G − 1."""
    deviation = math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2)
    found = objectives.advantages(torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64), 3, "standardised")
    assert near(found, torch.tensor([-2.0, -1.0, 3.0], dtype=torch.float64) / (deviation + 1e-4))


# What would go on unseen


class MeanOfLogits(Term):
    """A term of one's own that divides by its own part of the batch alone."""

    needs_teacher = False

    def forward(self, *, student_logits, **_):
        return student_logits.mean()


class SumByCount(MeanOfLogits):
    def forward(self, *, student_logits, count=None, **_):
        return student_logits.mean(-1).sum() / (len(student_logits) if count is None else count)


def test_a_term_that_ignores_the_count_has_no_micro_batches():
    """A term that takes no count weighs M times as much in M micro-batches."""

    def trained(term, parts):
        torch.manual_seed(0)
        student = nn.Linear(6, 3)
        fit(student, term, train=flat_examples(), recipe=replace(BRIEF, micro_batches=parts))
        return student.bias.detach()

    assert near(trained(SumByCount(), 4), trained(SumByCount(), 1), rtol=1e-5)
    assert near(trained(MeanOfLogits(), 1), trained(SumByCount(), 1), rtol=1e-5)
    assert said(ValueError, "MeanOfLogits takes no count", lambda: trained(MeanOfLogits(), 4))
    for term in (PermutedSoftTargets(), SpreadSoftTargets()):
        checks.check_counts(term, 4)


class Doubled(nn.Sequential):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


class Halved(nn.Sequential):
    def forward(self, inputs):
        # as it is, and half of it
        return super().forward(inputs) / 2


def test_a_run_does_not_go_on_with_other_inputs_or_another_forward_pass(tmp_path):
    """A checkpoint is taken for that of a run with other inputs, another activation, other code, and goes on."""
    train = flat_examples()

    def run(path, kind=nn.Sequential, between=nn.ReLU, data=train, **changes):
        torch.manual_seed(0)
        student = kind(nn.Linear(6, 3), between())
        return fit(student, CrossEntropy(), train=data, recipe=replace(BRIEF, **changes), checkpoint=tmp_path / path)

    for kind in (nn.Sequential, Doubled):
        run(kind.__name__, kind)
    assert len(run("Sequential")) == len(run("Doubled", Doubled)) == 1
    other = partial(said, checkpoint.CheckpointError)
    assert other("(other forward pass)", lambda: run("Sequential", between=nn.GELU))
    assert other("(other forward pass)", lambda: run("Doubled", Halved))
    assert other("(other inputs)", lambda: run("Sequential", data=Examples(train.inputs.flip(0), train.labels)))
    assert other("(other recipe: learning_rate 0.1 in it and 0.2 here)", lambda: run("Sequential", learning_rate=0.2))


def said(kind, sentence, function):
    """Whether a function refuses with a sentence."""
    try:
        function()
    except kind as error:
        return sentence in str(error)
    return False


@pytest.mark.parametrize("way", ["interrupted", "full disk"])
def test_each_epoch_is_reported_once(tmp_path, way, monkeypatch):
    """An epoch whose report is interrupted is never reported, or one whose checkpoint failed twice."""
    epochs, write = [], Path.write_bytes

    def report(entry):
        epochs.append(entry["epoch"])
        if way == "interrupted" and entry["epoch"] == 2:
            raise KeyboardInterrupt

    def full(path, content):
        if epochs == [1] and way == "full disk":
            raise OSError
        return write(path, content)

    def run(report):
        torch.manual_seed(0)
        recipe = replace(BRIEF, epochs=3)
        return fit(
            nn.Linear(6, 3),
            CrossEntropy(),
            train=flat_examples(),
            recipe=recipe,
            checkpoint=tmp_path / "run",
            report=report,
        )

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises((KeyboardInterrupt, OSError)):
        run(report)
    monkeypatch.undo()
    run(lambda entry: epochs.append(entry["epoch"]))
    assert epochs == [1, 2, 3]


class Noisy(torch.utils.data.Dataset):
    """Pairs that draw noise, as dictionaries or as tuples; with none, they draw nothing."""

    def __init__(self, noise=1.0, named=False, drawn_by=None):
        self.pairs, self.noise, self.named, self.drawn_by = flat_examples(), noise, named, drawn_by

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        x, y = self.pairs.inputs[index], self.pairs.labels[index]
        if self.noise and index >= len(self) // 2:  # the first batch does not show it
            x = -x if torch.rand(1, generator=self.drawn_by) < self.noise else x
        return {"x": x, "labels": y} if self.named else (x, y)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_data_set_that_draws_is_told_from_one_that_does_not(named, batch_size):
    """Also one that draws seldom, or from a generator of its own; and the generators stay where they are."""
    own = torch.Generator().manual_seed(0)
    before = torch.get_rng_state()
    for data, drawn in (
        (Noisy(0.0, named), False),
        (Noisy(1e-9, named), True),
        (Noisy(0.5, named, drawn_by=own), True),
    ):
        data.pairs.inputs[0, 0] = math.nan  # which is not equal to itself
        assert Loaded(torch.utils.data.DataLoader(data, batch_size)).augments == drawn
    noise = torch.utils.data.DataLoader(
        Noisy(0.0), 8, collate_fn=lambda pairs: (torch.randn(len(pairs), 6), torch.zeros(len(pairs)))
    )
    assert Loaded(noise).augments
    assert torch.equal(torch.get_rng_state(), before)
    words = torch.utils.data.DataLoader([("a", 0), ("b", 1)], 2)
    assert said(TypeError, "inputs must be a tensor", lambda: Loaded(words).augments)


class Opened(torch.utils.data.Dataset):
    """A file of numbers that is opened by whoever reads it first, as data sets for workers are."""

    def __init__(self, path, n):
        self.path, self.n, self.file = path, n, None

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if self.file is None:
            self.file = open(self.path, "rb", buffering=0)
        self.file.seek(8 * index)
        return torch.tensor([float(np.frombuffer(self.file.read(8), dtype=np.int64)[0])]), index


def test_workers_do_not_share_a_file_that_a_question_opened(tmp_path):
    """What is asked of a data set before its workers are forked opens its file for all of them: they read each other's examples."""
    np.arange(64).tofile(tmp_path / "numbers")
    data = Opened(tmp_path / "numbers", 64)
    loaded = Loaded(torch.utils.data.DataLoader(data, 8, num_workers=2))
    assert loaded.identity and not loaded.augments and data.file is None
    assert all(torch.equal(inputs[:, 0].long(), labels) for inputs, labels, _ in loaded.batches(8))


def test_what_is_not_augmented_says_so():
    """Pictures in Examples are not cropped, and a teacher of vectors has no view of its own; both say nothing."""
    pictures = Examples(torch.zeros(8, 3, 4, 4), torch.arange(8) % 3)

    def run(train, width, **changes):
        student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(width, 3)) for _ in range(2))
        return lambda: fit(student, SoftTargets(), train=train, teacher=teacher, recipe=replace(BRIEF, **changes))

    assert said(ValueError, "neither cropped nor flipped: say augment=False", run(pictures, 48, augment=True))
    assert said(ValueError, "a teacher has no view of its own", run(flat_examples(), 6, teacher_view="own"))
    still = torch.utils.data.TensorDataset(flat_examples().inputs, flat_examples().labels)
    assert said(
        ValueError,
        "examples for which the DataLoader",
        run(torch.utils.data.DataLoader(still, 8), 6, teacher_view="own"),
    )
    run(torch.utils.data.DataLoader(Noisy(), 8), 6, teacher_view="own")()


def test_labels_with_two_axes_are_not_taken_for_a_text():
    """Labels of shape (n, 1) are said to have a mask that nobody gave."""
    train = flat_examples()
    column = Examples(train.inputs, train.labels[:, None])
    run = lambda: fit(nn.Linear(6, 3), CrossEntropy(), train=column, recipe=BRIEF)  # noqa: E731
    assert said(ValueError, "labels of shape (8, 1) do not fit logits of shape (8, 3)", run)


# Tasks of one's own


def test_labels_of_a_regression_are_of_their_examples():
    """Outputs (B, 1) and labels (B,) make B² pairs."""
    z, y = torch.tensor([[1.0], [5.0]]), torch.tensor([3.0, 5.0])
    assert objectives.squared_error(z, y) == 2
    assert (z - y).square().mean() != 2


def test_a_hint_compares_what_lies_at_one_place():
    """The student sees a part of the picture, and its map is compared with the teacher's of the whole."""
    whole, boxes = (
        torch.rand(1, 2, 4, 4),
        {"student": torch.tensor([[0.5, 0.0, 1.0, 0.5]]), "teacher": torch.tensor([[0.0, 0.0, 1.0, 1.0]])},
    )
    part = whole[:, :, 2:, :2]
    found = views.aligned({"a": whole}, {"a": part}, [("a", "a")], boxes)["a"]
    assert near(found, part, rtol=1e-6) and not near(
        views.aligned({"a": whole}, {"a": part}, [], boxes)["a"].mean(), part.mean()
    )
    unknown = lambda: views.aligned({"a": whole}, {"a": part}, [("a", "a")], {})  # noqa: E731
    assert said(ValueError, "not known where in the picture", unknown)


def test_zeros_of_a_service_stand_for_something():
    """What a service rounds to zero is, at a temperature, a class that does not exist."""
    p = torch.tensor([[0.7, 0.3, 0.0]])
    ask = teachers.FunctionTeacher(lambda x: p, "three", gives="probabilities", smallest=1e-2)
    assert near(ask(torch.zeros(1, 1)).softmax(-1), torch.tensor([[0.7, 0.3, 0.01]]) / 1.01, rtol=1e-6)
    plain = teachers.FunctionTeacher(lambda x: p, "three", gives="probabilities")
    assert said(ValueError, "gives probability zero", lambda: plain(torch.zeros(1, 1)))


def test_kept_logits_are_of_what_the_student_sees(tmp_path):
    """Logits of whole pictures teach crops of them, silently."""
    split = Split(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.arange(8) % 3, (0.5,) * 3, (0.5,) * 3)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3072, 3))
    teachers.write_logits(tmp_path / "logits", teacher, split)
    kept = teachers.CachedLogits(tmp_path / "logits", teacher)
    kept.check_examples(split, [BRIEF])
    assert said(
        ValueError,
        "holds what the teacher says of whole pictures",
        lambda: kept.check_examples(split, [replace(BRIEF, augment=True)]),
    )
    for noise in (0.0, 1.0):
        split = Loaded(torch.utils.data.DataLoader(Noisy(noise), 8))
        teachers.write_logits(tmp_path / f"of {noise}", nn.Linear(6, 3), split)
        check = partial(teachers.CachedLogits(tmp_path / f"of {noise}").check_examples, split, [BRIEF])
        if noise:
            assert said(ValueError, "the DataLoader's data set draws others", check)
        else:
            check()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_resumed_optimiser_keeps_its_state_in_the_layout_of_its_parameter(tmp_path, optimizer):
    student = nn.Conv2d(8, 4, 3).to(memory_format=torch.channels_last)
    objective, recipe = 1.0 * CrossEntropy(), Recipe(optimizer=optimizer)
    first, second = (optimizers.optimizer_of(recipe, student, objective, "cpu") for _ in range(2))
    student(torch.randn(2, 8, 5, 5)).square().sum().backward()
    first.step()
    checkpoint.save_run(tmp_path / "run", student, objective, first, {}, {"identity": {}})
    checkpoint.load_run(tmp_path / "run", student, objective, second, {})
    kept = {name: value for name, value in second.state[student.weight].items() if value.shape == student.weight.shape}
    assert kept and all(value.stride() == student.weight.stride() for value in kept.values())
    assert all(torch.equal(value, first.state[student.weight][name]) for name, value in kept.items())


@pytest.mark.parametrize(("mode", "size"), [("train", 8), ("eval", 16)])
def test_a_teacher_in_training_mode_looks_at_each_seeds_batch_alone(monkeypatch, mode, size):
    sizes = []

    class Counting(acceptance.Small):
        def forward(self, images):
            sizes.append(len(images))
            return super().forward(images)

    class OnAnAccelerator(training.loop.Step):
        def look(self, *what):
            self.device = torch.device("meta")  # neither a CPU nor anything to wait for
            try:
                return super().look(*what)
            finally:
                self.device = torch.device("cpu")

    monkeypatch.setattr("kdlab.training.loop.Step", OnAnAccelerator)
    monkeypatch.setattr("kdlab.training.step.autocast", lambda *_: nullcontext())
    monkeypatch.setattr("kdlab.training.step.seed_torch", lambda *_: None)
    how = [Recipe(epochs=1, batch_size=8, epoch_examples=16, seed=seed, teacher_mode=mode) for seed in (0, 1)]
    learners = [training.Learner(acceptance.small(recipe.seed), acceptance.kd(), recipe) for recipe in how]
    training.fit_together(learners, train=acceptance.images(), teacher=Counting())
    assert set(sizes) == {size}


def test_on_another_device_its_streams_are_made_and_float32_is_no_tf32(monkeypatch):
    entered = []

    class Device:
        def __init__(self, device):
            entered.append(device)

        def __enter__(self):
            pass

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(torch.cuda, "device", Device)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    for precision in ("float32", "bfloat16"):
        with determinism.on_device("cuda:1", precision):
            assert torch.backends.cudnn.deterministic
            assert torch.backends.cudnn.allow_tf32 == (precision != "float32")
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic) == before
    assert entered == ["cuda:1", "cuda:1"]


def test_five_students_on_cuda_have_five_seeds(monkeypatch):
    asked = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(by_hand, "round_by_hand", lambda *_: None)
    monkeypatch.setattr(by_hand, "kdlab_round", lambda *_, seeds=(0,), **__: asked.setdefault(len(seeds), list(seeds)))
    monkeypatch.setattr(by_hand, "contest", lambda *_, **__: timing.Contest("", {}, {}, ""))
    by_hand.step(timing.Settings("cuda"))
    assert asked == {1: [0], 5: [0, 1, 2, 3, 4]}
    trained = []
    monkeypatch.setattr(
        training_rounds,
        "fit_together",
        lambda learners, **_: [learners[-1].report(), learners[-1].report(), trained.extend(learners)][:0],
    )
    training_rounds.kdlab_round(
        timing.Settings("cpu", steps=1, batch_size=2), ("resnet8", "resnet8"), acceptance.kd(), seeds=range(3)
    )()
    assert [learner.recipe.seed for learner in trained] == [0, 1, 2]


@pytest.mark.parametrize("name", list(acceptance.TEXTS))
def test_tokens_that_do_not_count_are_computed_and_weigh_nothing(monkeypatch, name):
    """As on a device, where nobody waits to hear how many they are."""
    objective = acceptance.TEXTS[name]()
    objective = objectives.Objective(list(zip(objective.weights[:1], objective.terms[:1], strict=True)))
    torch.manual_seed(1)
    labels = torch.randint(0, 9, (2, 6)).masked_fill(torch.rand(2, 6) < 0.4, -100)

    def found():
        torch.manual_seed(2)
        h, W, b = (torch.randn(*shape).requires_grad_() for shape in ((2, 6, 4), (9, 4), (9,)))
        t, U = torch.randn(2, 6, 5), torch.randn(9, 5)
        total, _ = objective(
            student_logits=HeadLogits(h, W, b), teacher_logits=HeadLogits(t, U), labels=labels, mask=labels != -100
        )
        total.backward()
        return total.detach(), h.grad, W.grad, b.grad

    expected = found()
    monkeypatch.setattr("kdlab.objectives.vocabulary.on_host", lambda mask: False)
    for here, there in zip(expected, found(), strict=True):
        torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-7)


def test_smoothed_labels_are_made_where_the_labels_are():
    made = []

    class Seen(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            made.extend([found.device.type] if isinstance(found, torch.Tensor) else [])
            return found

    labels = torch.zeros(3, dtype=torch.long, device="meta")
    with Seen():
        assert smooth_labels(labels, 4).shape == (3, 4)
    assert set(made) == {"meta"}


def few_words(seed=0, size=6, context=4):
    torch.manual_seed(seed)
    return GPT(size, width=4, layers=1, heads=1, context=context)


def some_text(blocks=4, size=6, context=4):
    row = torch.randint(size, (blocks * context + 1,), generator=torch.Generator().manual_seed(0))
    return Tokens(row.to(torch.int16), context, torch.ones(size, dtype=torch.long))


def test_a_shared_vocabulary_has_two_ways_to_number_it():
    """The teacher's logits are taken by the student's numbers of the tokens."""
    z, t, _ = pair(3, 6)
    ours, theirs = torch.tensor([0, 2, 5]), torch.tensor([4, 1, 0])
    for rest in (False, True):
        term = objectives.SharedVocabulary(ForwardKL(), ours, theirs, rest=rest)
        expected = forward_kl(restrict_vocabulary(z, ours, rest=rest), restrict_vocabulary(t, theirs, rest=rest))
        assert near(term(student_logits=z, teacher_logits=t), expected)


def test_a_teacher_with_its_own_tokeniser_is_read_where_tokens_of_both_end():
    """It is read a token too early, or behind a text that was cut off, where its tokens are not those of the whole text."""
    from kdlab.language import Retokenised, train_tokeniser

    few, many = (train_tokeniser(["to be or not to be " * 20], n) for n in (257, 266))
    teacher = torch.nn.Embedding(266, 266)
    aligned = Retokenised(teacher, many, few)(torch.tensor([few.encode("to be or").ids]))  # to|_be|_or, in bytes
    assert aligned.read[0].tolist() == [False, True, False, False, True, False, False, False]
    own = many.encode("to be or").ids
    assert torch.equal(aligned.values[0, [1, 4]], teacher.weight[own[:2]])
    assert aligned.lengths[0, [1, 4]].tolist() == [3, 0]


def test_a_span_of_two_tokens_is_their_product_and_counts_as_a_whole():
    """A span counts of which a token does not; the mean is over spans, and not over tokens."""
    q, p = torch.tensor([[[0.5, 0.5], [0.25, 0.75], [0.5, 0.5], [0.5, 0.5]]]), torch.tensor([[0.25, 0.0, 0.25, 0.0]])
    lengths = torch.tensor([[2, 0, 2, 0]])
    aligned = objectives.AlignedLogits(q, lengths > 0, lengths, p.log(), torch.zeros(1, 4))
    labels, term = torch.tensor([[0, 1, 1, 0]]), objectives.MergedSpans()
    differs = 0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625)  # of 0.25 and 0.5 · 0.75
    found = [
        (1.0 * term)(student_logits=q.log(), teacher_logits=aligned, labels=x)[0].item()
        for x in (labels, torch.tensor([[0, 1, -100, 0]]))
    ]
    assert found == pytest.approx([differs / 4, differs / 3])


def test_a_text_is_hashed_once_and_again_where_it_has_changed(tmp_path, monkeypatch):
    """A cache is taken for that of a text that has changed in place."""
    hashed, whole, teacher, text = [], caches._text_checksum, few_words(1), some_text()
    monkeypatch.setattr(caches, "_text_checksum", lambda tokens: hashed.append(1) or whole(tokens))
    caches.write_cache(tmp_path / "cache", teacher, text, entries=2)
    cache = caches.TeacherCache(tmp_path / "cache", text, teacher)
    recipe = Recipe(epochs=1, batch_size=2, learning_rate=0.1, augment=False)
    fit(few_words(), 1.0 * SparseForwardKL(), train=text, teacher=cache, recipe=recipe)
    assert len(hashed) == 1
    text.labels[3] = (text.labels[3] + 1) % 6

    def refused():
        try:
            cache.check_text(text)
        except caches.CacheError:
            return True
        return False

    assert refused()


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_whether_logits_are_left_to_the_losses_is_in_a_checkpoint(whose, tmp_path):
    """A run that was fused goes on unfused, with other bits than it would have had; what earlier versions wrote goes on as it did."""
    path, recipe = tmp_path / "run.safetensors", Recipe(epochs=1, batch_size=2, learning_rate=0.1, augment=False)

    def resumed(fused):
        models = {"student": few_words(0), "teacher": few_words(1)}
        models[whose].fused = fused
        try:
            fit(
                models["student"],
                1.0 * ForwardKL(),
                train=some_text(),
                teacher=models["teacher"],
                recipe=recipe,
                checkpoint=path,
            )
        except training.CheckpointError as error:
            return str(error)
        return ""

    assert resumed(True) == resumed(True) == ""
    assert f"{whose}'s logits: fused True in it and False here" in resumed(False)
    tensors, header = checkpoint.load_tensors(path)
    del header["identity"][f"{whose}'s logits"]
    checkpoint.save_tensors(path, tensors, header)
    assert resumed(False) == ""


def test_tied_weights_are_stored_once(tmp_path):
    """Each of the two is read as the other, and a part of a tensor as the whole."""
    whole = torch.arange(12.0).view(3, 4)
    state = {
        "head": whole,
        "embedding": whole,
        "rows": whole[:2],
        "turned": whole.T,
        "other": whole.clone(),
        "none": whole[:0],
        "nothing": whole[:0],
    }
    checkpoint.save_tensors(tmp_path / "a.safetensors", state, {"of": "these"})
    found, header = checkpoint.load_tensors(tmp_path / "a.safetensors")
    assert header == {"of": "these"} and found.keys() == state.keys()
    assert all(found[name].shape == tensor.shape and torch.equal(found[name], tensor) for name, tensor in state.items())
    checkpoint.save_tensors(tmp_path / "b.safetensors", {**state, "embedding": whole.clone()}, {"of": "these"})
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in "ab"]
    assert sizes[1] - sizes[0] > 3 * 4 * 4


class Chain(nn.Module):
    """Writes after each token one that it is always followed by."""

    vocabulary, context = 6, 8

    def __init__(self, *following):
        super().__init__()
        self.logits = 50.0 * F.one_hot(torch.tensor(following), 6).float()

    def cache(self, batch):
        return few_words(context=8).cache(batch)

    def forward(self, tokens, cache):
        cache.lengths = cache.lengths + tokens.shape[1]
        return self.logits[tokens]


def test_a_row_that_has_ended_stays_as_it_is_at_the_end_of_a_context():
    """The rounds of another row write what a draft proposes over one that has ended."""
    verifier, draft = Chain(0, 2, 3, 4, 5, 5), Chain(1, 2, 3, 4, 0, 5)
    prompts, how = (
        torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]),
        {"tokens": 5, "lengths": torch.tensor([4, 1]), "temperature": 0, "stop": 5},
    )
    found = speculate(verifier, draft, prompts, draft_length=3, **how).text
    assert found.tolist() == [[1, 1, 1, 1, 2, 3, 4, 5, 0], 9 * [0]]


def test_labels_are_shifted_as_the_model_itself_shifts_them():
    """A causal language model whose class is not named ForCausalLM is one."""
    import transformers

    from kdlab.huggingface import Distillation

    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    models = (
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)
        ),
        transformers.BertLMHeadModel(transformers.BertConfig(vocab_size=20, is_decoder=True, **shape)),
        transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=20, **shape)),
    )
    tokens = torch.randint(20, (2, 6))
    for model in models:
        own = model.eval()(input_ids=tokens, labels=tokens).loss
        distillation = Distillation(model, None, CrossEntropy())
        found, _ = distillation(model, {"input_ids": tokens, "labels": tokens})
        assert found.item() == pytest.approx(own.item(), rel=1e-5), type(model).__name__


def test_a_teacher_that_goes_by_places_sees_whose_they_are(tmp_path):
    """A cache teaches rows of another text, or of an evaluation, what it says of those that have their number in its own."""
    import transformers

    from kdlab.huggingface import Distillation

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    student, text = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=6, **shape)), some_text()
    caches.write_cache(tmp_path / "cache", few_words(1), text, entries=2)
    rows, _, index = next(text.batches(4))
    cache = caches.TeacherCache(tmp_path / "cache", text)

    def taught(teacher, tokens, index, objective=None):
        objective = objective or SparseForwardKL()
        batch = {"input_ids": tokens, "labels": tokens, "index": index}
        try:
            _, found = Distillation(student, teacher, objective)(student, batch)
        except (CacheError, ValueError) as error:
            return str(error)
        return next(iter(found.values())).item()

    order = torch.tensor([2, 0])
    known = sparse_forward_kl(student(rows[order]).logits[:, :-1], cache(order)[:, :-1]).item()
    assert taught(cache, rows[order], order) == pytest.approx(known, rel=1e-5)
    others = (rows.flip(1), index), (rows, index.flip(0)), (rows[:, :3], index), (rows, index + 1), (rows, index - 1)
    for tokens, places in others:
        assert "their index says" in str(taught(cache, tokens, places))
    assert "cannot be seen without it" in str(taught(caches.TeacherCache(tmp_path / "cache"), rows, index))
    training.write_logits(tmp_path / "logits", few_words(1), Examples(rows, rows[:, 0]))
    assert "into a column" in str(taught(training.CachedLogits(tmp_path / "logits"), rows, index, ForwardKL()))


def test_a_teacher_that_is_filled_up_is_measured_over_the_texts_tokens():
    """What it gives to tokens that are none is taken for a difference to the student."""
    text, student, teacher = some_text(), few_words(0), few_words(1)
    filled = few_words(1, size=8)
    with torch.no_grad():
        filled.load_state_dict({k: x for k, x in teacher.state_dict().items() if "embedding" not in k}, strict=False)
        filled.embedding.weight[:6] = teacher.embedding.weight
    (known,), (found,) = (training.measure_tokens([student], text, teacher=t) for t in (teacher, filled))
    assert found == pytest.approx(known, rel=1e-5)


def test_parts_of_a_batch_add_up_in_any_loop():
    """Ragged texts, sentences with one label each, and pictures: losses of parts add up to that of the whole, padding counts nowhere."""
    import transformers

    from kdlab.huggingface import Distillation

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = transformers.LlamaConfig(vocab_size=20, **shape)
    bert = transformers.BertConfig(
        vocab_size=20, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **shape
    )
    vit = transformers.ViTConfig(
        image_size=4, patch_size=2, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **shape
    )
    tokens, read = torch.randint(20, (4, 6)), (torch.arange(6) < torch.tensor([[6], [2], [3], [5]])).long()
    text = {"input_ids": tokens, "attention_mask": read}
    classes = torch.tensor([0, 1, 2, 0])
    for make, config, batch, layer in (
        (transformers.LlamaForCausalLM, llama, {**text, "labels": tokens.where(read > 0, -100)}, "model.layers.0"),
        (transformers.BertForSequenceClassification, bert, {**text, "labels": classes}, "bert.encoder.layer.0"),
        (
            transformers.ViTForImageClassification,
            vit,
            {"pixel_values": torch.randn(4, 3, 4, 4), "labels": classes},
            "vit",
        ),
    ):
        student, teacher = make(config), make(config)
        distillation = Distillation(student, teacher, CrossEntropy() + 10 * HiddenMSE(layer))
        whole, _ = distillation(student, batch)
        parts = [{k: v[part] for k, v in batch.items()} for part in (slice(1), slice(1, 4))]
        counts = distillation.counts(parts)
        summed = sum(distillation(student, part, counts=counts)[0] for part in parts)
        assert summed.item() == pytest.approx(whole.item(), rel=1e-5), make.__name__
        padded = {**batch, "input_ids": tokens.where(read > 0, 7)} if "input_ids" in batch else batch
        assert distillation(student, padded)[0].item() == pytest.approx(whole.item(), rel=1e-5)
        distillation.close()


def test_what_a_living_process_writes_is_not_taken_for_left(tmp_path):
    """A second process removes what the first one has been writing for a while."""
    with files.atomic_write(tmp_path / "a") as part:
        part.write_text("one")
        os.utime(part.parent, (0, 0))
        with files.atomic_write(tmp_path / "a") as other:
            other.write_text("two")
        there = part.exists()
        part.parent.mkdir(exist_ok=True)
        part.write_text("three")
    assert there and (tmp_path / "a").read_text() == "three"


def test_what_a_killed_process_left_is_removed_before_a_run(tmp_path):
    """A writer has a folder of its own beside the file; who takes it for a file cannot run at all."""
    spec = Spec("tests", "kd", "digits", "resnet8", 1.0 * CrossEntropy(), Recipe(epochs=1))
    left = tmp_path / "running" / f".{spec.name}.safetensors.abcdefgh.part"
    left.mkdir(parents=True)
    (left / "part").touch()
    try:
        runner._tidy([spec], tmp_path)
    except OSError as error:
        pytest.fail(f"{error}")
    assert not left.exists()


def test_what_is_pooled_is_counted_by_examples():
    student, teacher = torch.zeros(2, 3), torch.ones(2, 3)
    seen = {
        "student_hidden": {"pooled": student},
        "teacher_hidden": {"pooled": teacher},
        "hidden_mask": torch.ones(2, 5, dtype=torch.bool),
    }
    assert HiddenMSE("pooled")(**seen, hidden_count=40, example_count=4).item() == 0.5


def test_kept_logits_are_of_the_view_that_is_seen():
    """A teacher's logits of all views are taken for one another's: the student learns from another crop than it sees."""
    pictures = torch.randint(0, 256, (6, 3, 5, 5), dtype=torch.uint8)
    train = Split(pictures, torch.zeros(6, dtype=torch.long), (0.5,) * 3, (0.3,) * 3).with_views(7)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(75, 4))
    kept = LogitsOfViews(teacher, train)
    generator = torch.Generator().manual_seed(0)
    for x, _, index, seen in train.batches(3, generator=generator, augment=True, tell_views=True):
        assert len(seen.unique()) > 1
        assert near(kept(torch.stack([index, seen], 1)), teacher(x), 1e-4, 1e-5)


def test_each_part_of_a_model_has_the_mask_of_its_own():
    """What an encoder reads and what a decoder writes are as long, and other positions of them are padding."""
    states = {"encoder.0": torch.tensor([[[0.0], [1.0]]]), "decoder.0": torch.tensor([[[2.0], [0.0]]])}
    masks = {"encoder": torch.tensor([[True, False]]), "decoder": torch.tensor([[False, True]])}
    seen = {"student_hidden": states, "teacher_hidden": {name: 0 * x for name, x in states.items()}}
    assert HiddenMSE("encoder.0", "decoder.0")(**seen, hidden_mask=masks).item() == 0


def test_of_what_an_attention_module_returns_maps_are_the_last():
    """T5 returns a bias of positions before them."""

    class Attention(nn.Module):
        def forward(self, x):
            maps = x.softmax(-1)
            return maps @ x, 7 + maps, maps

    model = nn.Sequential(Attention())
    x = torch.randn(1, 2, 3, 3)
    with training.Taps(model, ["attention:0"]) as taps:
        assert torch.equal(taps(x)[1]["attention:0"], x.softmax(-1))


@pytest.mark.parametrize("bias", [True, False])
def test_pictures_that_a_model_cannot_read_are_said(bias):
    """A picture in uint8 ends in “expected scalar type Byte but found Float”."""
    pictures = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    for model in (nn.Conv2d(3, 2, 1, bias=bias), nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=bias))):
        try:
            call(model, pictures)
        except Exception as error:
            found = error
        assert type(found) is TypeError and "cannot read pictures in uint8: give floats" in str(found)


def test_an_error_inside_a_model_is_its_own():
    def fails(sentence):
        def raises(x):
            raise RuntimeError(sentence)

        return teachers.FunctionTeacher(raises, "it")

    halves = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).bfloat16())
    for model, inputs, sentence in (
        (halves, torch.zeros(2, 3), "Float and BFloat16"),
        (nn.Linear(3, 2), torch.zeros(2, 3, dtype=torch.int64), "Long and Float"),
        (fails("Byte-sized answers only"), torch.zeros(2, 3), "Byte-sized"),
        (fails("too long to answer"), torch.zeros(2, 3, dtype=torch.uint8), "too long"),
    ):
        try:
            call(model, inputs)
        except Exception as error:
            found = error
        assert type(found) is RuntimeError and sentence in str(found)


def test_what_a_spec_leaves_to_a_default_is_in_the_table():
    """A spec says what is not a default: a rate that is one was asked for in vain."""
    recipe = Recipe(epochs=3)
    spec = Spec("mine", "alone", "digits", "resnet8", 1.0 * CrossEntropy(), recipe)
    record = {
        "spec": spec.describe(),
        "spec_hash": spec.hash,
        "recipe": asdict(recipe),
        "seconds": 1.0,
        "test": {},
        "provenance": provenance(),
    }
    assert "learning_rate" not in record["spec"]["recipe"]
    assert row_of(record)["learning_rate"] == recipe.learning_rate


# What is recorded, of what and beside whom

ALONE = Spec(
    "teacher", "alone", "digits", "resnet8_width4", 1.0 * CrossEntropy(), replace(BRIEF, epochs=1, augment=False)
)
TAUGHT = replace(ALONE, study="tests", arm="kd", objective=1.0 * SoftTargets(), teacher=ALONE)


def written_by(specs, book, digits, **how):
    """How many were recorded, or why none was."""
    try:
        return runner.run_plan(specs, book=book, data={"digits": digits}, say=lambda line: None, **how)
    except (DataError, RecordError, PlanError) as error:
        return f"{error}"


def test_no_record_is_made_of_what_stands_in_for_the_data(digits, tmp_path):
    """Where the books could not be had, runs on other texts were recorded under their name."""
    said = written_by([ALONE], tmp_path, replace(digits, fallback=True, reason="it is not here."))
    assert said == "digits cannot be had, and no record is made of what stands in for it: it is not here."


def test_what_a_spec_names_is_not_what_stands_in_for_it():
    try:
        found = load("books-300-16").name
    except DataError as error:
        found = f"{error}"
    assert "books-300-16 cannot be had, and no record is made of what stands in for it: " in found


def test_students_of_two_teachers_are_not_one_arm(tmp_path):
    """Another machine had trained the teacher once more, to other weights."""
    for number, place in enumerate(("one", "other")):
        model = nn.Linear(2, 2)
        nn.init.constant_(model.weight, number)
        save_model(checkpoint_path(ALONE, tmp_path / place), model, {})
        weights = weights_checksum(model.state_dict())
        write_record(TAUGHT, tmp_path / place / "records", {"teacher_weights": weights})
    (tmp_path / "one" / "records" / f"{TAUGHT.name}.json").unlink()
    try:
        said = runner.take(tmp_path / "other", tmp_path / "one", [ALONE, TAUGHT])
    except RecordError as error:
        said = f"{error}"
    assert f"learned from other weights of its teacher {ALONE.name} than those here" in said


def test_a_teacher_without_its_checkpoint_is_trained_again(digits, tmp_path):
    """It had its record, and so nothing made its checkpoint again; its students waited for ever."""
    assert written_by([ALONE], tmp_path, digits) == 1
    path = checkpoint_path(ALONE, tmp_path)
    before = path.read_bytes()
    path.unlink()
    assert written_by([ALONE, TAUGHT], tmp_path, digits) == 1
    assert path.read_bytes() == before and runner.verify(tmp_path, [ALONE, TAUGHT]) == []


def test_a_teacher_that_is_trained_again_is_the_recorded_one(digits, tmp_path):
    """To its record came the weights of another training."""
    assert written_by([ALONE], tmp_path, digits) == 1
    checkpoint_path(ALONE, tmp_path).unlink()
    other = replace(digits, train=digits.train[torch.arange(len(digits.train)).flip(0)])
    assert "trained again it comes to other numbers here" in f"{written_by([ALONE, TAUGHT], tmp_path, other)}"
    assert not checkpoint_path(ALONE, tmp_path).exists()


@pytest.mark.parametrize("recorded_in", ["book", "out"])
def test_a_process_removes_no_lock_and_checkpoint_of_another(recorded_in, digits, tmp_path):
    """A record elsewhere said that they are needless, or the other process was just writing it."""
    out = tmp_path / "out"
    with runner.claimed([ALONE] if recorded_in == "out" else [], out / "running"):
        kept = out / "running" / f"{ALONE.name}.safetensors"
        kept.touch()
        write_record(ALONE, tmp_path / recorded_in / "records", {"test": {}})
        there = sorted((out / "running").iterdir())
        assert written_by([ALONE], tmp_path / "book", digits, out=out) == 0
        assert sorted((out / "running").iterdir()) == there


@pytest.mark.parametrize("loss", [hidden_cosine, rkd_distance, rkd_angle, info_nce])
def test_nan_stays_nan_on_a_device(loss):
    """Where values are not looked at, as on a GPU, NaN features became numbers and were learned from."""
    spoilt = torch.eye(4)
    spoilt[0, 0] = math.nan
    assert torch.compile(loss, backend="eager")(torch.eye(4), spoilt).isnan()


def test_a_tokeniser_that_cuts_loses_no_text():
    """One call of a tokeniser of transformers sets it to cut for good."""
    text = "to be or not to be " * 20
    tokeniser = train_tokeniser([text], 262)
    whole = tokenise_documents([text], tokeniser, 4).labels.tolist()
    tokeniser.enable_truncation(9)
    assert tokenise_documents([text], tokeniser, 4).labels.tolist() == whole


def test_a_class_that_there_is_not_is_no_divergence():
    """Logits of −∞ were summed, and their sum taken for one that had diverged."""

    class Masking(nn.Linear):
        def forward(self, x):
            return super().forward(x).masked_fill(torch.tensor([False, False, True]), -math.inf)

    data = Examples(torch.randn(8, 4), torch.arange(8) % 2)
    try:
        (entry,) = fit(Masking(4, 3), 1.0 * CrossEntropy(), train=data, recipe=Recipe(1, 8, augment=False))
    except FloatingPointError as error:
        entry = {"loss": error}
    assert isinstance(entry["loss"], float)


def test_masked_places_are_no_classes():
    """NaN at padding was refused by terms that look at other classes than the tokens."""
    z = torch.tensor([[1.0, 0.0, 2.0], [math.nan] * 3])
    term, seen = MergedVocabulary(ForwardKL(), torch.tensor([0, 1, 1])), {"mask": torch.tensor([True, False])}
    try:
        found = term(student_logits=z, teacher_logits=z, **seen).item()
    except ValueError as error:
        found = error
    assert found == 0

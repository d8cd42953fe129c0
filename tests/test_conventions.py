"""What other libraries compute, against themselves where they can be installed, else against their formula."""

import itertools
import warnings
from collections import defaultdict
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from kdlab.language import Retokenised, token_texts, train_tokeniser
from kdlab.objectives import HiddenMSE, ReverseKL, SortedProbabilities
from kdlab.objectives.conventions import CONVENTIONS, IGNORED, loss_as_in, weight_factor

TEMPERATURES, BETAS = (0.5, 1.0, 4.0), (0.0, 0.1, 0.5, 0.9, 1.0)
IMAGES = [name for name, convention in CONVENTIONS.items() if convention.images]
MIXED = [name for name, convention in CONVENTIONS.items() if convention.divergence == "generalised JSD"]


def batch(*shape, padded=True, seed=0):
    """Student logits, teacher logits and labels of shape ``shape[:-1]``, some of them padding."""
    generator = torch.Generator().manual_seed(seed)
    z, t = 3 * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(shape[-1], shape[:-1], generator=generator)
    if padded:
        labels[..., -2:] = IGNORED
    return z.requires_grad_(), t, labels


def same(loss, other, z, tolerance=1e-9):
    """Value and gradient agree."""
    gradients = [torch.autograd.grad(value, z, retain_graph=True)[0] for value in (loss, other)]
    torch.testing.assert_close(loss.double(), other.double(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)


def kl(z, t, T):
    """KL(p‖q), one for each distribution."""
    return F.kl_div(F.log_softmax(z / T, -1), F.softmax(t / T, -1), reduction="none").sum(-1)


def hard(z, labels):
    return F.cross_entropy(z.flatten(0, -2), labels.flatten())


# Against the libraries


@pytest.fixture(scope="module")
def gkd():
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        from trl.experimental.gkd import GKDTrainer
    return GKDTrainer


@pytest.fixture(scope="module")
def trl_distillation():
    """The loss of TRL's DistillationTrainer, of logits: its output heads are the identity."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

    def loss(z, t, labels, *, beta, temperature):
        identity = torch.eye(z.shape[-1], dtype=z.dtype)
        how = {"beta": beta, "temperature": temperature}
        return _chunked_divergence_loss(z, t, identity, identity, labels != IGNORED, **how)[0]

    return loss


@pytest.fixture(scope="module")
def liger():
    losses = pytest.importorskip("liger_kernel.chunked_loss")  # for Linux alone

    def loss(z, t, labels, **options):
        identity = torch.eye(z.shape[-1], dtype=z.dtype)
        teacher_identity = torch.eye(t.shape[-1], dtype=z.dtype)
        flat = z.flatten(0, -2), identity, t.flatten(0, -2), teacher_identity, labels.flatten()
        return losses.LigerFusedLinearJSDLoss(compiled=False, **options)(*flat)

    return loss


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_trl(trl_distillation, temperature, beta):
    z, t, labels = batch(3, 6, 7)
    how = {"beta": beta, "temperature": temperature}
    theirs = trl_distillation(z, t, labels, **how)
    same(loss_as_in("TRL", z, t, labels, **how), theirs, z, tolerance=1e-5)
    same(loss_as_in("TRL", z, t, mask=labels != IGNORED, **how), theirs, z, tolerance=1e-5)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_trl_gkd(gkd, temperature, beta):
    z, t, labels = batch(3, 6, 7)
    how = {"beta": beta, "temperature": temperature}
    same(loss_as_in("TRL GKD", z, t, labels, **how), gkd.generalized_jsd_loss(z, t, labels, **how), z)
    same(
        loss_as_in("TRL GKD", z, t, mask=labels != IGNORED, **how),
        gkd.generalized_jsd_loss(z, t, labels, **how),
        z,
    )
    same(loss_as_in("TRL GKD", z, t, **how), gkd.generalized_jsd_loss(z, t, **how), z)


def test_an_objective_in_trls_distillation_trainer(trl_distillation):
    """Its own loss, entropy and count, of prompts padded on the left and completions on the right."""
    transformers = pytest.importorskip("transformers")
    from trl.trainer.distillation_trainer import DistillationTrainer

    from kdlab.huggingface import DistilCompletions

    class KD(DistilCompletions, DistillationTrainer):
        pass

    torch.manual_seed(0)
    shape = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    student, teacher = (
        transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=n, **shape)) for n in (1, 2)
    )
    student.train()
    for p in (*student.parameters(), *teacher.parameters()):
        p.data.mul_(4)
    made = KD.__new__(KD)  # without prompts, files and a tokeniser
    made.model, made.teacher_model, made.beta, made.temperature = student, teacher, 1.0, 1.0
    made.accelerator = SimpleNamespace(unwrap_model=lambda model: model, is_main_process=False)
    made._forward_redirection = lambda wrapper, model, function, *given, **named: function(*given, **named)
    made.model_kwarg_keys, made._is_vlm = {"logits_to_keep"}, False
    made._metrics, made.args = {"train": defaultdict(list)}, SimpleNamespace(report_to=[])
    made.state = SimpleNamespace(global_step=1, max_steps=10)
    made.take(ReverseKL())
    inputs = {
        "prompt_ids": torch.randint(30, (2, 4)),
        "prompt_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
        "completion_ids": torch.randint(30, (2, 5)),
        "completion_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
        "tool_mask": torch.tensor([[1, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
    }
    for count in (None, torch.tensor(9.0)):
        ours = made._compute_loss(student, inputs, count)
        theirs = DistillationTrainer._compute_loss(made, student, inputs, count)
        for found, known in zip(ours, theirs, strict=True):
            torch.testing.assert_close(found.detach().float(), known.detach().float(), rtol=1e-4, atol=1e-5)
        slopes = [torch.autograd.grad(loss, [*student.parameters()]) for loss in (ours[0], theirs[0])]
        torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-5)
    assert len(made._metrics["train"]["ReverseKL"]) == 2
    with pytest.raises(ValueError, match="the objective is of logits, learns nothing and compares no examples"):
        made.take(HiddenMSE("model.layers.0"))


def test_the_spans_and_sorted_probabilities_of_trl_gold(gkd):
    """TRL's alignment and its merging, where each token's probability is read at the position before it."""
    from trl.experimental.gold.gold_trainer import ULDLoss

    text = "to be, or not to be: that is the question "
    few, many = (train_tokeniser([text * 9], n) for n in (262, 280))
    of_teacher = torch.nn.Embedding(280, 280)
    teacher = Retokenised(of_teacher, many, few)
    tokens = torch.tensor([few.encode(text).ids])
    own, places, own_places = teacher.cut(tokens[0].tolist())
    rows, sizes = (
        (tokens[0].tolist(), own),
        [[len(x or b"") for x in token_texts(tokeniser)] for tokeniser in (few, many)],
    )
    ends = [torch.tensor([size[i] for i in row]).cumsum(0).tolist() for row, size in zip(rows, sizes, strict=True)]
    groups = ULDLoss._align_by_byte_offsets(*([(0, end) for end in one] for one in ends))
    for found, theirs in zip((places, own_places), groups, strict=True):
        assert found.tolist() == [group[-1] for group in theirs[:-1]]
    gold = SimpleNamespace(token_merge_strategy="observed")
    student = torch.randn(1, tokens.shape[1], 262, generator=torch.Generator().manual_seed(0))
    logits = student, of_teacher(torch.tensor([own])).detach()
    merged = [
        ULDLoss._merge_probabilities_with_alignment_groups(gold, z[0].softmax(-1).roll(1, 0), part[1:-1], row)
        for z, part, row in zip(logits, groups, rows, strict=True)
    ]
    q, p = (F.pad(x.sort(-1, descending=True).values, (0, 280 - x.shape[-1])) for x in merged)
    ours = SortedProbabilities(merged=True)(
        student_logits=student, teacher_logits=teacher(tokens), labels=tokens.roll(-1, 1), count=1
    )
    assert len(q) > 5 and max(map(len, groups[0][1:-1])) > 1
    torch.testing.assert_close(ours, (q - p).abs().sum())


def test_trl_gkd_of_padding_alone_is_zero(gkd):
    z, t, labels = batch(2, 3, 5)
    labels.fill_(IGNORED)
    same(loss_as_in("TRL GKD", z, t, labels, temperature=1.0), gkd.generalized_jsd_loss(z, t, labels), z)


def test_trl_gkd_trains_at_temperature_one_whatever_is_set(gkd):
    z, t, labels = batch(2, 6, 5)

    class Model:
        eval = staticmethod(lambda: None)

        def __init__(self, logits):
            self.logits = logits

        def __call__(self, **_):
            return SimpleNamespace(logits=self.logits)

    trainer = SimpleNamespace(
        teacher_model=Model(t), temperature=9.0, beta=0.3, generalized_jsd_loss=gkd.generalized_jsd_loss
    )
    inputs = {"input_ids": None, "attention_mask": None, "labels": labels}
    loss = gkd.compute_loss(trainer, Model(z), inputs)
    same(loss, loss_as_in("TRL GKD", z[:, :-1], t[:, :-1], labels[:, 1:], temperature=1.0, beta=0.3), z)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_liger(liger, temperature, beta):
    z, t, labels = batch(3, 6, 7)
    how = {"beta": beta, "temperature": temperature}
    same(loss_as_in("Liger", z, t, labels, **how), liger(z, t, labels, **how), z, tolerance=1e-6)
    soft = liger(z, t, labels, weight_hard_loss=0.0, weight_soft_loss=1.0, **how)
    same(loss_as_in("Liger", z, t, labels, hard_weight=0.0, soft_weight=1.0, **how), soft, z, tolerance=1e-6)
    same(loss_as_in("Liger", z, t, mask=labels != IGNORED, **how), soft, z, tolerance=1e-6)


def test_liger_pads_a_small_student_with_logits_of_zero(liger):
    z, t, labels = batch(4, 5, padded=False)
    wider = torch.cat([t, t[:, :2]], -1)
    how = {"temperature": 2.0, "hard_weight": 0.0, "soft_weight": 1.0}
    padded = loss_as_in("Liger", F.pad(z, (0, 2)), wider, labels, **how)
    same(padded, liger(z, wider, labels, temperature=2.0, weight_hard_loss=0.0, weight_soft_loss=1.0), z, 1e-6)


# Against the formula


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("library", IMAGES)
def test_libraries_for_images(library, temperature):
    z, t, labels = batch(8, 7, padded=False)
    T, divisor = temperature, z.numel() if library == "DeiT" else len(z)
    mean = kl(z, t, T).sum() / divisor
    weights = {"hard_weight": 0.3, "soft_weight": 0.6}
    same(
        loss_as_in(library, z, t, labels, temperature=T, **weights),
        0.3 * hard(z, labels) + 0.6 * T**2 * mean,
        z,
    )
    if library == "torchdistill":  # T² only beside the labels
        same(loss_as_in(library, z, t, temperature=T), mean, z)
        same(loss_as_in(library, z, t, labels, temperature=T, hard_weight=0.0, soft_weight=0.6), mean, z)
    else:
        same(loss_as_in(library, z, t, temperature=T), T**2 * mean, z)
        same(
            loss_as_in(library, z, t, labels, temperature=T, hard_weight=0.0, soft_weight=0.6),
            0.6 * T**2 * mean,
            z,
        )


def test_default_weights():
    z, t, labels = batch(2, 5, 7)
    flat = z.flatten(0, 1), t.flatten(0, 1), labels.flatten()
    parts = {
        name: loss_as_in(name, *flat[:2], mask=flat[2] != IGNORED, temperature=2.0) for name in ("Liger", "TextBrewer")
    }
    parts["mdistiller"] = loss_as_in("mdistiller", *flat[:2], temperature=2.0)
    for library, part in parts.items():
        of_labels, of_teacher = CONVENTIONS[library].weights
        same(loss_as_in(library, *flat, temperature=2.0), of_labels * hard(z, labels) + of_teacher * part, z)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_distillkit(temperature):
    z, t, labels = batch(3, 6, 7)
    T, real, each = temperature, labels != IGNORED, kl(z, t, temperature)

    first = each.sum() / 3 * T**2 / 4096
    same(loss_as_in("DistillKit 0.1", z, t, temperature=T, max_length=4096), first, z)
    total = 0.5 * hard(z, labels) + 0.5 * first
    same(loss_as_in("DistillKit 0.1", z, t, labels, temperature=T, max_length=4096), total, z)

    now = T**2 * each[real].sum() / real.sum()
    same(loss_as_in("DistillKit 1.0", z, t, mask=real, temperature=T), now, z)
    total = (1.0 * hard(z, labels) + 3.0 * now) / 4.0
    same(loss_as_in("DistillKit 1.0", z, t, labels, temperature=T, hard_weight=1.0, soft_weight=3.0), total, z)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_textbrewer(temperature):
    z, t, labels = batch(3, 6, 7)
    each = -(F.softmax(t / temperature, -1) * F.log_softmax(z / temperature, -1)).sum(-1)
    same(loss_as_in("TextBrewer", z, t, temperature=temperature), each.mean(), z)
    same(loss_as_in("TextBrewer", z, t, labels, temperature=temperature), each[labels != IGNORED].mean(), z)


# From one to the other


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("padded", [False, True])
def test_a_converted_weight_gives_the_same_gradient_or_is_refused(padded, beta):
    z, t, labels = batch(4, 6, 7, padded=padded)
    tokens = int((labels != IGNORED).sum())
    shared = {"temperature": 3.0, "beta": beta, "max_length": 9}
    classes = z.shape[-1]

    def gradient(library):
        if CONVENTIONS[library].images:
            inputs, how = (
                (z.flatten(0, 1), t.flatten(0, 1), labels.flatten()),
                {"hard_weight": 1e-9, "soft_weight": 1.0},
            )
        elif CONVENTIONS[library].names[0] is None:
            inputs, how = (z, t, labels), {}
        else:
            inputs, how = (z, t, labels), {"hard_weight": 0.0, "soft_weight": 1.0}
        return torch.autograd.grad(loss_as_in(library, *inputs, **shared, **how), z)[0]

    gradients = {library: gradient(library) for library in CONVENTIONS}
    refused = 0
    for source, target in itertools.product(CONVENTIONS, repeat=2):
        try:
            factor = weight_factor(source, target, shape=(4, 6), tokens=tokens, classes=classes, **shared)
        except ValueError:
            refused += 1
            ratio = gradients[source] / gradients[target]
            assert not torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-6)
        else:
            torch.testing.assert_close(gradients[source], factor * gradients[target], rtol=1e-6, atol=1e-9)
    assert (refused == 0) == (beta == 0 and not padded)


def test_weights_without_labels():
    assert weight_factor("torchdistill", "mdistiller", temperature=4.0) == 1.0
    assert weight_factor("torchdistill", "mdistiller", temperature=4.0, labels=False) == 1 / 16
    assert weight_factor("TRL GKD", "Liger", temperature=1.0, shape=(2, 50), labels=False) == pytest.approx(50)
    assert weight_factor("DeiT", "timm", temperature=4.0, classes=1000) == pytest.approx(1e-3)


# What is refused


@pytest.mark.parametrize(
    ("library", "options", "message"),
    [
        ("Distiller", {}, "no convention is known of 'Distiller'; there are kdlab, RepDistiller"),
        ("mdistiller", {"hard_weight": 0.1}, "takes no weights without labels"),
        ("TRL", {"labels": True, "hard_weight": 0.1}, "takes no weights in its loss"),
        ("RepDistiller", {"labels": True, "hard_weight": 0.1}, "no default for its weights"),
        ("mdistiller", {"mask": True}, "mdistiller has no mask: padding counts there"),
        ("mdistiller", {"cut": ...}, r"takes logits of shape \(batch, N\), not \(2, 3, 5\)"),
        ("TRL", {"cut": (0, 0)}, r"takes logits of shape \(batch, ..., N\), not \(5,\)"),
        ("DistillKit 0.1", {}, "give max_length"),
        ("TRL", {"beta": 1.5}, "beta must be a number from 0 to 1"),
        ("TRL", {"temperature": -1.0}, "temperature must be a positive"),
        ("TRL", {"temperature": torch.ones(6, 1)}, "one number, not a tensor"),
        ("TRL", {"labels": [1] * 6}, "labels must be a torch.Tensor"),
    ],
)  # fmt: skip
def test_what_a_library_cannot_take_is_refused_in_a_sentence(library, options, message):
    z, t, labels = batch(2, 3, 5, padded=False)
    options = dict(options)
    cut = options.pop("cut", None)
    z, t = (x.flatten(0, 1) if cut is None else x[cut] for x in (z, t))
    if options.get("labels") is True:
        options["labels"] = labels.flatten()
    if options.get("mask") is True:
        options["mask"] = torch.ones(6, dtype=torch.bool)
    with pytest.raises((TypeError, ValueError), match=message):
        loss_as_in(library, z, t, **{"temperature": 2.0, **options})


@pytest.mark.parametrize(
    ("pair", "options", "message"),
    [
        (("TRL", "kdlab"), {}, "TRL takes the generalised JSD and kdlab the forward KL: their gradients differ"),
        (("TRL", "kdlab"), {"beta": 1}, "TRL takes the reverse KL"),
        (("mdistiller", "kdlab"), {"shape": (4, 6), "tokens": 20}, "padding counts in one of mdistiller and kdlab"),
        (("kdlab", "nowhere"), {}, "no convention is known of 'nowhere'"),
        (("kdlab", "kdlab"), {"tokens": 0}, "tokens must lie in 1"),
        (("kdlab", "DistillKit 0.1"), {}, "give max_length"),
        (("kdlab", "DeiT"), {}, "give classes"),
    ],
)  # fmt: skip
def test_a_weight_that_cannot_be_converted_is_refused_in_a_sentence(pair, options, message):
    with pytest.raises(ValueError, match=message):
        weight_factor(*pair, temperature=2.0, **options)


def test_conventions_are_stated_and_fixed():
    for convention in CONVENTIONS.values():
        assert convention.source and convention.divides_by in ("positions", "positions × N", "batch × max_length")
        with pytest.raises(FrozenInstanceError):
            convention.squared = False
    assert MIXED == ["TRL", "TRL GKD", "Liger"]

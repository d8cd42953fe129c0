"""Language models in the one loop: micro-batches, epochs of a part of the text, measures, and records."""

import json
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain

import pytest
import torch
from ranks import on_ranks
from torch import nn

from kdlab.data import Examples, TextData, Tokens
from kdlab.language import Drafting, OwnText
from kdlab.models import GPT
from kdlab.objectives import (
    DIST,
    AttentionMaps,
    CrossEntropy,
    ForwardKL,
    HiddenMSE,
    LearnedTemperature,
    Linear,
    Projector,
    ReverseKL,
    SharedVocabulary,
    SoftTargets,
    cross_entropy,
    forward_kl,
    total_variation,
)
from kdlab.study import RecordError, Spec, read_record, run
from kdlab.study.named import load
from kdlab.study.runner import run_plan
from kdlab.study.texts import PROMPT, language_data
from kdlab.training import (
    CheckpointError,
    Learner,
    Recipe,
    Stopped,
    accuracy,
    agreement,
    expected_calibration_error,
    fit,
    fit_together,
    measure_tokens,
)

V, CONTEXT = 19, 6
RECIPE = Recipe(epochs=1, batch_size=8, learning_rate=0.1, momentum=0.0, schedule="constant", augment=False)
KD = 0.3 * CrossEntropy() + 0.7 * SoftTargets(temperature=2)


def gpt(seed=0, width=8, layers=1, fused=False, dtype=torch.float64):
    torch.manual_seed(seed)
    model = GPT(V, width=width, layers=layers, heads=2, context=CONTEXT).to(dtype)
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    model.fused = fused
    return model


def text(blocks=24, seed=0):
    g = torch.Generator().manual_seed(seed)
    row = torch.randint(V, (blocks * CONTEXT + 1,), generator=g)
    return Tokens(row.to(torch.int16), CONTEXT, torch.randint(1, 9, (V,), generator=g))


@dataclass(frozen=True)
class Padded(Examples):
    """Texts of uneven length: labels are −100 where there is nothing to predict."""

    @classmethod
    def draw(cls, blocks=24, seed=0):
        g = torch.Generator().manual_seed(seed)
        inputs, labels = torch.randint(V, (2, blocks, CONTEXT), generator=g)
        lengths = torch.randint(CONTEXT + 1, (blocks, 1), generator=g)
        lengths[0] = 1
        return cls(inputs, labels.masked_fill(torch.arange(CONTEXT) >= lengths, -100))


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def trained(objective, recipe=RECIPE, train=None, student=None, teacher=None, **options):
    student = gpt() if student is None else student
    history = fit(student, objective, train=train or text(), recipe=recipe, teacher=teacher, **options)
    return parameters(student), history


def assert_close(one, other, **how):
    torch.testing.assert_close(one, other, **{"rtol": 1e-9, "atol": 1e-11, **how})


# Micro-batches


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("data", [text, Padded.draw], ids=["text", "uneven"])
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_micro_batches_add_up_to_their_batch(fused, data, parts):
    """The well-known bug: each micro-batch divided by its own number of tokens, so that short ones count for more."""
    objective = KD + 0.5 * ReverseKL()
    teacher = gpt(1, width=12, fused=fused)
    whole, history = trained(objective, train=data(), student=gpt(fused=fused), teacher=teacher)
    split, of_parts = trained(objective, replace(RECIPE, micro_batches=parts), data(), gpt(fused=fused), teacher)
    assert_close(split, whole)
    for name in ("loss", *objective.names):
        assert of_parts[0][name] == pytest.approx(history[0][name], rel=1e-6)


def test_what_the_bug_would_have_done():
    """On the uneven text the two normalisations differ: the test above can tell."""
    data, model = Padded.draw(), gpt()
    logits = model(data.inputs)
    token = cross_entropy(logits, data.labels.clamp(min=0), reduction="none")
    counts = (data.labels != -100).double()
    whole = (token * counts).sum() / counts.sum()
    of_parts = [(t * c).sum() / c.sum() for t, c in zip(token.split(3), counts.split(3), strict=True)]
    assert abs(torch.stack(of_parts).mean() - whole) > 1e-3
    _, (entry,) = trained(
        1.0 * CrossEntropy(), replace(RECIPE, batch_size=24, micro_batches=8, learning_rate=1e-12), data
    )
    assert entry["loss"] == pytest.approx(whole.item(), rel=1e-6)


def on_uneven_text(rank=None, parts=1):
    recipe = replace(RECIPE, epochs=2, micro_batches=parts)
    moved, history = trained(KD, recipe, Padded.draw(), gpt(fused=True), gpt(1, width=12))
    return {**moved, "loss": torch.tensor([entry["loss"] for entry in history])}


def test_two_processes_divide_by_the_tokens_of_both(tmp_path):
    """Each has texts of its own length: their means, averaged, would not be the mean of all."""
    on_ranks(2, tmp_path, on_uneven_text)
    whole = on_uneven_text()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert_close(found, whole, rtol=1e-6, atol=1e-8)


def test_a_batch_that_does_not_divide_is_used_to_its_last_example():
    """A training split of ten is one batch of ten, whatever the recipe's batch size says."""
    recipe = replace(RECIPE, batch_size=32)
    whole, _ = trained(1.0 * CrossEntropy(), recipe, text(10))
    for parts in (4, 32):
        split, _ = trained(1.0 * CrossEntropy(), replace(recipe, micro_batches=parts), text(10))
        assert_close(split, whole)


def test_hidden_states_and_attention_add_up_too():
    hidden = HiddenMSE(("blocks.0", "blocks.1"), projector=Projector("linear", 8, 12))
    maps = AttentionMaps(("blocks.0.attention", "blocks.1.attention"))
    teacher = gpt(1, width=12, layers=2, dtype=torch.float32)
    found = []
    for parts in (1, 4):
        torch.manual_seed(3)
        objective = (KD + hidden + 5.0 * maps).fresh()
        student = gpt(dtype=torch.float32)
        moved, _ = trained(objective, replace(RECIPE, micro_batches=parts), student=student, teacher=teacher)
        found.append([*moved.values(), *(p.detach().clone() for p in objective.parameters())])
    assert_close(*found, rtol=1e-4, atol=1e-6)


def test_a_temperature_is_reported_once_and_not_for_each_part():
    objective = SoftTargets(Linear(4, 2)) + SoftTargets(LearnedTemperature())
    entries = [
        trained(objective.fresh(), replace(RECIPE, micro_batches=parts), teacher=gpt(1))[1][0] for parts in (1, 4)
    ]
    for name in ("SoftTargets_1.temperature", "SoftTargets_2.temperature"):
        assert entries[1][name] == pytest.approx(entries[0][name], rel=1e-6)
        assert 1 <= entries[1][name] <= 21


def test_what_needs_a_whole_batch_is_refused_in_parts():
    parts = replace(RECIPE, micro_batches=2)
    with pytest.raises(ValueError, match=r"DIST.* needs each batch as a whole: micro_batches=1"):
        trained(CrossEntropy() + DIST(), parts, teacher=gpt(1))
    with pytest.raises(ValueError, match="gradient norms are measured where a batch is run as one"):
        trained(1.0 * CrossEntropy(), parts, gradient_norms=True)


def test_labels_may_be_probabilities():
    inputs, hard = torch.randn(24, 5), torch.arange(24) % 3
    soft = torch.nn.functional.one_hot(hard, 3).float()
    found = []
    for labels, parts in ((hard, 1), (soft, 1), (soft, 4)):
        torch.manual_seed(0)
        student, recipe = nn.Linear(5, 3), replace(RECIPE, micro_batches=parts)
        found.append(trained(1.0 * CrossEntropy(), recipe, Examples(inputs, labels), student)[0])
    assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    assert_close(found[2], found[0], rtol=1e-5, atol=1e-6)


# Fused, and side by side


@pytest.mark.parametrize("train", [text, Padded.draw], ids=["text", "uneven"])
def test_distilled_from_hidden_states_as_from_logits(train):
    """Student and teacher that leave their logits to the losses: the same parameters in the end."""
    recipe = replace(RECIPE, epochs=2, max_gradient_norm=0.5, optimizer="adamw", learning_rate=1e-2)
    objective = KD + 0.2 * ReverseKL()
    found = [
        trained(objective, recipe, train(), gpt(fused=student), gpt(1, width=12, fused=teacher))
        for student, teacher in ((False, False), (True, True), (True, False))
    ]
    for moved, history in found[1:]:
        assert_close(moved, found[0][0], rtol=1e-6, atol=1e-8)
        assert history[-1]["loss"] == pytest.approx(found[0][1][-1]["loss"], rel=1e-6)


def test_beside_others_every_language_model_ends_as_alone():
    def learners():
        return [
            Learner(gpt(0, fused=True), 1.0 * CrossEntropy(), RECIPE),
            Learner(gpt(0, fused=True), KD, replace(RECIPE, micro_batches=4)),
            Learner(gpt(2, width=12, fused=True), KD, replace(RECIPE, optimizer="adamw", learning_rate=1e-2)),
        ]

    options = {"train": text(), "teacher": gpt(1, fused=True), "validation": text(5, seed=1)}
    together = learners()
    fit_together(together, **options)
    for one, beside in zip(learners(), together, strict=True):
        fit_together([one], **options)
        assert_close(parameters(one.student), parameters(beside.student), rtol=0, atol=0)


def test_a_language_model_learns_a_text():
    pattern = torch.arange(24 * CONTEXT + 1) * 5 % V
    train = Tokens(pattern.to(torch.int16), CONTEXT, torch.ones(V, dtype=torch.long))
    recipe = replace(RECIPE, epochs=12, optimizer="adamw", learning_rate=2e-2, max_gradient_norm=1.0)
    _, history = trained(1.0 * CrossEntropy(), recipe, train, gpt(fused=True, dtype=torch.float32))
    assert history[-1]["loss"] < 0.2 * history[0]["loss"]


# Epochs of a part of the text


class Watched(Tokens):
    """Says which blocks it was asked for."""

    def batches(self, *arguments, **options):
        for inputs, labels, index in super().batches(*arguments, **options):
            SEEN.append(index.tolist())
            yield inputs, labels, index


SEEN: list = []


def watched():
    SEEN.clear()
    whole = text(40)
    return Watched(whole.labels, CONTEXT, whole.token_bytes)


@pytest.mark.parametrize(("examples", "steps"), [(16, 2), (23, 2), (40, 5), (99, 5), (None, 5)])
def test_an_epoch_has_as_many_steps_as_its_examples_make(examples, steps):
    _, history = trained(1.0 * CrossEntropy(), replace(RECIPE, epochs=3, epoch_examples=examples), watched())
    assert len(SEEN) == 3 * steps and len(history) == 3
    for epoch in range(3):
        drawn = [*chain(*SEEN[epoch * steps : (epoch + 1) * steps])]
        assert len(set(drawn)) == len(drawn) == 8 * steps


def test_each_epoch_draws_its_examples_anew_from_all():
    trained(1.0 * CrossEntropy(), replace(RECIPE, epochs=12, epoch_examples=16), watched())
    epochs = [frozenset(SEEN[2 * e] + SEEN[2 * e + 1]) for e in range(12)]
    assert len(set(epochs)) == 12
    assert frozenset.union(*epochs) == set(range(40))  # all but one time in 11


@pytest.mark.parametrize("step", [1, 3, 4])
def test_stopped_in_the_middle_of_an_epoch_it_goes_on_with_the_same_blocks(tmp_path, step):
    recipe = replace(RECIPE, epochs=3, epoch_examples=16, optimizer="adamw", learning_rate=1e-2, micro_batches=2)
    whole, history = trained(KD, recipe, watched(), teacher=gpt(1))
    expected, asked = list(SEEN), []

    def stop():
        asked.append(1)
        return len(asked) > step

    options = {"checkpoint": tmp_path / "run", "checkpoint_seconds": 1e9, "teacher": gpt(1)}
    with pytest.raises(Stopped):
        trained(KD, recipe, watched(), stop=stop, **options)
    first = SEEN[:step]
    resumed, later = trained(KD, recipe, watched(), gpt(5), **options)
    assert first + SEEN == expected
    assert_close(resumed, whole, rtol=0, atol=0)
    assert [entry["loss"] for entry in later] == [entry["loss"] for entry in history]


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": torch.arange(1, 41)},
        {"blocks": torch.arange(40).flip(0)},
        {"stride": 5},
        {"context": 5, "stride": 6},
    ],
    ids=["others", "another order", "closer", "shorter"],
)
def test_the_checkpoint_of_other_blocks_of_the_text_is_refused(change, tmp_path):
    """All tokens and the number of blocks are the same."""
    recipe = replace(RECIPE, epochs=2)
    whole = replace(text(42), blocks=torch.arange(40))
    trained(KD, recipe, whole, teacher=gpt(1), checkpoint=tmp_path / "run")
    trained(KD, recipe, replace(whole), teacher=gpt(1), checkpoint=tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"belongs to another run \(other blocks\)"):
        trained(KD, recipe, replace(whole, **change), teacher=gpt(1), checkpoint=tmp_path / "run")


# The optimiser


def test_a_long_gradient_is_shortened_and_a_short_one_left():
    start = parameters(gpt())

    def step(limit):
        recipe = replace(RECIPE, batch_size=24, learning_rate=1.0, weight_decay=0.0, max_gradient_norm=limit)
        moved, _ = trained(1.0 * CrossEntropy(), recipe)
        return torch.cat([(moved[name] - start[name]).flatten() for name in start])

    free = step(0.0)
    assert free.norm() > 0.1
    clipped = step(0.01)
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)
    assert_close(clipped / clipped.norm(), free / free.norm(), rtol=1e-6, atol=1e-9)
    assert_close(step(1e6), free)


def test_the_gradient_of_the_whole_batch_is_shortened_and_not_of_each_part():
    recipe = replace(RECIPE, max_gradient_norm=0.01, learning_rate=1.0)
    assert_close(
        trained(KD, recipe, teacher=gpt(1))[0],
        trained(KD, replace(recipe, micro_batches=8), teacher=gpt(1))[0],
    )


class Frozen(nn.Module):
    """A model on which no loss depends: nothing but decay can move it."""

    def __init__(self):
        super().__init__()
        for name, size in {"matrix": (2, 3), "vector": (3,), "number": ()}.items():
            setattr(self, name, nn.Parameter(torch.ones(size)))

    def forward(self, x):
        return 0 * (self.matrix.sum() + self.vector.sum() + self.number) + torch.zeros(len(x), 3)


@pytest.mark.parametrize(("optimizer", "moved"), [("adamw", {"matrix"}), ("sgd", {"matrix", "vector"})])
def test_adamw_decays_matrices_alone(optimizer, moved):
    recipe = replace(RECIPE, batch_size=4, optimizer=optimizer, weight_decay=0.5)
    data = Examples(torch.zeros(4, 1), torch.zeros(4, dtype=torch.long))
    found, _ = trained(1.0 * CrossEntropy(), recipe, data, Frozen())
    for name, value in found.items():  # one step: w − η·λ·w
        assert value.mean().item() == pytest.approx(1 - 0.1 * 0.5 if name in moved else 1.0, rel=1e-6), name


def test_the_first_step_of_adamw_is_the_sign_of_the_gradient():
    """Loshchilov & Hutter: at the first step Adam's ratio is ±1, and decay is beside it, not in it."""
    recipe = replace(RECIPE, batch_size=24, optimizer="adamw", learning_rate=1e-3, weight_decay=0.1)
    start = gpt()
    inputs, labels, _ = next(text().batches(24))
    cross_entropy(start(inputs), labels).backward()
    moved, _ = trained(1.0 * CrossEntropy(), recipe)
    for name, p in start.named_parameters():
        ratio = p.grad / (p.grad.abs() + 1e-8)
        decay = 0.1 * p.detach() if p.ndim > 1 else 0
        assert_close(moved[name], p.detach() - 1e-3 * (ratio + decay), rtol=1e-6, atol=1e-7)


def test_what_an_objective_learns_decays_by_the_same_rule():
    torch.manual_seed(0)
    objective = 0.0 * HiddenMSE(("blocks.0", "blocks.0"), projector=Projector("linear", 8, 12)) + CrossEntropy()
    with torch.no_grad():
        for p in objective.parameters():
            p.fill_(1.0)
    recipe = replace(RECIPE, batch_size=24, optimizer="adamw", weight_decay=0.5)
    trained(objective, recipe, student=gpt(dtype=torch.float32), teacher=gpt(1, width=12, dtype=torch.float32))
    for p in objective.parameters():
        assert p.mean().item() == pytest.approx(1 - 0.1 * 0.5 if p.ndim > 1 else 1.0, rel=1e-6)


# Measures


def dense(model, split):
    inputs, labels, _ = next(split.batches(len(split)))
    with torch.no_grad():
        logits = model(inputs)
    logits = logits if isinstance(logits, torch.Tensor) else logits.dense()
    return logits.flatten(0, 1).float(), labels.flatten()


@pytest.mark.parametrize("fused", [False, True])
def test_measures_of_a_text_are_those_of_all_its_logits(fused):
    split = text(17, seed=3)[2:]
    students, teacher = [gpt(0, fused=fused), gpt(2, width=12, fused=fused)], gpt(1, fused=fused)
    found = measure_tokens(students, split, teacher=teacher, tokens_at_once=4 * CONTEXT)
    (t, _) = dense(teacher, split)
    for student, measured in zip(students, found, strict=True):
        z, y = dense(student, split)
        nats = -z.double().log_softmax(-1).gather(1, y[:, None]).sum()
        expected = {
            "bits_per_byte": (nats / math.log(2)).item() / split.token_bytes[y].sum().item(),
            "cross_entropy": nats.item() / len(y),
            "accuracy": accuracy(z, y),
            "calibration_error": expected_calibration_error(z, y),
            "agreement": agreement(z, t),
            "kl_to_teacher": forward_kl(z, t).item(),
            "total_variation": total_variation(z, t).item(),
        }
        assert measured == pytest.approx(expected, rel=1e-5)
        assert all(isinstance(value, float) for value in measured.values())
    (alone,) = measure_tokens(students[:1], split, tokens_at_once=4 * CONTEXT)
    assert alone == {name: found[0][name] for name in alone}
    assert set(alone) == {"bits_per_byte", "cross_entropy", "accuracy", "calibration_error"}


@pytest.mark.parametrize("at_once", [1, CONTEXT, 2 * CONTEXT + 1, 1000])
def test_measures_do_not_depend_on_how_many_tokens_are_looked_at_at_once(at_once):
    split = text(11, seed=3)
    (one,), (other,) = (measure_tokens([gpt()], split, teacher=gpt(1), tokens_at_once=n) for n in (at_once, 8192))
    assert one == pytest.approx(other, rel=1e-6)


def test_what_cannot_be_measured_gets_a_sentence():
    with pytest.raises(ValueError, match=f"a text of {V + 1} tokens is not for a model of {V}"):
        measure_tokens([gpt()], replace(text(9), token_bytes=torch.ones(V + 1, dtype=torch.long)))
    cache = gpt(1)
    cache.by_index = True
    with pytest.raises(ValueError, match="measure beside the teacher itself"):
        measure_tokens([gpt()], text(9), teacher=cache)


def test_bits_per_byte_of_a_model_that_knows_nothing():
    """log2 V bits a token, whatever the tokens stand for."""
    split, model = text(9), gpt()
    with torch.no_grad():
        model.embedding.weight.zero_()
    (found,) = measure_tokens([model], split)
    _, labels = dense(model, split)
    expected = math.log2(V) * len(labels) / split.token_bytes[labels].sum().item()
    assert found["bits_per_byte"] == pytest.approx(expected, rel=1e-6)
    assert found["cross_entropy"] == pytest.approx(math.log(V), rel=1e-6)


def test_bits_per_byte_do_not_depend_on_how_long_tokens_are():
    """A text as letters, and as pairs of letters: a model that knows the same of both is measured the same."""
    (letters,), (pairs,) = (
        measure_tokens([Even(vocabulary)], even(vocabulary, length)) for vocabulary, length in ((4, 1), (16, 2))
    )
    assert letters["bits_per_byte"] == pytest.approx(pairs["bits_per_byte"], rel=1e-6) == 2
    assert pairs["cross_entropy"] == pytest.approx(2 * letters["cross_entropy"], rel=1e-6)


class Even(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, tokens):
        return torch.zeros(*tokens.shape, self.vocabulary)


def even(vocabulary, length):
    row = torch.arange(65) % vocabulary
    return Tokens(row.to(torch.int16), 8, torch.full((vocabulary,), length))


def test_a_validation_text_is_measured_after_each_epoch():
    student = gpt()
    history = fit(student, CrossEntropy(), train=text(), recipe=replace(RECIPE, epochs=2), validation=text(5, 1))
    (expected,) = measure_tokens([student], text(5, 1))
    assert history[-1]["validation"] == expected and student.training
    json.dumps(history, allow_nan=False)


# Records


@lru_cache
def python_text() -> TextData:
    data = load("python-512-32")
    return replace(data, train=data.train[:32], validation=data.validation[:8], test=data.test[:8])


TEXT = replace(RECIPE, optimizer="adamw", learning_rate=2e-3, max_gradient_norm=1.0, epoch_examples=16)
TEACHER = Spec("tests", "teacher", "python-512-32", "gpt_64x2", 1.0 * CrossEntropy(), TEXT)
STUDENT = Spec("tests", "kd", "python-512-32", "gpt_64x2", KD, replace(TEXT, micro_batches=2, seed=1), TEACHER)


def test_a_run_of_a_language_model_leaves_its_record(tmp_path):
    data, book = python_text(), tmp_path / "book"
    teacher = run(TEACHER, data, book=book, keep=[TEACHER.name], resume=tmp_path)
    student = run(STUDENT, data, teacher=teacher.student, book=book)
    assert student.test_logits is None
    record = read_record(book / "records" / f"{STUDENT.name}.json")
    assert record == student.record and record["data"]["name"] == "python-512-32"
    assert record["data"]["split"] == {"train": 32, "validation": 8, "test": 8}
    assert record["data"]["checksum"] == data.checksum
    test = record["test"]
    assert test.pop("sample").startswith(PROMPT) and len(teacher.record["test"]["sample"]) > 60
    (expected,) = measure_tokens([student.student], data.test, teacher=teacher.student)
    assert test == pytest.approx(expected, rel=1e-12)
    assert 0 < test["bits_per_byte"] < math.log2(512)
    assert "agreement" not in teacher.record["test"]
    assert len(record["epochs"]["validation.bits_per_byte"]) == 1
    with pytest.raises(RecordError, match="has its record already"):
        run(STUDENT, data, teacher=teacher.student, book=book)


def test_a_draft_is_tried_after_its_training():
    data = python_text()
    drafting = Drafting(prompts=3, prompt=4, tokens=5, rounds=((2, 0.0),))
    teacher, draft = GPT(512, width=16, layers=1, heads=2), replace(STUDENT, drafting=drafting)
    found = run(draft, data, teacher=teacher).record["test"]["drafting"]
    (tried,) = found["rounds"]
    assert len(found["plain_seconds"]) == len(tried["calls"]) == 3
    again = run(draft, data, teacher=teacher).record["test"]["drafting"]["rounds"][0]
    assert [again[name] for name in ("calls", "tested", "accepted", "expected")] == [
        tried[name] for name in ("calls", "tested", "accepted", "expected")
    ]
    asked = []
    run(draft, data, teacher=teacher, stop=lambda: asked.append(1))
    # What is asked last is asked before the last prompt.
    with pytest.raises(Stopped):
        run(draft, data, teacher=teacher, stop=lambda: asked.pop() and len(asked) == 0)
    with pytest.raises(ValueError, match="a draft and a copy need a teacher"):
        replace(TEACHER, drafting=drafting)


@pytest.mark.parametrize("taught_by", ["text", "cache"])
def test_what_a_teacher_wrote_in_another_precision_is_another_text(taught_by, tmp_path):
    """A run in float32 read what one in bfloat16 had left, and the other way round."""
    how = {"text": "teacher", "own_text": OwnText(4)} if taught_by == "text" else {"kept": ("top-k", 3)}
    teacher, data = GPT(512, width=16, layers=1, heads=2), python_text()
    for precision in ("float32", "bfloat16", "float32"):
        spec = replace(STUDENT, recipe=replace(STUDENT.recipe, precision=precision), **how)
        language_data(spec, data.train, teacher, "cpu")
    (kept,) = (folder for folder in (tmp_path / "data").iterdir() if folder.name in ("written", "caches"))
    assert len([path for path in kept.iterdir() if not path.name.startswith(".")]) == 2


def test_the_same_run_says_the_same():
    first, second = (run(TEACHER, python_text()).record["test"] for _ in range(2))
    assert first == second


def test_a_plan_of_texts_says_what_it_found(monkeypatch, tmp_path):
    monkeypatch.setattr("kdlab.study.runner.load", lambda name: python_text())
    lines = []
    other = replace(STUDENT, arm="shorter", recipe=replace(STUDENT.recipe, epoch_examples=8))
    assert run_plan([TEACHER, STUDENT, other], book=tmp_path, say=lines.append) == 3
    said = [line for line in lines if "bits per byte of the test text" in line]
    assert len(said) == 3 and not [line for line in lines if "%" in line or "images/s" in line]


@pytest.mark.parametrize("change", [{"omit": (3,)}, {"hold_out": False}])
def test_classes_and_protocols_of_images_are_refused_of_a_text(change):
    with pytest.raises(ValueError, match="of a text no class is omitted, and its validation split is always held out"):
        run(replace(TEACHER, **change), python_text())


def test_a_text_is_loaded_by_its_name():
    assert load("python-512-32").num_classes == 512
    with pytest.raises(ValueError, match="unknown data 'python-512': there are cifar100, .*text is named"):
        load("python-512")
    with pytest.raises(ValueError, match="the spec asks for python-512-32, but the data are python-300-32"):
        run(TEACHER, replace(python_text(), name="python-300-32"))


@pytest.mark.parametrize("fused", [False, True])
def test_a_padded_teacher_teaches_what_it_would_without_the_padding(fused):
    """From all logits, and from hidden states."""
    teacher, padded = gpt(1, fused=fused), GPT(V + 2, width=8, layers=1, heads=2, context=CONTEXT).double()
    with torch.no_grad():
        padded.load_state_dict(
            teacher.state_dict()
            | {"embedding.weight": torch.cat([teacher.embedding.weight, teacher.embedding.weight[:2]])}
        )
    padded.fused = fused
    students = []
    for model, term in ((teacher, ForwardKL()), (padded, SharedVocabulary(ForwardKL(), torch.arange(V)))):
        students.append(gpt(fused=fused))
        fit(students[-1], 0.5 * CrossEntropy() + 0.5 * term, train=text(), teacher=model, recipe=RECIPE)
    torch.testing.assert_close(*(list(student.parameters()) for student in students))
    assert not torch.equal(students[0].embedding.weight, gpt().embedding.weight)

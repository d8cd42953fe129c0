"""On-policy text and the teacher's own: who writes what, what is learned of it, and that it is reproducible."""

import json
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlab.data import Tokens, folder
from kdlab.language import OwnText, teacher_text
from kdlab.language.text import after_prompt, written
from kdlab.models import GPT
from kdlab.objectives import CrossEntropy, ForwardKL, ReverseKL, SparseForwardKL
from kdlab.study import Spec, run
from kdlab.study.named import load
from kdlab.study.run import run_together
from kdlab.training import CheckpointError, Learner, Recipe, Stopped, fit_together

V, CONTEXT = 19, 6
RECIPE = Recipe(epochs=2, batch_size=4, optimizer="adamw", learning_rate=1e-2, schedule="cosine", augment=False)


def gpt(seed=0, fused=False):
    torch.manual_seed(seed)
    model = GPT(V, width=8, layers=1, heads=2, context=CONTEXT)
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    model.fused = fused
    return model


def text(blocks=10, seed=0):
    g = torch.Generator().manual_seed(seed)
    row = torch.randint(V, (blocks * CONTEXT + 1,), generator=g)
    return Tokens(row.to(torch.int16), CONTEXT, torch.ones(V, dtype=torch.long))


def batch(blocks=10):
    return next(text(blocks).batches(blocks))[:2]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def parameters(model):
    return [p.detach().clone() for p in model.parameters()]


def trained(rewrite=None, *, recipe=RECIPE, objective=None, student=None, **options):
    student = gpt() if student is None else student
    learner = Learner(student, objective or 1.0 * ReverseKL(), recipe, options.pop("checkpoint", None), rewrite=rewrite)
    (history,) = fit_together([learner], train=text(), teacher=gpt(1), **options)
    return parameters(student), history


def same(one, other):
    return all(map(torch.equal, one, other))


# The batch


@given(st.integers(1, CONTEXT), st.sampled_from([0.0, 0.7, 1.0]), st.integers(0, 100))
@settings(max_examples=20)
def test_the_prompt_is_left_and_what_follows_is_the_students(prompt, temperature, seed):
    inputs, labels = batch()
    own, targets = OwnText(prompt, temperature=temperature)(gpt(), inputs, labels, 0.5, seeded(seed))
    assert own.shape == targets.shape == (10, CONTEXT)
    assert torch.equal(own[:, :prompt], inputs[:, :prompt])
    assert (targets[:, : prompt - 1] == -100).all() and (targets[:, prompt - 1 :] >= 0).all()
    assert torch.equal(targets[:, prompt - 1 : -1], own[:, prompt:])  # each label is the token that follows
    assert own.dtype == targets.dtype == torch.int64 and not own.requires_grad
    generator = seeded(seed)
    torch.rand((), generator=generator)
    whole = written(gpt(), inputs, prompt, temperature, generator)
    assert torch.equal(whole[:, :-1], own) and torch.equal(whole[:, 1:][:, prompt - 1 :], targets[:, prompt - 1 :])


def test_at_temperature_zero_it_writes_what_it_finds_likeliest():
    inputs, labels = batch()
    own, targets = OwnText(2, temperature=0.0)(gpt(), inputs, labels, 0.5, seeded())
    with torch.no_grad():
        best = gpt()(own).argmax(-1)
    assert torch.equal(best[:, 1:], targets[:, 1:])


def test_what_is_written_depends_on_the_prompt_alone():
    inputs, labels = batch()
    changed = inputs.clone()
    changed[:, 3:] = 0
    one, other = (OwnText(3)(gpt(), x, labels, 0.5, seeded()) for x in (inputs, changed))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_labels_of_the_prompt_alone_are_taken_out():
    inputs, labels = after_prompt(torch.arange(5)[None], 3)
    assert inputs.tolist() == [[0, 1, 2, 3]] and labels.tolist() == [[-100, -100, 3, 4]]


def test_how_often_the_student_writes_is_drawn_step_by_step():
    """Of 400 steps, within four deviations."""
    inputs, labels = batch(2)
    own = OwnText(1, probability=0.3, temperature=0.0)
    changed = sum(own(gpt(), inputs, labels, 0.5, seeded(seed))[0] is not inputs for seed in range(400))
    assert abs(changed / 400 - 0.3) < 4 * (0.3 * 0.7 / 400) ** 0.5


def test_before_its_part_of_the_training_the_text_is_the_corpus():
    inputs, labels = batch()
    own = OwnText(2, after=0.5)
    for progress in (0.0, 0.49):
        assert own(gpt(), inputs, labels, progress, seeded())[0] is inputs
    for progress in (0.5, 0.99):
        assert own(gpt(), inputs, labels, progress, seeded())[0] is not inputs


@pytest.mark.parametrize(
    "how", [{"prompt": 0}, {"probability": 1.1}, {"probability": -0.1}, {"after": 2.0}, {"temperature": -1.0}]
)
def test_what_no_text_can_be_is_said(how):
    with pytest.raises(
        ValueError, match=r"^own text needs a prompt of at least one token, at least one copy, probability and after"
    ):
        OwnText(**how)


def test_a_prompt_longer_than_a_block_is_said():
    with pytest.raises(ValueError, match="a prompt of 7 tokens is longer than a block of 6"):
        trained(OwnText(7))


def test_what_is_no_block_of_tokens_is_said_before_anything_is_written():
    inputs, labels = batch()
    own = OwnText(2, after=0.5)
    for other in ({"input_ids": inputs}, inputs.float(), inputs[0]):
        with pytest.raises(TypeError, match=r"^own text goes on from blocks of tokens \(B, T\), as kdlab.data.Tokens"):
            own(gpt(), other, labels, 0.0, seeded())


# Training


def test_no_gradient_runs_through_the_writing():
    """One step on what was written is one step on the same text as a corpus."""
    whole = replace(RECIPE, epochs=1, batch_size=10, optimizer="sgd", learning_rate=0.1)
    seen = []

    class Watched(OwnText):
        def __call__(self, student, *arguments):
            seen.append((super().__call__(student, *arguments), [p.grad for p in student.parameters()]))
            return seen[-1][0]

    moved, _ = trained(Watched(2), recipe=whole)
    ((inputs, labels), gradients), student = seen[0], gpt()
    assert gradients == [None] * len(gradients)
    with torch.no_grad():
        t = gpt(1)(inputs)
    loss, _ = (1.0 * ReverseKL())(student_logits=student(inputs), teacher_logits=t, mask=labels != -100)
    loss.backward()
    decay = whole.weight_decay
    expected = [p.detach() - 0.1 * (p.grad + decay * p.detach() * (p.ndim > 0)) for p in student.parameters()]
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("never", [OwnText(2, probability=0.0), OwnText(2, after=1.0)], ids=["probability", "after"])
def test_a_student_that_never_writes_learns_from_the_corpus_bit_for_bit(never):
    assert same(trained(never)[0], trained()[0]) and not same(trained(OwnText(2))[0], trained()[0])


@pytest.mark.parametrize("fused", [False, True])
def test_the_same_again_is_the_same_bit_for_bit(fused):
    first = trained(OwnText(2), student=gpt(fused=fused))
    torch.rand(7)
    again = trained(OwnText(2), student=gpt(fused=fused))
    assert same(first[0], again[0]) and [e["loss"] for e in first[1]] == [e["loss"] for e in again[1]]
    assert not same(first[0], trained(OwnText(2), recipe=replace(RECIPE, seed=1))[0])


@pytest.mark.parametrize("step", [1, 2, 3])
def test_stopped_in_the_middle_it_goes_on_bit_for_bit(step, tmp_path):
    own, asked = OwnText(2, probability=0.7, after=0.2), []

    def stop():
        asked.append(1)
        return len(asked) > step

    with pytest.raises(Stopped):
        trained(own, checkpoint=tmp_path / "run", stop=stop)
    resumed, _ = trained(own, checkpoint=tmp_path / "run", student=gpt(5))
    assert same(resumed, trained(own)[0])
    with pytest.raises(CheckpointError, match=r"another run \(other rewrite\)"):
        trained(replace(own, prompt=3), checkpoint=tmp_path / "run")


def test_students_beside_each_other_do_not_know_of_each_other():
    def learners():
        return [
            Learner(gpt(0), 1.0 * ForwardKL(), RECIPE, rewrite=OwnText(2)),
            Learner(gpt(0), 1.0 * ForwardKL(), RECIPE),
            Learner(gpt(2), CrossEntropy() + ReverseKL(), replace(RECIPE, seed=1), rewrite=OwnText(3, 0.5)),
            Learner(gpt(0), 1.0 * ForwardKL(), replace(RECIPE, micro_batches=2), rewrite=OwnText(2)),
        ]

    together = learners()
    fit_together(together, train=text(), teacher=gpt(1), validation=text(3, 1))
    for alone, beside in zip(learners(), together, strict=True):
        fit_together([alone], train=text(), teacher=gpt(1), validation=text(3, 1))
        assert same(parameters(alone.student), parameters(beside.student))
    assert not same(parameters(together[0].student), parameters(together[1].student))
    torch.testing.assert_close(parameters(together[3].student), parameters(together[0].student), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("rate", [1e3, 1e20, 1e30])
def test_one_that_diverged_cannot_write_and_stops_no_other(rate):
    wild = replace(RECIPE, optimizer="sgd", learning_rate=rate, schedule="constant")
    learners = [
        Learner(gpt(), 1.0 * ForwardKL(), wild, rewrite=OwnText(2)),
        Learner(gpt(), 1.0 * ForwardKL(), RECIPE, rewrite=OwnText(2)),
    ]
    failure, history = fit_together(learners, train=text(), teacher=gpt(1))
    assert isinstance(failure, FloatingPointError) and "training diverged in epoch" in str(failure)
    assert len(history) == 2 and same(
        parameters(learners[1].student), trained(OwnText(2), objective=1.0 * ForwardKL())[0]
    )


def test_two_epochs_of_practice_bring_the_student_closer_where_it_writes_itself():
    """What on-policy distillation is for: KL from the student to the teacher on the student's own text."""
    longer = replace(RECIPE, epochs=20)

    def distance(moved):
        student = gpt()
        with torch.no_grad():
            for p, value in zip(student.parameters(), moved, strict=True):
                p.copy_(value)
            inputs, labels = OwnText(2)(student, *batch(), 1.0, seeded(9))
            return ReverseKL()(student_logits=student(inputs), teacher_logits=gpt(1)(inputs), mask=labels != -100)

    assert distance(trained(OwnText(2), recipe=longer)[0]) < 0.7 * distance(parameters(gpt()))


# The teacher's text


def blocks(tokens):
    inputs, labels, _ = next(tokens.batches(len(tokens)))
    return torch.cat([inputs, labels[:, -1:]], 1)


@pytest.mark.parametrize("prompt", [1, 3, CONTEXT])
def test_what_the_teacher_writes_begins_as_the_corpus_does(prompt, tmp_path):
    """And goes on as the teacher would; its blocks share no token."""
    found = teacher_text(tmp_path / "text.bin", gpt(1), text(), prompt=prompt, temperature=0.0)
    assert len(found) == 10 and (found.context, found.stride) == (CONTEXT, CONTEXT + 1)
    assert len(found.labels) == 10 * (CONTEXT + 1)
    rows, corpus = blocks(found), batch()[0]
    assert torch.equal(rows[:, :prompt], corpus[:, :prompt])
    assert torch.equal(rows.flatten(), found.labels.long() & 0xFFFF)
    with torch.no_grad():
        best = gpt(1)(rows[:, :-1]).argmax(-1)
    assert torch.equal(rows[:, prompt:], best[:, prompt - 1 :])


def test_chosen_blocks_are_gone_on_from_in_their_order(tmp_path):
    some = text()[torch.tensor([7, 2])]
    found = teacher_text(tmp_path / "text.bin", gpt(1), some, prompt=2)
    assert torch.equal(blocks(found)[:, :2], batch()[0][[7, 2], :2])


def test_it_is_written_once(tmp_path):
    path, teacher, told = tmp_path / "text.bin", gpt(1), []
    first = teacher_text(path, teacher, text(), prompt=2, at_once=4, report=lambda *at: told.append(at))
    assert told == [(4, 10), (8, 10), (10, 10)]
    content, state = path.read_bytes(), torch.get_rng_state()
    teacher.register_forward_hook(lambda *_: pytest.fail("the teacher was asked again"))
    second = teacher_text(path, teacher, text(), prompt=2)
    assert torch.equal(first.labels, second.labels) and path.read_bytes() == content
    assert torch.equal(torch.get_rng_state(), state)
    again = teacher_text(tmp_path / "again.bin", gpt(1), text(), prompt=2, at_once=4)
    other = teacher_text(tmp_path / "other.bin", gpt(1), text(), prompt=2, at_once=4, seed=1)
    assert torch.equal(again.labels, first.labels) and not torch.equal(other.labels, first.labels)


def test_a_truncated_text_is_refused_and_one_that_fails_is_not_there(tmp_path):
    path = tmp_path / "text.bin"
    teacher_text(path, gpt(1), text(), prompt=2)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(
        ValueError, match=r"text.bin is damaged, or of another teacher or text, .*: delete it, and it is written anew"
    ):
        teacher_text(path, gpt(1), text(), prompt=2)
    path.unlink()

    def fails(done, of):
        raise MemoryError(f"after {done} of {of}")

    with pytest.raises(MemoryError, match="after 4 of 10"):
        teacher_text(path, gpt(1), text(), prompt=2, at_once=4, report=fails)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "other",
    [{"prompt": 3}, {"temperature": 0.5}, {"seed": 1}, {"teacher": 2}, {"blocks": slice(0, 9)}],
    ids=str,
)
def test_a_text_that_was_written_otherwise_is_not_read_in_its_place(other, tmp_path):
    how = {"prompt": 2}
    path = tmp_path / "text.bin"
    teacher_text(path, gpt(1), text(), **how)
    teacher, tokens = gpt(other.pop("teacher", 1)), text()[other.pop("blocks", slice(None))]
    with pytest.raises(ValueError, match="or was written in another way"):
        teacher_text(path, teacher, tokens, **{**how, **other})


# Records


@lru_cache
def python_text():
    data = load("python-300-256")
    return replace(data, train=data.train[:8], validation=data.validation[:2], test=data.test[:2])


TEXT = replace(RECIPE, epochs=1, batch_size=4, learning_rate=2e-3, max_gradient_norm=1.0)
TEACHER = Spec("tests", "teacher", "python-300-256", "gpt_64x2", 1.0 * CrossEntropy(), TEXT)
STUDENT = replace(TEACHER, arm="kd", teacher=TEACHER, objective=1.0 * ForwardKL(), train_examples=4)
OWN = OwnText(240)


def made():
    """The files that runs have left in the data folder, and when."""
    kinds = ("written", "caches")
    return {p: p.stat().st_mtime_ns for kind in kinds for p in (folder() / kind).rglob("*") if p.is_file()}


def test_texts_and_caches_are_made_once_and_used_again(tmp_path):
    data, book = python_text(), tmp_path / "book"
    teacher = run(TEACHER, data).student
    specs = [
        replace(STUDENT, arm="teacher-text", text="teacher", own_text=OWN, objective=1.0 * CrossEntropy()),
        replace(STUDENT, arm="sampled", kept=("sampled", 4), objective=1.0 * SparseForwardKL()),
        replace(STUDENT, arm="own", text="student", own_text=OWN),
    ]
    records = [run(spec, data, teacher=teacher, book=book).record for spec in specs]
    once = made()
    assert len([p for p in once if p.suffix == ".bin" and p.parent.name == "written"]) == 1
    assert sorted(p.name for p in once if "caches" in p.parts) == [
        "header.json",
        "probabilities.bin",
        "tokens.bin",
    ]
    for spec, record in zip(specs, records, strict=True):
        assert 0 < record["test"]["bits_per_byte"] < 9 and record["data"]["split"]["train"] == 4
        again = run(spec, data, teacher=teacher).record
        assert again["test"] == record["test"] and again["epochs"]["loss"] == record["epochs"]["loss"]
    assert made() == once
    assert len({json.dumps(record["epochs"]["loss"]) for record in records}) == 3
    assert len(list((book / "records").iterdir())) == 3


@pytest.mark.parametrize(
    "made_by", [{"text": "teacher", "own_text": OWN}, {"kept": ("sampled", 4)}], ids=["text", "cache"]
)
def test_what_a_teacher_writes_can_be_stopped_before_the_first_step(made_by):
    data, before = python_text(), made()
    teacher = run(TEACHER, data).student
    objective = 1.0 * (SparseForwardKL() if "kept" in made_by else CrossEntropy())
    with pytest.raises(Stopped):
        run(replace(STUDENT, arm="s", objective=objective, **made_by), data, teacher=teacher, stop=lambda: True)
    assert made() == before


def test_another_teacher_makes_its_own(tmp_path):
    spec = replace(STUDENT, kept=("top-k", 4), objective=1.0 * SparseForwardKL())
    for seed in (0, 1):
        run(
            spec,
            python_text(),
            teacher=run(replace(TEACHER, recipe=replace(TEXT, seed=seed)), python_text()).student,
        )
    assert len(list((folder() / "caches").iterdir())) == 2


def test_what_a_student_cannot_learn_from_is_said():
    data = python_text()
    with pytest.raises(ValueError, match="a teacher's text, what is kept of it, a draft and a copy need a teacher"):
        replace(TEACHER, kept=("sampled", 4))
    with pytest.raises(ValueError, match="a teacher's text, what is kept of it, a draft and a copy need a teacher"):
        replace(TEACHER, text="teacher", own_text=OWN)
    for change in ({"text": "student"}, {"own_text": OWN}, {"text": "mine", "own_text": OWN}):
        with pytest.raises(ValueError, match='text is "corpus", or "teacher" or "student" with own_text'):
            replace(STUDENT, **change)
    cached = replace(STUDENT, arm="kept", kept=("sampled", 4))
    with pytest.raises(ValueError, match="have other training data"):
        run_together([STUDENT, cached], data, teacher=GPT(300, width=8, layers=1, heads=1))


def test_a_text_of_another_precision_is_another(tmp_path):
    path = tmp_path / "text.bin"
    teacher_text(path, gpt(1), text(), prompt=2)
    with pytest.raises(ValueError, match="written in another way"):
        teacher_text(path, gpt(1), text(), prompt=2, precision="bfloat16")

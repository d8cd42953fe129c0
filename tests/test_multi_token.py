"""Modules that predict further tokens: what they read, what teaches them, and that what they propose changes no text."""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlab.data import Tokens
from kdlab.language import Drafting, generate, speculate
from kdlab.language.speculative import OwnModules
from kdlab.models import GPT, Ahead, MultiToken, count_parameters, gpt_224x4, heads_in_a_row_224x4
from kdlab.objectives import CrossEntropy, ForwardKL, cross_entropy, forward_kl, total_variation
from kdlab.study import Spec, run
from kdlab.study.named import load
from kdlab.study.run import run_together
from kdlab.training import Recipe, fit, measure_further

V, CONTEXT, DEPTH = 13, 24, 3
both_kinds = pytest.mark.parametrize("in_a_row", [True, False], ids=["in a row", "side by side"])


def gpt(seed=0):
    torch.manual_seed(seed)
    model = GPT(V, width=16, layers=2, heads=2, context=CONTEXT)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8 if p.ndim > 1 else 1)
    return model


def modules(in_a_row, depth=DEPTH):
    model = MultiToken(gpt(), depth, in_a_row=in_a_row)
    with torch.no_grad():
        for p in (*model.blocks.parameters(), *model.norms.parameters()):
            p.mul_(8 if p.ndim > 1 else 1)
    return model.eval()


def text(*shape, seed=1):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


@both_kinds
def test_a_module_reads_up_to_the_token_before_the_one_that_it_predicts(in_a_row):
    """And side by side no further than the model itself."""
    model, tokens = modules(in_a_row), text(1, 10)
    with torch.no_grad():
        before = model(tokens)
        for place in range(10):
            changed = tokens.clone()
            changed[0, place] = (tokens[0, place] + 1) % V
            moved = (model(changed) - before).abs().amax(-1)[0] > 1e-6
            for k in range(1, DEPTH + 1):
                reads_up_to = k if in_a_row else 0
                seen = torch.arange(10) + reads_up_to >= place
                whole = slice(0, 10 - k)  # behind it, what it reads is not there
                assert moved[k - 1][whole].tolist() == seen[whole].tolist()


def test_what_teaches_is_what_the_model_says_one_step_later():
    model, tokens = gpt(), text(2, 10)
    with torch.no_grad():
        said, ahead = model(tokens), Ahead(model, DEPTH)(tokens)
    assert ahead.shape == (2, DEPTH, 10, V) and model.fused is False
    for k in range(1, DEPTH + 1):
        torch.testing.assert_close(ahead[:, k - 1, : 10 - k], said[:, k:])


def test_labels_of_further_tokens():
    row = torch.arange(23, dtype=torch.int16)
    tokens = Tokens(row, 11, torch.ones(23, dtype=torch.long), ahead=2)
    inputs, labels, _ = next(tokens.batches(2))
    assert labels.shape == (2, 2, 11)
    for k in (1, 2):
        assert (labels[:, k - 1, : 11 - k] == inputs[:, : 11 - k] + k + 1).all()
        assert (labels[:, k - 1, 11 - k :] == -100).all()


@both_kinds
def test_the_model_itself_stays_as_it_is(in_a_row):
    model, tokens = modules(in_a_row), Tokens(text(200).short(), 8, torch.ones(V, dtype=torch.long), ahead=DEPTH)
    trunk = {name: value.clone() for name, value in model.trunk.state_dict().items()}
    rest = {name: value.clone() for name, value in model.blocks.state_dict().items()}
    recipe = Recipe(epochs=8, batch_size=4, optimizer="adamw", learning_rate=3e-3, weight_decay=0.1, augment=False)
    model.fused = True
    history = fit(model, 1.0 * ForwardKL(), train=tokens, teacher=Ahead(gpt(), DEPTH), recipe=recipe)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert all(torch.equal(value, trunk[name]) for name, value in model.trunk.state_dict().items())
    assert not all(torch.equal(value, rest[name]) for name, value in model.blocks.state_dict().items())


@both_kinds
def test_dense_and_fused_losses_are_one(in_a_row):
    losses = []
    for fused in (False, True):
        model, teacher, tokens = modules(in_a_row), Ahead(gpt(1), DEPTH), text(2, 10)
        labels = replace(Tokens(text(11).short(), 10, torch.ones(V, dtype=torch.long)), ahead=DEPTH)
        _, labels, _ = next(labels.batches(1))
        model.fused = teacher.fused = fused
        with torch.no_grad():
            t = teacher(tokens)
        objective = 0.5 * CrossEntropy() + 0.5 * ForwardKL()
        z, y = model(tokens), labels.expand(2, -1, -1)
        loss, _ = objective(student_logits=z, teacher_logits=t, labels=y, mask=y != -100)
        loss.backward()
        losses.append((loss, model.norms[1].weight.grad))
    torch.testing.assert_close(losses[0], losses[1])


@both_kinds
@given(
    prompts=st.lists(st.integers(1, 6), min_size=3, max_size=3),
    grown=st.lists(st.lists(st.integers(1, DEPTH + 1), min_size=3, max_size=3), min_size=1, max_size=4),
    proposed=st.lists(st.integers(1, DEPTH), min_size=5, max_size=5),
    seed=st.integers(0, 50),
)
@settings(max_examples=25, deadline=None)
def test_proposing_step_by_step_is_the_whole_model(in_a_row, prompts, grown, proposed, seed):
    """Whatever is accepted of a round, however long the rows and the rounds."""
    model, written = modules(in_a_row), text(3, CONTEXT + 2, seed=seed)
    lengths = torch.tensor(prompts)
    proposer, cache = OwnModules(model, written[:, :6]), model.trunk.cache(3)
    with torch.no_grad():
        model.trunk.fused = True  # whose states the modules look at
        proposer.see(model.trunk(written[:, :6], cache), torch.zeros(3, dtype=torch.long))
        lengths = lengths + 1
        for number, more in zip(proposed, [*grown, [0, 0, 0]], strict=False):
            drawn = text(3, DEPTH, seed=seed + 7 * int(lengths.sum()))  # what is proposed, whether or not it stays
            guessed = written.clone()
            guessed.scatter_(1, lengths[:, None] + torch.arange(DEPTH), drawn)
            for k in range(1, number + 1):
                logits = proposer.first(written, lengths) if k == 1 else proposer.after(drawn[:, k - 2 : k - 1])
                for row, n in enumerate(lengths.tolist()):
                    whole = model(guessed[row : row + 1, : n - 1 + k])
                    torch.testing.assert_close(logits[row], whole[0, k - 1, n - 2], rtol=2e-4, atol=2e-4)
            cache.rewind(lengths - 1)
            verified = written.gather(1, (lengths - 1)[:, None] + torch.arange(DEPTH + 1))
            proposer.see(model.trunk(verified, cache), lengths - 1)
            lengths = (lengths + torch.tensor(more)).clamp(max=CONTEXT - DEPTH - 1)


@both_kinds
@given(
    lengths=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    tokens=st.integers(0, 12),
    draft_length=st.integers(1, DEPTH),
    stop_below=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 50),
)
@settings(max_examples=25, deadline=None)
def test_a_model_that_proposes_to_itself_writes_its_own_text(in_a_row, lengths, tokens, draft_length, stop_below, seed):
    model, prompts, lengths = modules(in_a_row), text(3, 5, seed=seed), torch.tensor(lengths)
    expected = generate(model.trunk, prompts, tokens=tokens, lengths=lengths, temperature=0)
    how = {"tokens": tokens, "draft_length": draft_length, "stop_below": stop_below, "temperature": 0}
    assert speculate(model.trunk, model, prompts, lengths=lengths, **how).text.tolist() == expected.tolist()


@both_kinds
@pytest.mark.parametrize("tokens", [19, 20])
def test_a_model_that_proposes_to_itself_writes_to_the_end_of_its_context(in_a_row, tokens):
    model, prompts, lengths = modules(in_a_row), text(3, 5), torch.tensor([5, 2, 4])
    expected = generate(model.trunk, prompts, tokens=tokens, lengths=lengths, temperature=0)
    assert (
        speculate(model.trunk, model, prompts, tokens=tokens, lengths=lengths, temperature=0).text.tolist()
        == expected.tolist()
    )


@both_kinds
def test_what_is_accepted_of_modules_is_in_the_mean_what_was_expected(in_a_row):
    model = modules(in_a_row)
    generator = torch.Generator().manual_seed(0)
    found = speculate(model.trunk, model, text(2000, 3), tokens=8, draft_length=2, generator=generator)
    difference = (found.accepted - found.expected).double()
    assert found.tested.sum() > 5000 and abs(difference.mean()) < 4.5 * difference.std() / 2000**0.5


def test_measures_are_of_each_module(monkeypatch):
    monkeypatch.setattr("kdlab.training.measures._gaps", None)  # no calibration is computed that nobody sees
    model, teacher = modules(True), Ahead(gpt(1), DEPTH)
    tokens = Tokens(text(100).short(), 8, torch.ones(V, dtype=torch.long), ahead=DEPTH)
    found = measure_further(model, tokens, teacher=teacher, tokens_at_once=16)
    inputs, labels, _ = next(tokens.batches(len(tokens)))
    with torch.no_grad():
        z, t = model(inputs), teacher(inputs)
    for k, measured in enumerate(found):
        known = labels[:, k] != -100
        q, p, y = z[:, k][known], t[:, k][known], labels[:, k][known]
        assert measured == pytest.approx(
            {
                "cross_entropy": cross_entropy(q, y).item(),
                "accuracy": (q.argmax(-1) == y).float().mean().item(),
                "agreement": (q.argmax(-1) == p.argmax(-1)).float().mean().item(),
                "kl_to_teacher": forward_kl(q, p).item(),
                "total_variation": total_variation(q, p).item(),
            },
            rel=1e-5,
        )


@lru_cache
def python_text():
    data = load("python-512-32")
    return replace(data, train=data.train[:16], validation=data.validation[:4], test=data.test[:4])


RECIPE = Recipe(epochs=1, batch_size=4, optimizer="adamw", learning_rate=2e-3, augment=False)
TEACHER = Spec("tests", "model", "python-512-32", "gpt_224x4", 1.0 * CrossEntropy(), RECIPE)
DRAFTING = Drafting(prompts=2, prompt=4, tokens=5, rounds=((3, 0.0),))
STUDENT = Spec(
    "tests", "modules", "python-512-32", "heads_in_a_row_224x4", 1.0 * ForwardKL(), RECIPE, TEACHER, drafting=DRAFTING
)


def test_a_run_of_modules_leaves_its_record():
    torch.manual_seed(0)
    teacher = gpt_224x4(512)
    beside = replace(STUDENT, arm="side", student="heads_side_by_side_224x4", objective=1.0 * CrossEntropy())
    done = run_together([STUDENT, beside], python_text(), teacher=teacher)
    for finished in done:
        test = finished.record["test"]
        assert [0 < module["total_variation"] < 1 for module in test["modules"]] == [True] * 3
        assert len(test["drafting"]["plain_seconds"]) == 2
        for name, value in finished.student.trunk.state_dict().items():
            assert torch.equal(value, teacher.state_dict()[name])
        learned = sum(p.numel() for p in finished.student.parameters() if p.requires_grad)
        assert finished.record["parameters"] == learned == count_parameters(finished.student)


def test_what_modules_cannot_stand_on_gets_a_sentence():
    data = python_text()
    with pytest.raises(ValueError, match="at least one module is needed, not 0"):
        MultiToken(gpt(), 0, in_a_row=True)
    with pytest.raises(ValueError, match="these modules were made for a model of another shape"):
        heads_in_a_row_224x4(512).stand_on(gpt())
    with pytest.raises(ValueError, match="heads_in_a_row_224x4 stands on a trained model: its spec needs a teacher"):
        run(replace(STUDENT, teacher=None, objective=1.0 * CrossEntropy(), drafting=None), data)
    with pytest.raises(ValueError, match="students that predict as many further tokens train side by side"):
        run_together([STUDENT, replace(STUDENT, student="gpt_64x2")], data, teacher=gpt_224x4(512))
    model = modules(True)
    with pytest.raises(ValueError, match=r"the verifier is draft\.trunk itself, not a copy"):
        speculate(gpt(), model, text(1, 3), tokens=4, draft_length=2)
    with pytest.raises(ValueError, match="3 modules propose at most 3 tokens, not 4"):
        speculate(model.trunk, model, text(1, 3), tokens=4, draft_length=DEPTH + 1)
    for writes in (
        lambda: generate(model, text(1, 3), tokens=4),
        lambda: speculate(model, gpt(), text(1, 3), tokens=4),
    ):
        with pytest.raises(TypeError, match="MultiToken does not write by itself: .* of modules .* their trunk"):
            writes()
    with pytest.raises(TypeError, match="modules stand on kdlab's GPT, not on Linear"):
        MultiToken(torch.nn.Linear(2, 2), 1, in_a_row=True)
    with pytest.raises(ValueError, match="at least one further token is looked at, not 0"):
        Ahead(gpt(), 0)


def test_a_model_answers_as_before_once_modules_stand_on_it():
    trunk = gpt()
    before = trunk(text(1, 5))
    assert speculate(trunk, MultiToken(trunk, 2, in_a_row=True), text(1, 3), tokens=4).text.shape == (1, 7)
    assert torch.equal(trunk(text(1, 5)), before) and not trunk.fused

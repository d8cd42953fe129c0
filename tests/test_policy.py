"""Policies on a leash: estimates of the divergence and their gradients, baselines, and what a policy becomes."""

import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kdlab
from kdlab.data import Examples
from kdlab.language import OwnText, TokenCount, read_tokeniser, tokens_of
from kdlab.models import GPT
from kdlab.objectives import (
    CrossEntropy,
    HeadLogits,
    MeanReward,
    PolicyGradient,
    SampledReverseKL,
    TextKL,
    advantages,
    forward_kl,
    reverse_kl,
    sampled_gradient_variance,
    sampled_kl,
)
from kdlab.objectives.policy import log_probabilities
from kdlab.study import Spec, language_plans, run
from kdlab.study.named import load
from kdlab.study.plans import PLANS
from kdlab.training import Learner, Recipe, fit, fit_together

V = 5


def logits(seed, *shape, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()


# Estimates


@given(st.integers(0, 500), st.floats(0.1, 3))
@settings(max_examples=30)
def test_what_the_estimates_are_in_the_mean(seed, scale):
    z, t = logits(seed, V, scale=scale), logits(seed + 1, V)
    log_q, log_p = (torch.log_softmax(x, -1).detach() for x in (z, t))
    mean = {kind: (log_q.exp() * sampled_kl(log_q, log_p, kind)).sum() for kind in ("k1", "k2", "k3")}
    exact = reverse_kl(z, t).detach()
    torch.testing.assert_close(mean["k1"], exact)
    torch.testing.assert_close(mean["k3"], exact)
    assert (sampled_kl(log_q, log_p, "k3") >= 0).all() and (sampled_kl(log_q, log_p, "k2") >= 0).all()


@pytest.mark.parametrize("baseline", [False, True])
def test_reverse_kl_of_drawn_tokens_has_the_gradient_of_the_exact_one_and_this_variance(baseline):
    """Over all that can be drawn: each of the vocabulary's tokens, by its probability."""
    z, t = logits(0, V), logits(1, V, scale=2.0)
    q, term = torch.softmax(z, -1).detach(), SampledReverseKL(baseline)
    values, gradients = [], []
    for token in range(V):
        value = term(student_logits=z[None, None], teacher_logits=t[None, None], labels=torch.tensor([[token]]))
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, z)[0])
    exact = reverse_kl(z, t)
    (known,) = torch.autograd.grad(exact, z)
    mean = q @ torch.stack(gradients)
    torch.testing.assert_close(q @ torch.stack(values), exact.detach())
    torch.testing.assert_close(mean, known)
    variance, squared = sampled_gradient_variance(z.detach(), t.detach(), baseline=baseline)
    torch.testing.assert_close(squared, known.square().sum())
    torch.testing.assert_close(variance, q @ (torch.stack(gradients) - mean).square().sum(1))
    assert variance > 0


def test_a_student_that_is_its_teacher_has_no_gradient_and_no_variance():
    z = logits(0, 3, V).detach()
    assert sampled_gradient_variance(z, z)[0].abs().max() < 1e-12


def test_tokens_that_were_not_drawn_do_not_count_and_the_mean_is_over_those_that_were():
    z, t = logits(0, 2, 3, V), logits(1, 2, 3, V)
    labels, mask = torch.tensor([[-100, 1, 2], [3, 4, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    term = SampledReverseKL()
    assert repr(term) == "SampledReverseKL()" and repr(SampledReverseKL(True)) == "SampledReverseKL(baseline=True)"
    found = term(student_logits=z, teacher_logits=t, labels=labels, mask=mask)
    log_q, log_p = (torch.log_softmax(x, -1) for x in (z, t))
    drawn = [(0, 1, 1), (0, 2, 2), (1, 0, 3), (1, 1, 4)]
    torch.testing.assert_close(found, sum((log_q - log_p)[place] for place in drawn) / 4)
    torch.testing.assert_close(term(student_logits=z, teacher_logits=t, labels=labels, mask=mask, count=8), found / 2)
    hidden, weight = logits(2, 2, 3, 4), logits(3, V, 4)
    losses = []
    for student in (HeadLogits(hidden, weight), HeadLogits(hidden, weight).dense()):
        loss, _ = (1.0 * term)(student_logits=student, teacher_logits=t.detach(), labels=labels, mask=mask)
        losses.append([loss.detach(), *torch.autograd.grad(loss, [hidden, weight])])
    torch.testing.assert_close(*losses)


def test_k2_is_biased_and_less_so_the_nearer_the_two_are():
    z, t = logits(0, V).detach(), logits(1, V).detach()
    off = []
    for near in (1.0, 0.1, 0.01):
        log_q, log_p = torch.log_softmax(t + near * (z - t), -1), torch.log_softmax(t, -1)
        exact = (log_q.exp() * (log_q - log_p)).sum()
        off.append(abs((log_q.exp() * sampled_kl(log_q, log_p, "k2")).sum() / exact - 1))
    assert off[0] > 0.05 and off[1] < 0.2 * off[0] and off[2] < 0.2 * off[1]


@given(st.integers(0, 500), st.floats(0.1, 3))
@settings(max_examples=30)
def test_what_the_gradients_of_the_estimates_are_in_the_mean(seed, scale):
    """Drawn from q, which is not differentiated: nothing, the divergence's, and that of the other direction."""
    z, t = logits(seed, V, scale=scale), logits(seed + 1, V).detach()
    found = {}
    for kind in ("k1", "k2", "k3"):
        log_q = torch.log_softmax(z, -1)
        loss = (log_q.detach().exp() * sampled_kl(log_q, torch.log_softmax(t, -1), kind)).sum()
        (found[kind],) = torch.autograd.grad(loss, z)
    of = {name: torch.autograd.grad(f(z, t), z)[0] for name, f in (("reverse", reverse_kl), ("forward", forward_kl))}
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(found["k1"], torch.zeros_like(z), **close)
    torch.testing.assert_close(found["k2"], of["reverse"], **close)
    torch.testing.assert_close(found["k3"], of["forward"], **close)


# Baselines


@given(st.integers(1, 4), st.integers(2, 6), st.integers(0, 100))
def test_a_return_left_out_of_its_own_baseline(groups, group, seed):
    returns = logits(seed, groups * group).detach()
    found = advantages(returns, group)
    for i, value in enumerate(returns):
        first = i - i % group
        others = [returns[j] for j in range(first, first + group) if j != i]
        assert found[i].item() == pytest.approx((value - sum(others) / len(others)).item(), abs=1e-12)
    torch.testing.assert_close(advantages(returns + 3, group), found)
    assert torch.equal(advantages(returns, group, "none"), returns)


@given(st.integers(2, 6), st.integers(0, 100), st.floats(0.1, 10))
def test_standardised_advantages_forget_scale_and_level(group, seed, scale):
    returns = 10 * logits(seed, 3 * group).detach()
    found = advantages(returns, group, "standardised").view(3, group)
    torch.testing.assert_close(found.mean(1), torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)
    again = advantages(scale * returns + 7, group, "standardised").view(3, group)
    torch.testing.assert_close(found, again, rtol=2e-2, atol=1e-3)


def test_where_all_returns_are_alike_there_is_nothing_to_learn():
    assert (advantages(torch.full((4,), 2.0), 4, "standardised") == 0).all()
    assert (advantages(torch.full((4,), 2.0), 2) == 0).all()


# The gradient of what is wanted, over every text

TEXTS = torch.tensor(list(product(range(3), repeat=2)))
REWARD = TokenCount((2,))


def policy_of(z):
    """Logits ``(9, 2, 3)`` of each text's tokens: z has a row for the empty text and one for each first letter."""
    return torch.stack([z[0].expand(len(TEXTS), -1), z[1 + TEXTS[:, 0]]], 1)


def wanted(z, t, beta):
    log_q, log_p = (log_probabilities(policy_of(x), TEXTS).sum(1) for x in (z, t))
    return (log_q.exp() * (REWARD(TEXTS) - beta * (log_q - log_p))).sum()


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_reinforce_follows_the_gradient_of_the_mean_reward_less_the_divergence(beta):
    z, t = logits(0, 4, 3), logits(1, 4, 3).detach()
    probability = log_probabilities(policy_of(z), TEXTS).sum(1).exp().detach()
    term = PolicyGradient(REWARD, 1, "none", beta)
    loss = 0.0
    for row, weight in enumerate(probability):
        one = slice(row, row + 1)
        seen = {"student_logits": policy_of(z)[one], "teacher_logits": policy_of(t)[one], "labels": TEXTS[one]}
        loss = loss + weight * term(**seen)
    (found,) = torch.autograd.grad(loss, z)
    (expected,) = torch.autograd.grad(-wanted(z, t, beta), z)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("baseline", "unbiased"), [("leave-one-out", True), ("standardised", False)])
def test_leaving_one_out_keeps_the_gradient_and_standardising_does_not(baseline, unbiased):
    z = logits(0, 4, 3)
    probability = log_probabilities(policy_of(z), TEXTS).sum(1).exp().detach()
    term, loss = PolicyGradient(REWARD, 2, baseline), 0.0
    for first, second in product(range(len(TEXTS)), repeat=2):
        both = [first, second]
        weight = probability[first] * probability[second]
        loss = loss + weight * term(student_logits=policy_of(z)[both], labels=TEXTS[both])
    (found,) = torch.autograd.grad(loss, z)
    (expected,) = torch.autograd.grad(-wanted(z, z.detach(), 0.0), z)
    assert torch.allclose(found, expected, rtol=1e-6) == unbiased


def test_the_loss_of_texts_sums_over_tokens_and_leaves_out_prompts():
    z, t = logits(2, 4, 3, V), logits(3, 4, 3, V)
    labels = torch.randint(V, (4, 3), generator=torch.Generator().manual_seed(0))
    labels[:, 0] = -100
    seen = {"student_logits": z, "teacher_logits": t, "labels": labels}
    exact = sum(reverse_kl(z[:, k], t[:, k], reduction="none") for k in (1, 2)).mean()
    torch.testing.assert_close(TextKL("exact")(**seen), exact)
    log_q, log_p = (torch.log_softmax(x, -1).gather(-1, labels.clamp(min=0)[..., None])[..., 0] for x in (z, t))
    for kind in ("k1", "k2", "k3"):
        by_hand = sampled_kl(log_q, log_p, kind)[:, 1:].sum(1).mean()
        torch.testing.assert_close(TextKL(kind)(**seen), by_hand)
    halves = [
        TextKL("k3")(**{k: v[half] for k, v in seen.items()}, example_count=4) for half in (slice(2), slice(2, 4))
    ]
    torch.testing.assert_close(sum(halves), TextKL("k3")(**seen))
    assert MeanReward(TokenCount(tuple(range(V))))(**seen) == 2


# What a policy becomes


def gpt(seed=0):
    torch.manual_seed(seed)
    return GPT(V, width=16, layers=1, heads=2, context=8)


RECIPE = Recipe(
    epochs=4, batch_size=64, epoch_examples=512, optimizer="adam", learning_rate=1e-2, weight_decay=0.0, schedule="cosine",
    augment=False,
)  # fmt: skip


def test_a_policy_becomes_its_reference_weighted_by_the_reward():
    """q ∝ p·exp(r/β): of a reward that counts tokens, each is e^{1/β} times as likely."""
    reference, policy, beta = gpt(), gpt(), 0.8
    tokens = torch.zeros(512, 8, dtype=torch.long)
    data = Examples(tokens[:, :6], tokens[:, 1:7])
    own = OwnText(1, copies=8)
    objective = PolicyGradient(TokenCount((3,)), 8, beta=beta) + 0.0 * TextKL("exact")
    (history,) = fit_together([Learner(policy, objective, RECIPE, rewrite=own)], train=data, teacher=reference)
    with torch.no_grad():
        p = torch.softmax(reference(tokens[:1, :1])[0, 0].double(), -1)
        q = torch.softmax(policy(tokens[:1, :1])[0, 0].double(), -1)
    solution = p * torch.where(torch.arange(V) == 3, math.exp(1 / beta), 1.0)
    solution /= solution.sum()
    assert q[3] > 1.8 * p[3] and abs(q[3] - solution[3]) < 0.06
    assert history[-1]["TextKL"] > 0.1


def test_texts_of_one_prompt_stand_side_by_side():
    own = OwnText(3, copies=2)
    inputs = torch.randint(V, (4, 7), generator=torch.Generator().manual_seed(1))
    new, labels = own(gpt(), inputs, inputs, 0.0, torch.Generator().manual_seed(0))
    assert new[:, :3].tolist() == inputs[[0, 0, 2, 2], :3].tolist()
    assert (labels[:, :2] == -100).all() and (labels[:, 2:] != -100).all()
    assert not torch.equal(new[0, 3:], new[1, 3:])
    with pytest.raises(ValueError, match="a batch of 3 is not made of 2 texts for each prompt"):
        own(gpt(), inputs[:3], inputs[:3], 0.0, torch.Generator().manual_seed(0))


# Studies

PLAIN = Recipe(epochs=1, batch_size=4, epoch_examples=8, optimizer="adam", learning_rate=1e-3, augment=False)
TEACHER = Spec("tests", "reference", "python-512-32", "gpt_64x2", 1.0 * CrossEntropy(), PLAIN)
POLICY = Spec(
    "tests", "policy", "python-512-32", "gpt_64x2",
    PolicyGradient(TokenCount((10, 20)), 2, beta=0.5) + 0.0 * MeanReward(TokenCount((10, 20))), PLAIN, TEACHER,
    text="student", own_text=OwnText(4, copies=2), from_teacher=True,
)  # fmt: skip


def test_a_run_of_a_policy_leaves_its_record(monkeypatch):
    monkeypatch.setattr("kdlab.study.texts.POLICY_TEXTS", 16)
    data = load("python-512-32")
    data = replace(data, train=data.train[:16], validation=data.validation[:4], test=data.test[:16])
    teacher = run(TEACHER, data).student
    still = run(replace(POLICY, recipe=replace(PLAIN, learning_rate=1e-12)), data, teacher=teacher)
    for name, value in still.student.state_dict().items():
        torch.testing.assert_close(value, teacher.state_dict()[name], rtol=0, atol=1e-9)
    found = still.record["test"]["policy"]
    assert len(found["reward"]) == len(found["kl"]) == 4 and max(found["kl"]) < 1e-6
    assert 0 < found["distinct"] <= 1 and len(found["samples"]) == 1
    moved = run(replace(POLICY, recipe=replace(PLAIN, learning_rate=1e-2)), data, teacher=teacher)
    assert min(moved.record["test"]["policy"]["kl"]) > 1e-6
    assert "MeanReward" in moved.record["epochs"]


def test_what_a_policy_cannot_be_gets_a_sentence():
    for wrong, sentence in (
        (lambda: sampled_kl(torch.zeros(2), torch.zeros(3)), "are not of the same tokens"),
        (lambda: sampled_kl(torch.zeros(2), torch.zeros(2), "k4"), "an estimate is k1, k2 or k3"),
        (lambda: TextKL("k4"), "an estimate is one of k1, k2, k3, exact"),
        (lambda: advantages(torch.zeros(5), 2), "are not groups of 2"),
        (lambda: advantages(torch.zeros(4), 2, "median"), "a baseline is one of leave-one-out"),
        (lambda: PolicyGradient(REWARD, 1), "a baseline needs at least two texts of one prompt"),
        (lambda: PolicyGradient(REWARD, 2, beta=-1.0), "beta"),
        (lambda: replace(POLICY, teacher=None), "and a copy need a teacher"),
        (lambda: replace(POLICY, student="gpt_96x3"), "a copy of gpt_64x2 is no gpt_96x3"),
        (lambda: OwnText(4, copies=0), "at least one copy"),
        (lambda: advantages(torch.zeros(0), 0), "a group has at least one text, not 0"),
        (lambda: TokenCount(()), "the tokens that count are a tuple of at least one number"),
    ):
        with pytest.raises(ValueError, match=sentence):
            wrong()


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        (lambda texts: texts.float(), ValueError, r"a number for each of 4 texts, not shape \(4, 5\)"),
        (lambda texts: torch.tensor(1.0), ValueError, r"a number for each of 4 texts, not shape \(\)"),
        (lambda texts: [1.0] * len(texts), TypeError, "a reward gives a tensor, a number for each text, not list"),
        (lambda texts: torch.tensor([1.0, math.nan, 0.0, math.inf]), ValueError, "the reward of 2 of 4 texts is NaN or infinite"),
    ],
)  # fmt: skip
def test_a_reward_is_a_finite_number_for_each_text(given, error, sentence):
    """Found before it moves the policy."""
    seen = {"student_logits": torch.zeros(4, 5, V), "labels": torch.zeros(4, 5, dtype=torch.long)}
    for term in (PolicyGradient(given, 2), MeanReward(given)):
        with pytest.raises(error, match=sentence):
            term(**seen)
    with pytest.raises(TypeError, match="a reward is a function of texts"):
        PolicyGradient(3.0, 2)


def test_a_whole_number_is_a_reward_too():
    assert advantages(torch.tensor([1, 3]), 2).tolist() == [-2.0, 2.0]


@pytest.mark.parametrize(
    "term", [PolicyGradient(REWARD, 2, beta=1.0), TextKL("k1"), TextKL("k3"), TextKL("exact")], ids=repr
)
def test_a_reference_of_another_vocabulary_is_refused(term):
    with pytest.raises(ValueError, match=f"the student has {V} and the teacher {V + 2}"):
        term(
            student_logits=torch.zeros(4, 5, V),
            teacher_logits=torch.zeros(4, 5, V + 2),
            labels=torch.zeros(4, 5, dtype=torch.long),
        )


@pytest.mark.parametrize(
    "rewrite",
    [None, OwnText(1), OwnText(1, copies=4), OwnText(1, copies=2, probability=0.5), OwnText(1, copies=2, after=0.5), OwnText(1, copies=2, temperature=0.5)],
    ids=str,
)  # fmt: skip
def test_a_policy_learns_from_its_own_texts_alone(rewrite):
    """The gradient is that of the mean reward only of texts that the policy itself drew, compared within one prompt's."""
    data = Examples(torch.zeros(8, 6, dtype=torch.long), torch.zeros(8, 6, dtype=torch.long))
    with pytest.raises(
        ValueError, match=r"from its own texts alone, 2 for each prompt .* rewrite=OwnText\(…, copies=2\)"
    ):
        fit(gpt(), PolicyGradient(REWARD, 2), train=data, recipe=PLAIN, rewrite=rewrite)


def test_fit_writes_own_texts_as_fit_together_does():
    data = Examples(torch.zeros(8, 6, dtype=torch.long), torch.zeros(8, 6, dtype=torch.long))
    alone, beside = gpt(), gpt()
    own, objective = OwnText(1, copies=2), PolicyGradient(TokenCount((3,)), 2)
    fit(alone, objective, train=data, recipe=PLAIN, rewrite=own)
    fit_together([Learner(beside, PolicyGradient(TokenCount((3,)), 2), PLAIN, rewrite=own)], train=data)
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), beside.parameters(), strict=True))
    assert not torch.equal(alone.embedding.weight, gpt().embedding.weight)


def test_a_policy_that_diverges_ends_with_a_sentence():
    class Broken(GPT):
        def forward(self, tokens, cache=None):
            return super().forward(tokens, cache) * math.nan

    with pytest.raises(FloatingPointError, match="logits of the model are NaN or infinite"):
        OwnText(2, copies=2)(
            Broken(V, width=16, layers=1, heads=2, context=8), torch.zeros(2, 6).long(), None, 0.0, torch.Generator()
        )


@pytest.mark.parametrize("name", ["policy-small", "policy"])
def test_policies_begin_as_their_reference_and_differ_in_the_leash_alone(name):
    reference, *specs = PLANS[name]()
    assert len({replace(spec.recipe, seed=0) for spec in specs}) == 1 and len({spec.arm for spec in specs}) == 9
    for spec in specs:
        assert spec.from_teacher and spec.teacher.hash == reference.hash and spec.recipe.precision == "float32"
        assert spec.recipe.batch_size % spec.own_text.copies == 0
        assert spec.recipe.epoch_examples % spec.recipe.batch_size == 0


@pytest.mark.parametrize("vocabulary", [4096, 16_384])
def test_the_tokens_that_are_paid_for_are_the_words_that_are_named(vocabulary):
    path = Path(kdlab.__file__).parent / "language" / "tokenisers" / f"books-{vocabulary}.json"
    named = tokens_of(language_plans.LIVELY, read_tokeniser(path))
    assert named == language_plans._LIVELY_TOKENS[vocabulary]
    with pytest.raises(ValueError, match="no form of 'cheerfulnesses' is a single token"):
        tokens_of(["cheerfulnesses"], read_tokeniser(path))

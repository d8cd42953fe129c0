"""Speculative decoding: the verifier's text to the token, or in distribution; acceptance as total variation predicts it."""

import json
import math
from itertools import product

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlab.language import Drafting, generate, speculate, speed_up, tokens_per_call, try_draft
from kdlab.models import GPT
from kdlab.objectives import total_variation

V, CONTEXT = 13, 24


def gpt(seed, *, vocabulary=V, width=16, layers=2, sharp=8, context=CONTEXT):
    """A model whose distributions are neither even nor certain."""
    torch.manual_seed(seed)
    model = GPT(vocabulary, width=width, layers=layers, heads=2, context=context)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(sharp if p.ndim > 1 else 1)
    return model


def text(*shape, seed=1, vocabulary=V):
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fused", [False, True])
@given(
    lengths=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    tokens=st.integers(0, 12),
    draft_length=st.integers(1, 5),
    stop_below=st.sampled_from([0.0, 0.2, 1.0]),
    other=st.booleans(),
    seed=st.integers(0, 50),
)
@settings(max_examples=30, deadline=None)
def test_at_temperature_zero_the_text_is_the_verifier_s_whatever_the_draft(
    fused, lengths, tokens, draft_length, stop_below, other, seed
):
    verifier, prompts, lengths = gpt(0), text(3, 5, seed=seed), torch.tensor(lengths)
    draft = gpt(1, width=8, layers=1) if other else verifier
    verifier.fused = fused
    expected = generate(verifier, prompts, tokens=tokens, lengths=lengths, temperature=0)
    how = {"tokens": tokens, "draft_length": draft_length, "stop_below": stop_below, "temperature": 0}
    found = speculate(verifier, draft, prompts, lengths=lengths, **how)
    assert found.text.tolist() == expected.tolist()
    assert (found.accepted <= found.tested).all() and (found.tested <= found.calls * draft_length).all()


@pytest.mark.parametrize("draft_length", [1, 4, 30])
@pytest.mark.parametrize("tokens", [19, 20])
def test_a_text_reaches_to_the_end_of_the_context(draft_length, tokens):
    """Where the longest row leaves room for fewer tokens, or none; rows that ended before stay as they are."""
    verifier, draft, prompts, lengths = gpt(0), gpt(1, width=8, layers=1), text(3, 5), torch.tensor([5, 2, 4])
    for stop in (None, 3):
        how = {"tokens": tokens, "lengths": lengths, "temperature": 0, "stop": stop}
        found = speculate(verifier, draft, prompts, draft_length=draft_length, **how)
        assert found.text.tolist() == generate(verifier, prompts, **how).tolist()
        with pytest.raises(ValueError, match="more than the verifier's context"):
            speculate(verifier, draft, prompts, **how | {"tokens": 21})


LETTERS, DRAWN, LENGTH = 3, 20_000, 3


def frequencies(texts):
    places = LETTERS ** torch.arange(LENGTH - 1, -1, -1)
    return torch.bincount((texts * places).sum(1), minlength=LETTERS**LENGTH)


def exactly(model, prompt):
    """The probability of each text of LENGTH letters after a prompt."""
    texts = torch.tensor(list(product(range(LETTERS), repeat=LENGTH)))
    whole = torch.cat([prompt.expand(len(texts), -1), texts], 1)
    with torch.no_grad():
        log_p = torch.log_softmax(model(whole[:, :-1]).double(), -1)[:, prompt.shape[1] - 1 :]
    return log_p.gather(2, texts[..., None]).sum((1, 2)).exp()


def lettered(context=CONTEXT):
    return *(gpt(seed, vocabulary=LETTERS, sharp=6, context=context) for seed in (4, 5)), text(1, 2, vocabulary=LETTERS)


LETTERED = lettered()


@pytest.mark.parametrize(
    ("draft_length", "stop_below", "context"),
    [(1, 0.0, CONTEXT), (2, 0.0, CONTEXT), (3, 0.0, CONTEXT), (3, 0.4, CONTEXT), (3, 0.0, 4), (2, 0.0, 5)],
)
def test_texts_have_the_verifier_s_distribution(draft_length, stop_below, context):
    """χ² over all texts of three letters, to the end of a context too. What the draft alone would write is refused by the same test: it has the power."""
    verifier, draft, prompt = lettered(context)
    generator = torch.Generator().manual_seed(draft_length)
    found = speculate(
        verifier, draft, prompt.expand(DRAWN, -1), tokens=LENGTH, draft_length=draft_length, stop_below=stop_below,
        generator=generator,
    )  # fmt: skip
    expected = DRAWN * exactly(verifier, prompt)
    assert expected.min() > 5
    counted = frequencies(found.text[:, 2:])
    assert scipy.stats.chisquare(counted, expected * (counted.sum() / expected.sum())).pvalue > 1e-3
    alone = frequencies(generate(draft, prompt.expand(DRAWN, -1), tokens=LENGTH, generator=generator)[:, 2:])
    assert scipy.stats.chisquare(alone, expected * (alone.sum() / expected.sum())).pvalue < 1e-9


def test_that_test_has_the_power_to_see_a_tenth_of_the_draft_s_text():
    """A text of which every tenth is the draft's differs by 0.024 in total variation, and is refused with probability 0.99."""
    verifier, draft, prompt = LETTERED
    p, q = exactly(verifier, prompt), exactly(draft, prompt)
    mixed = 0.9 * p + 0.1 * q
    noncentral = (DRAWN * (mixed - p) ** 2 / p).sum().item()
    freedom = len(p) - 1
    assert scipy.stats.ncx2.sf(scipy.stats.chi2.isf(1e-3, freedom), freedom, noncentral) > 0.99
    assert 0.5 * (mixed - p).abs().sum() < 0.025


@given(st.integers(1, 4), st.floats(0.3, 3.0), st.integers(0, 30))
@settings(max_examples=10, deadline=None)
def test_a_first_token_is_accepted_as_often_as_total_variation_says(draft_length, temperature, seed):
    verifier, draft, prompts = gpt(0), gpt(1, sharp=5), text(1, 3, seed=seed)
    how = {"tokens": 2, "draft_length": draft_length, "temperature": temperature}
    generator = torch.Generator().manual_seed(seed)
    found = speculate(verifier, draft, prompts.expand(12_000, -1), generator=generator, **how)
    # The prompt's call brings the first token; one round follows. Look at the rows in which that token was the same.
    same = found.text[:, 3] == found.text[:, 3].mode().values
    with torch.no_grad():
        begun = torch.cat([prompts, found.text[:, 3].mode().values[None, None]], 1)
        z = [model(begun)[:, -1] / temperature for model in (verifier, draft)]
    overlap = 1 - total_variation(*z).item()
    first, n = (found.accepted[same] > 0).float(), same.sum().item()
    assert n > 500
    assert abs(first.mean().item() - overlap) < 4.5 * math.sqrt(overlap * (1 - overlap) / n) + 1e-3


def test_what_is_accepted_is_in_the_mean_what_was_expected():
    verifier, draft = gpt(0), gpt(1, sharp=5)
    found = speculate(
        verifier, draft, text(3000, 3), tokens=8, draft_length=3, generator=torch.Generator().manual_seed(0)
    )
    difference = (found.accepted - found.expected).double()
    assert found.tested.sum() > 10_000
    assert abs(difference.mean()) < 4.5 * difference.std() / math.sqrt(len(difference))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_that_is_the_verifier_is_always_believed(temperature):
    model = gpt(0)
    found = speculate(model, model, text(4, 3), tokens=13, draft_length=3, temperature=temperature)
    assert found.accepted.tolist() == found.tested.tolist() == 4 * [9] and found.calls.tolist() == 4 * [3]
    torch.testing.assert_close(found.expected, found.tested.float())


def test_a_draft_that_doubts_itself_proposes_one_token_a_round():
    model = gpt(0)
    found = speculate(model, model, text(4, 3), tokens=13, draft_length=5, stop_below=1.0)
    assert found.tested.tolist() == found.calls.tolist() == 4 * [6]


def test_where_the_models_share_no_token_nothing_is_accepted():
    class Always(torch.nn.Module):
        """Writes one token, whatever it reads."""

        vocabulary, context = V, CONTEXT

        def __init__(self, token):
            super().__init__()
            self.logits = torch.full((V,), -1e4).index_fill(0, torch.tensor(token), 0.0)

        def cache(self, batch):
            return gpt(0).cache(batch)

        def forward(self, tokens, cache):
            cache.lengths = cache.lengths + tokens.shape[1]
            return self.logits.expand(*tokens.shape, V)

    found = speculate(Always(3), Always(4), text(2, 3), tokens=5, draft_length=2)
    assert found.text[:, 3:].tolist() == 2 * [[3, 3, 3, 3, 3]]
    assert found.accepted.tolist() == [0, 0] and found.calls.tolist() == found.tested.tolist() == [4, 4]


def test_a_draft_is_tried_on_each_prompt_in_each_way():
    verifier, draft = gpt(0), gpt(1, sharp=5)
    drafting = Drafting(prompt=3, tokens=8, rounds=((2, 0.0), (4, 0.5)))
    found = try_draft(verifier, draft, text(7, 5).split(1), drafting, seed=3)
    assert len(found["plain_seconds"]) == 7 and min(found["plain_seconds"]) > 0
    for (length, stop), tried in zip(drafting.rounds, found["rounds"], strict=True):
        assert (tried.pop("draft_length"), tried.pop("stop_below")) == (length, stop)
        assert {len(column) for column in tried.values()} == {7}
        for calls, tested, accepted in zip(tried["calls"], tried["tested"], tried["accepted"], strict=True):
            assert accepted <= tested <= length * calls and accepted + calls >= drafting.tokens - 1
    again = try_draft(verifier, draft, text(7, 5).split(1), drafting, seed=3)
    assert [t["accepted"] for t in again["rounds"]] == [t["accepted"] for t in found["rounds"]]
    json.dumps(found)


def test_a_draft_is_tried_up_to_the_end_of_an_answer():
    """And on prompts of any length: each call brings what it accepts and one token more, whatever ends the text."""
    model, drafting = gpt(0), Drafting(prompt=9, tokens=8, rounds=((3, 0.0),), temperature=0)
    prompts = [text(1, 5), text(1, 2)]
    (whole,) = try_draft(model, model, prompts, drafting)["rounds"]
    assert whole["calls"] == [2, 2] and whole["accepted"] == [6, 6]
    end = generate(model, prompts[0], tokens=2, temperature=0)[0, -1].item()
    (short,) = try_draft(model, model, prompts[:1], drafting, stop=end)["rounds"]
    assert short["calls"] == [1] or short["calls"] == [0]  # it may be the first token already
    with pytest.raises(
        TypeError, match=r"prompts are token numbers, int64 of shape \(batch, length\), not .* of shape \(5,\)"
    ):
        try_draft(model, model, prompts[0], drafting)


@given(st.floats(0, 1), st.integers(0, 9))
def test_tokens_per_call_is_the_mean_of_a_geometric_series(acceptance, draft_length):
    by_hand = 1 + sum(acceptance**k for k in range(1, draft_length + 1))
    assert tokens_per_call(acceptance, draft_length) == pytest.approx(by_hand)
    if acceptance < 0.99:
        closed = (1 - acceptance ** (draft_length + 1)) / (1 - acceptance)
        assert tokens_per_call(acceptance, draft_length) == pytest.approx(closed)


def test_a_free_draft_brings_tokens_per_call_and_a_dear_one_slows_down():
    assert speed_up(0.8, 4, 0.0) == tokens_per_call(0.8, 4)
    assert speed_up(0.0, 4, 0.1) == pytest.approx(1 / 1.4)
    assert speed_up(0.5, 4, 1.0) < 1 < speed_up(0.8, 4, 0.1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompts": text(2, 0)}, "at least one prompt, of at least one token"),
        ({"lengths": torch.tensor([0, 2])}, "lengths are one a prompt, from 1"),
        ({"draft": gpt(1, vocabulary=7)}, "a draft has the verifier's 13 tokens; this one has a vocabulary of 7"),
        ({"tokens": 23}, "a prompt of 3 tokens and 23 to write are more than the verifier's context of 24"),
        ({"draft_length": 0}, "a draft proposes a whole number of tokens, at least one, not 0"),
        ({"draft_length": 2.5}, "a whole number of tokens, at least one, not 2.5"),
        ({"stop_below": 1.5}, "stop_below is a probability"),
        ({"temperature": -1.0}, "temperature cannot be negative"),
    ],
)
def test_what_cannot_be_written_gets_a_sentence(changes, sentence):
    given_ = {"verifier": gpt(0), "draft": gpt(1), "prompts": text(2, 3), "tokens": 5, "draft_length": 4}
    with pytest.raises(ValueError, match=sentence):
        speculate(**(given_ | changes))


def test_a_diverged_draft_gets_a_sentence():
    draft = gpt(1)
    torch.nn.init.constant_(draft.embedding.weight, math.nan)
    with pytest.raises(FloatingPointError, match="logits of the draft are NaN or infinite: it has diverged"):
        speculate(gpt(0), draft, text(2, 3), tokens=4)


def test_at_temperature_zero_a_draft_stops_where_it_would_doubt_at_one():
    """There is no doubt in a distribution that is all on one token."""
    verifier, draft, prompts = gpt(0), gpt(1), text(4, 3)

    def tested(stop_below):
        found = speculate(verifier, draft, prompts, tokens=15, draft_length=5, temperature=0.0, stop_below=stop_below)
        assert torch.equal(found.text, generate(verifier, prompts, tokens=15, temperature=0.0))
        return found

    always, never = tested(0.0), tested(1.0)
    assert (never.tested == never.calls).all() and always.tested.sum() > never.tested.sum()


@pytest.mark.parametrize("arguments", [(1.2, 3), (-0.1, 3), (0.5, -1)])
def test_an_acceptance_is_a_probability(arguments):
    with pytest.raises(ValueError, match="acceptance is a probability, and a draft length not negative"):
        tokens_per_call(*arguments)
    with pytest.raises(ValueError, match="a cost cannot be negative"):
        speed_up(0.5, 3, -1.0)


def test_models_keep_their_mode():
    verifier, draft = gpt(0).train(), gpt(1).eval()
    speculate(verifier, draft, text(2, 3), tokens=4)
    assert verifier.training and not draft.training

"""Writing text: what is written is what the whole model says, row by row, and drawn as its softmax."""

import re

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdlab.language import draw, generate, generation
from kdlab.models import GPT

V, CONTEXT = 13, 16


def gpt(**options):
    torch.manual_seed(0)
    model = GPT(V, **{"width": 16, "layers": 2, "heads": 2, "context": CONTEXT, **options})
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8 if p.ndim > 1 else 1)
    return model


def text(*shape, seed=1):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def likeliest(model, prompt, tokens):
    """One token after another, each from the whole text."""
    for _ in range(tokens):
        with torch.no_grad():
            prompt = torch.cat([prompt, model(prompt[None])[0, -1].argmax()[None]])
    return prompt


@pytest.mark.parametrize("fused", [False, True])
@given(st.integers(1, 6), st.integers(0, 10), st.integers(0, 50))
@settings(max_examples=15)
def test_the_likeliest_token_is_that_of_the_whole_model(fused, length, tokens, seed):
    model = gpt()
    expected = likeliest(model, text(length, seed=seed), tokens)
    model.fused = fused
    written = generate(model, text(length, seed=seed)[None], tokens=tokens, temperature=0)
    assert written.tolist() == [expected.tolist()]


@given(st.lists(st.integers(1, 6), min_size=3, max_size=3), st.integers(0, 50))
@settings(max_examples=15)
def test_each_row_is_written_as_alone(lengths, seed):
    model, prompts = gpt(), text(3, 6, seed=seed)
    written = generate(model, prompts, tokens=5, lengths=torch.tensor(lengths), temperature=0)
    assert written.shape == (3, 11)
    for row, prompt, length in zip(written, prompts, lengths, strict=True):
        assert row[: length + 5].tolist() == likeliest(model, prompt[:length], 5).tolist()
        assert (row[length + 5 :] == 0).all()


def test_what_fills_a_prompt_up_does_not_matter():
    model, prompts, lengths = gpt(), text(2, 6), torch.tensor([3, 6])
    filled = prompts.clone()
    filled[0, 3:] = -100
    how = {"tokens": 4, "lengths": lengths, "temperature": 0}
    assert torch.equal(generate(model, filled, **how), generate(model, prompts, **how))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_the_softmax_says(temperature):
    """40,000 draws: a chi-square of 99.9 % that a distribution off by a tenth of a token's probability would exceed."""
    n = 40_000
    model = gpt(layers=1)
    with torch.no_grad():
        p = (model(text(1, 3))[0, -1].double() / temperature).softmax(-1)
    generator = torch.Generator().manual_seed(0)
    how = {"tokens": 1, "temperature": temperature, "generator": generator}
    drawn = generate(model, text(1, 3).expand(n, 3), **how)[:, 3]
    common = p * n >= 10
    seen, expected = drawn.bincount(minlength=V).double(), p * n

    def surprise(expected):
        parts = (seen - expected)[common].square() / expected[common]
        return parts.sum().item()

    limit = scipy.stats.chi2.ppf(0.999, int(common.sum()))
    assert common.sum() >= 3 and surprise(expected) < limit
    top = expected.argmax()
    off = expected.clone()
    off[top] *= 0.9
    assert surprise(off / off.sum() * n) > limit


def test_drawing_from_known_logits():
    assert draw(torch.tensor([[0.0, 3.0, 1.0]]), 0).tolist() == [1]
    sure = torch.tensor([[0.0, 40.0], [40.0, 0.0]])
    assert draw(sure, 1.0).tolist() == [1, 0]
    generator = torch.Generator().manual_seed(0)
    heads = draw(torch.tensor([[1.0, 0.0]]).expand(4000, 2), 1e4, generator)
    assert heads.float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)


def test_one_token_is_drawn_as_by_multinomial_draw_for_draw():
    p = torch.rand(7, 40, generator=torch.Generator().manual_seed(1))
    p[:, ::3] = 0
    ours, theirs = (torch.Generator().manual_seed(2) for _ in range(2))
    for _ in range(20):
        drawn = torch.multinomial(p, 1, generator=theirs).squeeze(1)
        assert torch.equal(generation.one_by(p, ours), drawn) and (drawn % 3 > 0).all()


def test_lengths_and_prompts_are_left_as_they_were():
    prompts, lengths = text(2, 6), torch.tensor([3, 6])
    generate(gpt(), prompts, tokens=4, lengths=lengths)
    assert torch.equal(prompts, text(2, 6)) and lengths.tolist() == [3, 6]


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_model_that_has_diverged_writes_nothing(broken, temperature):
    with pytest.raises(FloatingPointError, match="logits of the model are NaN or infinite: it has diverged"):
        draw(torch.tensor([[0.0, 1.0], [broken, 0.0]]), temperature)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_token_of_logit_minus_infinity_is_never_drawn(temperature):
    logits = torch.tensor([0.0, -torch.inf, 0.0, -torch.inf]).repeat(200, 1)
    assert set(draw(logits, temperature).tolist()) <= {0, 2}
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        draw(torch.full((1, 3), -torch.inf), temperature)


def test_the_generator_fixes_the_text():
    model, prompts = gpt(), text(2, 3)

    def write(seed):
        return generate(model, prompts, tokens=12, generator=torch.Generator().manual_seed(seed))

    first = write(0)
    torch.rand(5)
    assert torch.equal(write(0), first) and not torch.equal(write(1), first)
    state = torch.get_rng_state()
    write(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_around_another_writes_without_saying_its_context():
    class Around(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.cache, self.fused = model, model.cache, False

        def forward(self, tokens, cache=None):
            return self.model(tokens, cache)

    inner, prompts = gpt(), torch.tensor([[1, 2]])
    written = [generate(writer, prompts, tokens=4, temperature=0) for writer in (inner, Around(inner))]
    assert torch.equal(*written)


def test_one_step_of_the_model_a_token():
    model, seen = gpt(), []
    model.register_forward_hook(lambda module, inputs, _: seen.append(tuple(inputs[0].shape)))
    generate(model, text(3, 4), tokens=5)
    assert seen == [(3, 4), *4 * [(3, 1)]]


@pytest.mark.parametrize("mode", [True, False])
def test_the_model_is_left_as_it_was(mode):
    model, modes = gpt().train(mode), []
    model.blocks[0].eval()
    model.register_forward_hook(lambda module, *_: modes.append((module.training, torch.is_grad_enabled())))
    written = generate(model, text(1, 2), tokens=2)
    assert modes == 2 * [(False, False)] and not written.requires_grad
    assert model.training is mode and not model.blocks[0].training and model.blocks[1].training is mode


def test_the_mode_is_put_back_when_it_fails():
    class Fails(nn.Module):
        def cache(self, batch):
            raise RuntimeError("no")

    model = Fails().train()
    with pytest.raises(RuntimeError, match="no"):
        generate(model, text(1, 2), tokens=1)
    assert model.training


def test_a_text_fills_its_context_and_no_more():
    model = gpt()
    assert generate(model, text(1, 4), tokens=CONTEXT - 3).shape == (1, CONTEXT + 1)  # the last is not read
    with pytest.raises(ValueError, match="a sequence of 17 tokens is longer than the context of 16"):
        generate(model, text(1, 4), tokens=CONTEXT - 2)


@pytest.mark.parametrize(
    ("prompts", "options", "sentence"),
    [
        (text(1, 0), {}, r"of at least one token; an empty text begins with <\|endoftext\|>"),
        (text(0, 3), {}, "there is at least one prompt"),
        (text(2, 3), {"lengths": torch.tensor([0, 3])}, r"from 1 to the 3 tokens that are given, not \[0, 3\]"),
        (text(2, 3), {"lengths": [1, 4]}, r"from 1 to the 3 tokens that are given, not \[1, 4\]"),
        (text(2, 3), {"lengths": torch.tensor([1])}, "lengths are one a prompt"),
        (text(2, 3), {"temperature": -1.0}, r"cannot be negative, nor the temperature infinite: 4, -1\.0"),
        (text(2, 3), {"tokens": -1}, "tokens and temperature cannot be negative"),
        (text(2, 3), {"temperature": float("nan")}, "nor the temperature infinite: 4, nan"),
    ],
)
def test_bad_prompts_are_refused(prompts, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        generate(gpt(), prompts, **{"tokens": 4, **options})


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        (text(1, 3)[0], r"int64 of shape \(batch, length\), not torch.int64 of shape \(3,\)"),
        (text(1, 3).int(), r"not torch.int32 of shape \(1, 3\)"),
        ([[1, 2]], "not list"),
    ],
)
def test_prompts_are_token_numbers(prompts, sentence):
    with pytest.raises(TypeError, match=sentence):
        generate(gpt(), prompts, tokens=4)


def test_a_model_that_cannot_write_says_how_it_could():
    with pytest.raises(TypeError, match=r"Linear does not write by itself: a model of transformers does as .*CausalLM"):
        generate(torch.nn.Linear(2, 2), text(1, 3), tokens=4)


@pytest.mark.parametrize("stop", ["<end>", [], [3, None], ["<end>"], -1, True, np.int64(3)])
def test_what_ends_no_text_is_called_what_it_is(stop):
    """And of the name of a token, how its number is asked for."""
    sentence = r"^stop is the number of a token that ends a text, or several, not " + re.escape(repr(stop))
    advice = r": tokenizer.convert_tokens_to_ids\('<end>'\)\.$" if stop == "<end>" else r"\.$"
    with pytest.raises(TypeError, match=sentence + advice):
        generation.stop_tokens(stop)
    assert generation.stop_tokens([3]).tolist() == generation.stop_tokens(3).tolist() == [3]

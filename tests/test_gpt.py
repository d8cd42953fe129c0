"""The small GPT: causal, the same with a cache as without, and of the sizes that it says."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from kdlab import models
from kdlab.models import GPT, count_parameters, multiply_adds
from kdlab.models.gpt import rotate, rotation
from kdlab.objectives import HeadLogits
from kdlab.training import Taps, load_model, save_model

V, CONTEXT = 23, 12


def gpt(seed=0, **options):
    """A small one in double precision, with weights large enough that every token matters."""
    torch.manual_seed(seed)
    model = GPT(V, **{"width": 16, "layers": 2, "heads": 2, "context": CONTEXT, **options}).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5 if p.ndim > 1 else 1)
    return model


def text(*shape, seed=1):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


# Causality and positions


@given(st.integers(1, CONTEXT), st.data())
def test_a_token_changes_what_follows_it_and_nothing_before(length, data):
    place = data.draw(st.integers(0, length - 1))
    model, tokens = gpt(), text(2, length)
    changed = tokens.clone()
    changed[0, place] = (tokens[0, place] + 1) % V
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[0, :place], before[0, :place], rtol=1e-12, atol=1e-12)
    assert torch.equal(after[1], before[1])
    assert ((after[0, place:] - before[0, place:]).abs().amax(-1) > 1e-6).all()


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 30), st.integers(0, 100))
def test_rotated_products_depend_on_the_distance_alone(i, j, shift, seed):
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    turns = rotation(64, 8).double()

    def product(i, j):
        return (rotate(q.view(1, 1, 1, 8), turns[i : i + 1]) * rotate(k.view(1, 1, 1, 8), turns[j : j + 1])).sum()

    torch.testing.assert_close(product(i + shift, j + shift), product(i, j), rtol=1e-5, atol=1e-5)


def test_positions_turn_and_do_not_stretch():
    x, turns = torch.randn(1, 1, 64, 8, dtype=torch.float64), rotation(64, 8).double()
    torch.testing.assert_close(rotate(x, turns).norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)
    assert torch.equal(rotate(x[:, :, :1], turns[:1]), x[:, :, :1])  # the first place is not turned
    first = torch.zeros(1, 1, 64, 8, dtype=torch.float64)
    first[..., 0] = 1  # the fastest pair turns by one radian a token
    turned = rotate(first, turns)
    places = torch.arange(64).double()
    torch.testing.assert_close(turned[0, 0, :, 0], places.cos(), rtol=0, atol=1e-6)
    torch.testing.assert_close(turned[0, 0, :, 4], places.sin(), rtol=0, atol=1e-6)


def test_the_order_of_what_was_read_matters():
    tokens = torch.tensor([[1, 2, 3], [2, 1, 3]])
    out = gpt(layers=1)(tokens)[:, -1]
    assert (out[0] - out[1]).abs().max() > 1e-3


# The cache


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6).filter(lambda pieces: sum(pieces) <= CONTEXT))
def test_read_in_pieces_it_says_the_same(pieces):
    model, tokens = gpt(), text(3, sum(pieces))
    cache = model.cache(3)
    with torch.no_grad():
        parts = [model(part, cache) for part in tokens.split(pieces, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=1e-10, atol=1e-10)
    assert cache.longest == sum(pieces) and cache.lengths.tolist() == 3 * [sum(pieces)]


@given(st.lists(st.integers(0, 6), min_size=3, max_size=3), st.integers(0, 100))
@settings(max_examples=20)
def test_rows_of_different_lengths_go_on_as_each_alone(lengths, seed):
    model, tokens, more = gpt(), text(3, 6, seed=seed), text(3, 4, seed=seed + 1)
    cache = model.cache(3)
    with torch.no_grad():
        model(tokens, cache)
        cache.rewind(torch.tensor(lengths))
        first, second = model(more[:, :3], cache), model(more[:, 3:], cache)
    for row, length in enumerate(lengths):
        alone = model(torch.cat([tokens[row, :length], more[row]])[None])[0, length:]
        torch.testing.assert_close(torch.cat([first[row], second[row]]), alone, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_what_was_rewound_is_forgotten():
    model, tokens = gpt(), text(1, 8)
    cache = model.cache(1)
    model(text(1, CONTEXT, seed=5), cache)
    cache.rewind(torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(model(tokens, cache), model(tokens), rtol=1e-10, atol=1e-10)


def test_a_cache_is_refused_where_gradients_are_wanted():
    model = gpt()
    with pytest.raises(RuntimeError, match=r"a cache keeps no gradients: use it within torch.no_grad\(\)"):
        model(text(1, 2), model.cache(1))


@torch.no_grad()
def test_a_cache_can_be_shortened_alone():
    model = gpt()
    cache = model.cache(2)
    model(text(2, 3), cache)
    for lengths in ([3, 4], [-1, 0]):
        with pytest.raises(ValueError, match="shortened only to lengths between zero and what it holds"):
            cache.rewind(torch.tensor(lengths))
    assert cache.lengths.tolist() == [3, 3]


# What it computes


def test_the_head_that_losses_are_taken_from_is_the_dense_one():
    model, tokens = gpt(), text(2, 5)
    dense = model(tokens)
    model.fused = True
    head = model(tokens)
    assert isinstance(head, HeadLogits) and head.shape == dense.shape == (2, 5, V)
    assert torch.equal(head.dense(), dense)
    assert head.weight is model.embedding.weight


def test_layers_can_be_looked_into():
    model, tokens = gpt(), text(2, 7)
    names = ["blocks.0", "blocks.1", "norm", "attention:blocks.0.attention", "attention:blocks.1.attention"]
    with Taps(model, names) as taps:
        logits, hidden = taps(tokens)
    assert torch.equal(logits, model(tokens))
    for name in names[:3]:
        assert hidden[name].shape == (2, 7, 16)
    torch.testing.assert_close(logits, hidden["norm"] @ model.embedding.weight.T)
    for name in names[3:]:
        maps = hidden[name]
        assert maps.shape == (2, 2, 7, 7) and (maps >= 0).all()
        torch.testing.assert_close(maps.sum(-1), torch.ones(2, 2, 7, dtype=torch.float64))
        assert (maps.triu(1) == 0).all() and (maps.tril() > 0).sum() == 2 * 2 * 28


def test_attention_maps_are_those_of_a_slow_loop():
    model, tokens = gpt(layers=1), text(1, 4)
    with Taps(model, ["attention:blocks.0.attention", "input:blocks.0.attention"]) as taps:
        _, hidden = taps(tokens)
    x, weight = hidden["input:blocks.0.attention"][0], model.blocks[0].attention.qkv.weight
    maps = torch.zeros(2, 4, 4, dtype=torch.float64)
    for head in range(2):
        q, k = (x @ weight[16 * part + 8 * head : 16 * part + 8 * head + 8].T for part in (0, 1))
        for i in range(4):
            angle = [[10_000.0 ** (-pair / 4) * place for pair in range(4)] for place in range(4)]

            def turned(vector, place, angle=angle):
                pairs = torch.complex(vector[:4], vector[4:])
                return pairs * torch.polar(torch.ones(4).double(), torch.tensor(angle[place]).double())

            scores = [(turned(q[i], i) * turned(k[j], j).conj()).real.sum() / 8**0.5 for j in range(i + 1)]
            maps[head, i, : i + 1] = torch.stack(scores).softmax(0)
    torch.testing.assert_close(hidden["attention:blocks.0.attention"][0], maps, rtol=1e-5, atol=1e-6)


def test_input_and_output_share_their_embedding_on_disk_too(tmp_path):
    model, other = gpt(0), gpt(1)
    save_model(tmp_path / "gpt", model, {})
    load_model(tmp_path / "gpt", other)
    tokens = text(2, 6)
    assert torch.equal(model(tokens), other(tokens))
    with torch.no_grad():
        other.embedding.weight[3] += 1
    moved = (model(tokens[:, :1]) - other(tokens[:, :1])).abs().amax((0, 1))
    assert moved.argmax() == 3 and not (tokens[:, 0] == 3).any()  # as an output alone
    assert not {name for name, _ in model.state_dict().items() if "rotation" in name}


@pytest.mark.parametrize("name", [name for name in models.__all__ if name.startswith("gpt_")])
def test_models_have_the_sizes_that_they_say(name):
    make = getattr(models, name)
    said = re.match(r"Width (\d+), (\d+) layers; with ([\d,]+) tokens ([\d.]+) M parameters\.", make.__doc__)
    width, layers, vocabulary = (int(number.replace(",", "")) for number in said.groups()[:3])
    model = make(vocabulary)
    found, inner = count_parameters(model), model.blocks[0].mlp.out.in_features
    assert name == f"gpt_{width}x{layers}" and abs(inner - 8 * width / 3) <= 16
    assert found == vocabulary * width + width + layers * (4 * width**2 + 3 * width * inner + 2 * width)
    last = 10.0 ** -len(said[4].partition(".")[2])  # what the last digit counts
    assert abs(found / 1e6 - float(said[4])) <= 0.5 * last


@pytest.mark.parametrize("name", ["gpt_64x2", "gpt_96x3"])
def test_multiply_adds_are_those_that_torch_counts(name):
    model = getattr(models, name)(512)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 64, dtype=torch.long))
    products = counter.get_flop_counts()["Global"][torch.ops.aten.mm]  # attention's own are counted elsewhere
    attention = len(model.blocks) * 2 * model.embedding.embedding_dim * 65 / 2
    assert multiply_adds(model, 64) - attention == products / 2 / 128


def test_multiply_adds_are_of_passes_not_of_parameters():
    shared = models.gpt_64x2(512)
    whole = multiply_adds(shared)
    shared.blocks[1] = shared.blocks[0]
    assert multiply_adds(shared) == whole
    with pytest.raises(TypeError, match="those of a kdlab.models.GPT, not of ResNet"):
        multiply_adds(models.resnet8())
    with pytest.raises(ValueError, match="the context is from 1 to 256 tokens, not 300"):
        multiply_adds(shared, 300)


@pytest.mark.parametrize("layers", [1, 4])
def test_at_first_every_token_is_as_likely_as_any_other(layers):
    torch.manual_seed(0)
    model = GPT(512, width=64, layers=layers, heads=2, context=32)
    tokens = torch.randint(512, (8, 32))
    loss = torch.nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(512), abs=0.1)


# Errors


def test_a_width_that_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match="the width must be a multiple of twice the heads, and 20 is not of 8"):
        GPT(V, width=20, layers=1, heads=4)


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (torch.zeros(1, 0, dtype=torch.long), r"at least one, not torch.int64 of shape \(1, 0\)"),
        (torch.zeros(0, 3, dtype=torch.long), "at least one"),
        (torch.zeros(1, 3), "tokens are whole numbers of shape .*, not torch.float32"),
        (
            torch.zeros(3, dtype=torch.long),
            r"shape \(batch, time\), at least one, not torch.int64 of shape \(3,\)",
        ),
        (torch.zeros(1, 13, dtype=torch.long), "a sequence of 13 tokens is longer than the context of 12"),
        (
            torch.full((1, 3), V),
            "a token is not in the vocabulary of 23: was the text tokenised for another model",
        ),
        (torch.full((1, 3), -1), "a token is not in the vocabulary of 23"),
    ],
)
def test_what_is_no_text_is_refused_in_a_sentence(tokens, sentence):
    with pytest.raises(ValueError, match=sentence):
        gpt()(tokens)


@torch.no_grad()
def test_a_cache_ends_where_the_context_ends():
    model = gpt()
    cache = model.cache(1)
    model(text(1, CONTEXT - 1), cache)
    model(text(1, 1), cache)
    with pytest.raises(ValueError, match="a sequence of 13 tokens is longer than the context of 12"):
        model(text(1, 1), cache)

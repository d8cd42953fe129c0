"""Causal language models of transformers, called as kdlab's own: the same logits, the same text, taught and teaching."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from kdlab.data import Tokens
from kdlab.language import TeacherCache, generate, write_cache
from kdlab.language.huggingface import CausalLM
from kdlab.models import GPT
from kdlab.objectives import (
    AttentionMaps,
    CrossEntropy,
    ForwardKL,
    HeadLogits,
    HiddenMSE,
    Projector,
    SparseForwardKL,
)
from kdlab.training import Recipe, fit, load_model, save_model

V, CONTEXT = 50, 12
SHAPE = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama():
    config = transformers.LlamaConfig(**SHAPE, intermediate_size=32, max_position_embeddings=32)
    return transformers.LlamaForCausalLM(config)


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    )


def gemma():
    config = transformers.Gemma2Config(
        **SHAPE, num_key_value_heads=1, head_dim=8, intermediate_size=32, max_position_embeddings=32,
        final_logit_softcapping=2.0, sliding_window=4,
    )  # fmt: skip
    return transformers.Gemma2ForCausalLM(config)


every_model = pytest.mark.parametrize("make", [llama, gpt2, gemma], ids=lambda make: make.__name__)


def model(make, seed=0):
    """With weights large enough that every token matters."""
    torch.manual_seed(seed)
    made = make()
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(8 if p.ndim > 1 else 1)
    return CausalLM(made).eval()


@every_model
def test_what_it_cannot_read_gets_a_sentence(make):
    """As the book's own model; else the first would be an IndexError, and the second goes unnoticed where positions are rotations."""
    reader = model(make)
    with pytest.raises(ValueError, match="a token is not in the vocabulary of 50"):
        reader(torch.tensor([[1, V]]))
    with pytest.raises(ValueError, match="a sequence of 33 tokens is longer than the context of 32"):
        reader(text(1, 33))
    with pytest.raises(ValueError, match="longer than the context of 32"):
        generate(reader, text(1, 5), tokens=40)


def text(*shape, seed=1):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def tokens(blocks=8):
    row = text(blocks * CONTEXT + 1)
    return Tokens(row.to(torch.int16), CONTEXT, torch.ones(V, dtype=torch.long))


# Logits


@every_model
def test_logits_are_the_models_own(make):
    lm, inputs = model(make), text(3, CONTEXT)
    with torch.no_grad():
        known = lm.model(input_ids=inputs).logits
        torch.testing.assert_close(lm(inputs), known, rtol=1e-5, atol=1e-5)
        lm.fused = True
        fused = lm(inputs)
    assert isinstance(fused, HeadLogits) and fused.shape == (3, CONTEXT, V)
    torch.testing.assert_close(fused.dense(), known, rtol=1e-5, atol=1e-5)
    assert (lm.vocabulary, lm.context) == (V, 32)


def test_a_softcap_is_kept():
    lm = model(gemma)
    with torch.no_grad():
        capped = lm(text(3, CONTEXT))
        lm.model.config.final_logit_softcapping = None
        free = lm(text(3, CONTEXT))
    assert capped.abs().max() < 2 < free.abs().max()
    torch.testing.assert_close(capped, 2 * torch.tanh(free / 2), rtol=1e-5, atol=1e-5)


def test_a_model_that_makes_its_logits_in_another_way_is_refused():
    config = transformers.CohereConfig(
        **SHAPE, intermediate_size=32, logit_scale=0.25, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    with pytest.raises(
        ValueError, match="^CohereForCausalLM scales its logits, or makes them otherwise than by its head"
    ):
        CausalLM(transformers.CohereForCausalLM(config))


def test_the_model_is_left_as_it_was():
    inner = llama().train()
    before, state = [p.clone() for p in inner.parameters()], torch.get_rng_state()
    lm = CausalLM(inner)
    assert inner.training and all(map(torch.equal, before, inner.parameters()))
    assert torch.equal(torch.get_rng_state(), state) and lm.model is inner


# Text


@every_model
@pytest.mark.parametrize("fused", [False, True])
def test_the_likeliest_text_is_that_of_transformers(make, fused):
    lm, prompts = model(make), text(3, 4)
    known = lm.model.generate(
        prompts, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0,
        attention_mask=torch.ones_like(prompts), eos_token_id=None,
    )  # fmt: skip
    lm.fused = fused
    assert torch.equal(generate(lm, prompts, tokens=8, temperature=0), known)


@every_model
def test_prompts_of_any_length_are_gone_on_from_as_alone(make):
    lm, prompts, lengths = model(make), text(3, 6), torch.tensor([2, 6, 1])
    found = generate(lm, prompts, tokens=5, lengths=lengths, temperature=0)
    for row, prompt, length in zip(found, prompts, lengths.tolist(), strict=True):
        alone = generate(lm, prompt[None, :length], tokens=5, temperature=0)[0]
        assert torch.equal(row[: length + 5], alone) and not row[length + 5 :].any()


@torch.no_grad()
def test_read_in_pieces_and_rewound_it_says_the_same():
    lm, inputs, more = model(llama), text(2, 6), text(2, 3, seed=2)
    cache = lm.cache(2)
    first = lm(inputs[:, :4], cache)
    torch.testing.assert_close(torch.cat([first, lm(inputs[:, 4:], cache)], 1), lm(inputs))
    cache.rewind(torch.tensor([1, 5]))
    after = lm(more, cache)
    for row, length in enumerate((1, 5)):
        whole = lm(torch.cat([inputs[row, :length], more[row]])[None])[0, length:]
        torch.testing.assert_close(after[row], whole, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        ValueError, match="a cache can be shortened only to lengths between zero and what it holds"
    ):
        cache.rewind(torch.tensor([1, 50]))


# Training

RECIPE = Recipe(
    epochs=2, batch_size=4, optimizer="adamw", learning_rate=1e-2, schedule="cosine", augment=False
)
KD = 0.2 * CrossEntropy() + 0.8 * ForwardKL()


def student(seed=0):
    torch.manual_seed(seed)
    return GPT(V, width=8, layers=1, heads=2, context=CONTEXT)


@every_model
def test_it_teaches(make):
    found = []
    for fused in (False, True):
        teacher, learner = model(make), student()
        teacher.fused = learner.fused = fused
        before = [p.clone() for p in teacher.parameters()]
        history = fit(learner, KD, train=tokens(), teacher=teacher, recipe=RECIPE)
        assert history[1]["ForwardKL"] < history[0]["ForwardKL"]
        assert all(map(torch.equal, before, teacher.parameters())) and not teacher.training
        found.append([p.detach() for p in learner.parameters()])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


@every_model
@pytest.mark.parametrize("parts", [1, 2])
def test_it_learns(make, parts):
    recipe = Recipe(**{**vars(RECIPE), "micro_batches": parts, "epochs": 4})
    learner, teacher = model(make), student(1)
    learner.fused = True
    start = [p.detach().clone() for p in learner.parameters()]
    history = fit(learner, KD, train=tokens(), teacher=teacher, recipe=recipe, validation=tokens(2))
    assert history[-1]["loss"] < history[0]["loss"] and history[-1]["validation"]["bits_per_byte"] > 0
    assert all(not torch.equal(a, b) for a, b in zip(start, learner.parameters(), strict=True) if a.ndim > 1)


def test_its_layers_are_matched_by_their_names():
    hidden = HiddenMSE(
        ("model.model.layers.0", "model.model.layers.1"), projector=Projector("linear", 16, 16)
    )
    maps = AttentionMaps(("model.model.layers.0.self_attn", "model.model.layers.1.self_attn"))
    (entry, _) = fit(model(llama), KD + hidden + maps, train=tokens(), teacher=model(llama, 1), recipe=RECIPE)
    assert entry["HiddenMSE"] > 0 and entry["AttentionMaps"] > 0


def test_a_cache_of_it_teaches_too(tmp_path):
    teacher = model(llama)
    write_cache(tmp_path / "cache", teacher, tokens(), entries=6, kind="top-k-rest")
    cache = TeacherCache(tmp_path / "cache", tokens(), teacher)
    history = fit(student(), SparseForwardKL(), train=tokens(), teacher=cache, recipe=RECIPE)
    assert history[1]["loss"] < history[0]["loss"]


@every_model
def test_it_is_stored_and_read_again(make, tmp_path):
    lm, other = model(make), model(make, 1)
    save_model(tmp_path / "lm.safetensors", lm, {"name": make.__name__})
    assert load_model(tmp_path / "lm.safetensors", other) == {"name": make.__name__}
    with torch.no_grad():
        assert torch.equal(lm(text(2, 5)), other(text(2, 5)))

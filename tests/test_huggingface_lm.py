"""Causal language models of transformers, called as kdlab's own: the same logits, the same text, taught and teaching."""

import warnings

import pytest
import torch

transformers = pytest.importorskip("transformers")

from kdlab.data import Tokens
from kdlab.huggingface import CausalLM, without_adapter
from kdlab.huggingface.caches import KeysAndValues, Reread
from kdlab.language import TeacherCache, generate, speculate, write_cache
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
from kdlab.training import Recipe, Taps, fit, load_model, save_model
from kdlab.training.measures import all_logits

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


def mistral():
    config = transformers.MistralConfig(
        **SHAPE, num_key_value_heads=1, intermediate_size=32, max_position_embeddings=32, sliding_window=3
    )
    return transformers.MistralForCausalLM(config)


def bloom():
    """Which has no positions, but distances that the mask says."""
    return transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=V, hidden_size=16, n_layer=2, n_head=2, seq_length=32)
    )


def mamba():
    """Which keeps a state, and no keys and values."""
    return transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=2, state_size=4)
    )


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


def cohere():
    config = transformers.CohereConfig(
        **SHAPE,
        intermediate_size=32,
        max_position_embeddings=32,
        logit_scale=0.25,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.CohereForCausalLM(config)


def granite():
    config = transformers.GraniteConfig(**SHAPE, intermediate_size=32, max_position_embeddings=32, logits_scaling=1.01)
    return transformers.GraniteForCausalLM(config)


def hyperclova():
    config = transformers.HyperCLOVAXConfig(
        **SHAPE, intermediate_size=32, max_position_embeddings=32, logits_scaling=4.0
    )
    return transformers.HyperCLOVAXForCausalLM(config)


def opt():
    return transformers.OPTForCausalLM(transformers.OPTConfig(**SHAPE, ffn_dim=32, max_position_embeddings=32))


def nested_gemma():
    """A text configuration within that of a model of images and text."""
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = gemma().config.to_dict()
    return transformers.PaliGemmaForConditionalGeneration(
        transformers.PaliGemmaConfig(
            text_config=words,
            vision_config={"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14, **vision},
        )
    )


def adapted(*targets, make=llama, **options):
    """With adapters that are not zero."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    return peft.get_peft_model(make(), peft.LoraConfig(target_modules=[*targets], init_lora_weights=False, **options))


def parametrised():
    made = llama()
    torch.nn.utils.parametrizations.weight_norm(made.lm_head)
    return made


def hooked():
    made = llama()
    made.lm_head.register_forward_hook(lambda module, given, output: 2 * output)
    return made


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(llama(), {torch.nn.Linear}, torch.qint8)


READ = {  # heads whose weights are all that they are
    "llama": llama, "OPT": opt, "nested text": nested_gemma, "LoRA": lambda: adapted("q_proj"), "parametrised": parametrised,
    "compiled": lambda: torch.compile(llama(), backend="eager"), "multiplied": cohere, "divided": granite,
    "multiplied by what others divide by": hyperclova,
}  # fmt: skip
CALLED = {  # and others
    "LoRA on the head": lambda: adapted("q_proj", "lm_head"), "hooked": hooked, "quantised": quantised,
    "the head trained as a whole": lambda: adapted("q_proj", modules_to_save=["lm_head"]),
}  # fmt: skip


@pytest.mark.parametrize("make", [*READ.values(), *CALLED.values()], ids=[*READ, *CALLED])
@torch.no_grad()
def test_whatever_the_head_is_logits_are_the_models_own(make):
    lm, inputs = model(make), text(3, CONTEXT)
    known = lm.model(input_ids=inputs, use_cache=False).logits
    assert torch.equal(lm(inputs), known) and (lm.vocabulary, lm.context) == (V, 32)
    cache = lm.cache(3)
    lm(inputs[:, :5], cache)
    rounding = 0.05 if make is quantised else 1e-4  # of activations, by the largest in the batch
    torch.testing.assert_close(lm(inputs[:, 5:], cache), known[:, 5:], rtol=rounding, atol=rounding)
    if make in CALLED.values():
        with pytest.raises(ValueError, match="leave fused = False, and the model makes its logits itself"):
            lm.fused = True
        return
    lm.fused = True
    torch.testing.assert_close(lm(inputs).dense(), known, rtol=1e-5, atol=1e-5)


def test_a_head_that_becomes_another_is_noticed_when_it_runs():
    """The comparison at the beginning is passed by what is zero or one then."""
    pytest.importorskip("peft")
    lm = model(llama)
    lm.fused = True
    lm(text(1, 3))
    lm.model.lm_head.register_forward_hook(lambda module, given, output: output)
    with pytest.raises(ValueError, match="is no plain linear map"):
        lm(text(1, 3))

    class Scaled(transformers.LlamaForCausalLM):
        def forward(self, input_ids, logits_to_keep=0, **named):
            output = super().forward(input_ids, logits_to_keep=logits_to_keep, **named)
            output.logits = output.logits * self.scale
            return output

    inner = Scaled(llama().config)
    inner.scale = 1.0
    lm = CausalLM(inner)
    lm.fused = True
    inner.scale = 2.0
    with pytest.raises(ValueError, match="^Scaled scales its logits"):
        lm(text(1, 3))
    inner.scale = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match="^Scaled has scale beside body and head"):
        lm(text(1, 3))


def test_no_causal_language_model_is_refused():
    peft = pytest.importorskip("peft")
    shape = {**SHAPE, "intermediate_size": 32}
    with pytest.raises(ValueError, match="depend on the tokens that follow"):
        CausalLM(transformers.BertForMaskedLM(transformers.BertConfig(**shape)))
    virtual = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(ValueError, match="logits of shape .2, 7, 50. for tokens of shape .2, 3., not a row for each"):
        CausalLM(peft.get_peft_model(llama(), virtual))


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


every_writer = pytest.mark.parametrize(
    "make", [llama, gpt2, gemma, mistral, bloom, mamba], ids=lambda make: make.__name__
)


def test_keys_and_values_are_kept_where_there_are_any():
    kinds = {make: type(model(make).cache(1)) for make in (llama, gpt2, gemma, mistral, bloom, mamba)}
    assert kinds.pop(mamba) is Reread and set(kinds.values()) == {KeysAndValues}


@every_writer
@torch.no_grad()
def test_read_in_pieces_and_rewound_it_says_the_same(make):
    """Rows that go back by different numbers of tokens, twice; a window of three, or of four, is passed."""
    lm, inputs, more, still = model(make), text(2, 9), text(2, 5, seed=2), text(2, 4, seed=3)
    cache = lm.cache(2)
    first = lm(inputs[:, :6], cache)
    torch.testing.assert_close(torch.cat([first, lm(inputs[:, 6:], cache)], 1), lm(inputs), rtol=1e-4, atol=1e-4)
    cache.rewind(torch.tensor([1, 7]))
    after = lm(more, cache)
    cache.rewind(torch.tensor([5, 8]))
    last = torch.cat([lm(still[:, :3], cache), lm(still[:, 3:], cache)], 1)
    for row, (length, again) in enumerate(((1, 4), (7, 1))):
        read = torch.cat([inputs[row, :length], more[row]])
        torch.testing.assert_close(after[row], lm(read[None])[0, length:], rtol=1e-3, atol=1e-4)
        read = torch.cat([read[: length + again], still[row]])
        torch.testing.assert_close(last[row], lm(read[None])[0, length + again :], rtol=1e-3, atol=1e-4)
    cache.rewind(torch.tensor([0, 0]))
    torch.testing.assert_close(lm(inputs, cache), lm(inputs), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="a cache can be shortened only to lengths between zero and what it holds"):
        cache.rewind(torch.tensor([1, 50]))
    with torch.enable_grad(), pytest.raises(RuntimeError, match="a cache keeps no gradients"):
        lm(inputs, lm.cache(2))


@every_writer
def test_texts_of_any_length_are_those_of_transformers(make):
    """It wants them padded on the left, and hides the padding."""
    lm, prompts, lengths = model(make), text(3, 6), torch.tensor([2, 6, 1])
    left = torch.zeros_like(prompts)
    for row, n in enumerate(lengths.tolist()):
        left[row, 6 - n :] = prompts[row, :n]
    known = lm.model.generate(
        left, attention_mask=(torch.arange(6) >= 6 - lengths[:, None]).long(), max_new_tokens=9, min_new_tokens=9,
        do_sample=False, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    found = generate(lm, prompts, tokens=9, lengths=lengths, temperature=0)
    for row, n in enumerate(lengths.tolist()):
        assert torch.equal(found[row, n : n + 9], known[row, 6:])


@every_writer
@pytest.mark.parametrize("fused", [False, True])
def test_a_draft_of_it_is_believed_where_it_is_right(make, fused):
    """Its refused tokens are forgotten by both."""
    lm, draft, prompts = model(make), model(make, 1), text(3, 4)
    for one, other in zip(draft.parameters(), lm.parameters(), strict=True):
        one.data.lerp_(other.data, 0.7)
    if make is not mamba:
        lm.fused = draft.fused = fused
    found = speculate(lm, draft, prompts, tokens=12, draft_length=3, temperature=0)
    assert torch.equal(found.text, generate(lm, prompts, tokens=12, temperature=0))
    assert found.accepted.sum() > 0 and (make is bloom or found.accepted.sum() < found.tested.sum())


def test_what_keeps_nothing_says_so():
    lm = model(llama)
    cache = lm.cache(1)
    lm.model.activation_checkpointing_enable()
    lm.train()
    with torch.no_grad(), pytest.raises(RuntimeError, match="kept no keys and values, as with gradient checkpointing"):
        lm(text(1, 3), cache)


# Training

RECIPE = Recipe(epochs=2, batch_size=4, optimizer="adamw", learning_rate=1e-2, schedule="cosine", augment=False)
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
    hidden = HiddenMSE(("model.model.layers.0", "model.model.layers.1"), projector=Projector("linear", 16, 16))
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


# Adapters


def trained_adapters(lm, teacher, train=None, **how):
    before = {name: p.detach().clone() for name, p in lm.named_parameters()}
    history = fit(lm, KD, train=train or tokens(), teacher=teacher, recipe=RECIPE, **how)
    return history, {name for name, p in lm.named_parameters() if not torch.equal(before[name], p)}


@pytest.mark.parametrize("targets", [("q_proj",), ("q_proj", "lm_head")])
def test_adapters_learn_wherever_they_are(targets):
    lm = model(lambda: adapted(*targets))
    history, moved = trained_adapters(lm, student())
    assert moved == {name for name, p in lm.named_parameters() if p.requires_grad}
    assert all(any(target in name for name in moved) for target in targets)
    with torch.no_grad():
        own = lm.model(input_ids=text(2, 5)).logits
        assert torch.equal(lm(text(2, 5)), own)
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize("fused", [False, True])
def test_the_same_model_without_its_adapters_teaches_it(fused):
    lm, base = model(lambda: adapted("q_proj", "v_proj", lora_dropout=0.5)), model(lambda: adapted("q_proj"))
    base = CausalLM(base.model.unload())  # of the same seed, without any
    teacher = without_adapter(lm)
    lm.fused = fused
    lm.train()
    trained = {name: p.requires_grad for name, p in lm.named_parameters()}
    torch.testing.assert_close(all_logits(teacher(text(2, 5))), base.eval()(text(2, 5)), rtol=1e-5, atol=1e-5)
    assert trained == {name: p.requires_grad for name, p in lm.named_parameters()} and lm.training
    before = all_logits(teacher(text(2, 5)))
    history, moved = trained_adapters(lm, teacher)
    assert moved == {name for name, wanted in trained.items() if wanted} and history[0]["ForwardKL"] > 0.01
    assert history[1]["ForwardKL"] < history[0]["ForwardKL"]
    assert torch.equal(all_logits(teacher(text(2, 5))), before)


def test_a_teacher_without_adapters_does_all_that_a_teacher_does(tmp_path):
    lm = model(lambda: adapted("q_proj"))
    teacher = without_adapter(lm)
    layers = ("model.base_model.model.model.layers.0", "model.base_model.model.model.layers.1")
    objective = KD + HiddenMSE(*layers)
    (entry, _) = fit(lm, objective, train=tokens(), teacher=teacher, recipe=RECIPE, checkpoint=tmp_path / "run")
    assert entry["HiddenMSE"] > 0 and not any("lora" in name for name in teacher.state_dict())
    again = model(lambda: adapted("q_proj"), 3)
    for p, q in zip(lm.parameters(), again.parameters(), strict=True):
        q.data.copy_(p.data)
    more = Recipe(**vars(RECIPE))
    assert (
        len(
            fit(
                again,
                objective,
                train=tokens(),
                teacher=without_adapter(again),
                recipe=more,
                checkpoint=tmp_path / "run",
            )
        )
        == 2
    )
    assert generate(teacher, text(2, 3), tokens=2).shape == (2, 5) and teacher.vocabulary == V
    write_cache(tmp_path / "cache", teacher, tokens(), entries=6)
    TeacherCache(tmp_path / "cache", tokens(), without_adapter(again))
    with pytest.raises(TypeError, match="^CausalLM has no model of peft in it"):
        without_adapter(model(llama))


def test_layers_are_named_as_without_adapters():
    """One pair of names for a student with adapters, its base and a model that never had any; the student alone in it, too."""
    lm, base, inputs = model(lambda: adapted("q_proj")), model(llama), text(1, 4)
    name, whole = "model.model.layers.0", "model.base_model.model.model.layers.0"
    with torch.no_grad():
        _, hidden = Taps(lm, [name, whole, f"input:{name}.self_attn.q_proj"])(inputs)
        assert torch.equal(hidden[name], hidden[whole])
        _, other = Taps(without_adapter(lm), [name])(inputs)
        assert not torch.equal(other[name], hidden[name])
        _, alone = Taps(lm.model, ["model.layers.0"])(inputs)
        assert torch.equal(alone["model.layers.0"], hidden[name])
    (entry, _) = fit(lm, KD + HiddenMSE(name), train=tokens(), teacher=base, recipe=RECIPE)
    assert entry["HiddenMSE"] > 0
    with pytest.raises(ValueError, match="has no module 'model.model.layer.0'; there are 'model.model.layers.0'"):
        Taps(lm, ["model.model.layer.0"])


def test_a_teacher_that_training_would_move_is_refused():
    base = llama()
    with pytest.raises(ValueError, match="without_adapter"):
        fit(
            CausalLM(pytest.importorskip("peft").get_peft_model(base, lora())),
            KD,
            train=tokens(),
            teacher=CausalLM(base),
            recipe=RECIPE,
        )
    biased = CausalLM(adapted("c_attn", make=gpt2, bias="all", fan_in_fan_out=True))
    with pytest.raises(ValueError, match="bias"):
        fit(biased, KD, train=tokens(), teacher=without_adapter(biased), recipe=RECIPE)


def lora():
    return pytest.importorskip("peft").LoraConfig(target_modules=["q_proj"])

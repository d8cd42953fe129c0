"""What is given where a model, a tokeniser or a text belongs: one sentence, whoever is asked."""

import pytest
import torch
from torch import nn

from kdlab.data import Examples, Tokens
from kdlab.language import (
    Drafting,
    OwnText,
    Retokenised,
    TeacherCache,
    first_bytes,
    generate,
    shared_tokens,
    speculate,
    teacher_text,
    token_bytes,
    token_texts,
    tokenise_documents,
    tokens_of,
    train_tokeniser,
    try_draft,
    write_cache,
)
from kdlab.models import GPT
from kdlab.objectives import CrossEntropy, SoftTargets
from kdlab.training import Recipe, Taps, evaluation_mode, fit, measure_tokens, predict, write_logits

PROMPTS, RECIPE = torch.tensor([[1, 2]]), Recipe(1, 2, augment=False)


def gpt():
    return GPT(9, width=4, layers=1, heads=1, context=4)


def text():
    return Tokens(torch.arange(9, dtype=torch.int16), 4, torch.ones(9, dtype=torch.long))


def letters():
    return train_tokeniser(["to be or not to be " * 20], 260)


def cached(path, teacher):
    write_cache(path, gpt(), text(), entries=2)
    return TeacherCache(path, text(), teacher)


WITH_A_MODEL = {
    "generate": lambda x, path: generate(x, PROMPTS, tokens=2),
    "speculate, verifier": lambda x, path: speculate(x, gpt(), PROMPTS, tokens=2),
    "speculate, draft": lambda x, path: speculate(gpt(), x, PROMPTS, tokens=2),
    "try_draft": lambda x, path: try_draft(gpt(), x, [PROMPTS], Drafting(tokens=2, prompt=2)),
    "OwnText": lambda x, path: OwnText(1)(x, PROMPTS, PROMPTS, 0.0, torch.Generator()),
    "teacher_text": lambda x, path: teacher_text(path / "text", x, text(), prompt=1),
    "write_cache": lambda x, path: write_cache(path / "cache", x, text()),
    "TeacherCache": lambda x, path: cached(path / "cache", x),
    "Retokenised": lambda x, path: Retokenised(x, letters(), letters()),
    "fit, student": lambda x, path: fit(x, CrossEntropy(), train=text(), recipe=RECIPE),
    "fit, teacher": lambda x, path: fit(gpt(), SoftTargets(), teacher=x, train=text(), recipe=RECIPE),
    "predict": lambda x, path: predict(x, text()),
    "measure_tokens": lambda x, path: measure_tokens([x], text()),
    "measure_tokens, teacher": lambda x, path: measure_tokens([gpt()], text(), teacher=x),
    "write_logits": lambda x, path: write_logits(path / "logits", x, text()),
    "Taps": lambda x, path: Taps(x, ["a"]),
    "evaluation_mode": lambda x, path: evaluation_mode(x).__enter__(),
}
NO_MODEL = {
    "a name": ("your/model", r"not the name 'your/model': load it first, .*from_pretrained\('your/model'\)"),
    "a class": (GPT, r"not the class GPT: make one of it, GPT\(…\)\."),
    "a function": (lambda x: x, "not function; of a function make a teacher: kdlab.training.FunctionTeacher"),
    "something": (torch.ones(2), r"not Tensor\."),
}
every_thing = pytest.mark.parametrize(("thing", "sentence"), NO_MODEL.values(), ids=NO_MODEL)


@every_thing
def test_what_is_no_model_is_called_what_it_is(tmp_path, thing, sentence):
    for name, ask in WITH_A_MODEL.items():
        with pytest.raises(TypeError, match=f"^an? \\w+ is a torch.nn.Module, {sentence}"):
            pytest.fail(f"{name} takes {ask(thing, tmp_path)}")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"cache"}  # of the one that was well made


@every_thing
def test_in_transformers_place_too(thing, sentence):
    pytest.importorskip("transformers")
    from kdlab.huggingface import CausalLM, Distillation, OwnAnswers, SentenceEncoder, without_adapter

    batch = {"input_ids": PROMPTS}
    for ask in (
        CausalLM,
        SentenceEncoder,
        without_adapter,
        lambda x: OwnAnswers(2)(x, batch),
        lambda x: Distillation(x, gpt(), SoftTargets()),
        lambda x: Distillation(gpt(), x, SoftTargets()),
    ):
        with pytest.raises(TypeError, match=f"^an? \\w+ is a torch.nn.Module, {sentence}"):
            ask(thing)
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    with pytest.raises(TypeError, match="^here the student is the model of transformers itself, .*: student.model"):
        Distillation(CausalLM(transformers.LlamaForCausalLM(config)), gpt(), SoftTargets())
    with pytest.raises(TypeError, match="^GPT is no model of transformers, .*: a model of kdlab.models writes"):
        CausalLM(gpt())
    t5 = transformers.T5Config(vocab_size=9, d_model=8, d_ff=8, d_kv=8, num_layers=1, num_heads=1)
    with pytest.raises(
        ValueError,
        match="^T5ForConditionalGeneration has an encoder and a decoder, .*: Distil and Distillation take it",
    ):
        OwnAnswers(2)(transformers.T5ForConditionalGeneration(t5), batch)
    with pytest.raises(TypeError, match="^Linear is no model of transformers"):
        OwnAnswers(2)(nn.Linear(2, 2), batch)
    with pytest.raises(ValueError, match="^GPT reads tokens, and the batch has input_ids: each is a column"):
        Distillation(gpt(), gpt(), SoftTargets()).look(gpt(), batch)


def test_what_is_no_tokeniser_is_called_what_it_is():
    known = letters()
    for thing, sentence in (
        ("your/model", r"not the name 'your/model': load it first, .*AutoTokenizer.from_pretrained\('your/model'\)"),
        (gpt(), r"not GPT\."),
        (None, r"not NoneType\."),
    ):
        for ask in (
            token_bytes,
            token_texts,
            lambda x: tokenise_documents(["be"], x, 2),
            lambda x: tokens_of(["be"], x),
            lambda x: shared_tokens(x, known),
            lambda x: shared_tokens(known, x),
            lambda x: first_bytes(x, known),
            lambda x: Retokenised(gpt(), x, known),
            lambda x: Retokenised(gpt(), known, x),
        ):
            with pytest.raises(TypeError, match=f"^a tokeniser is a tokenizers.Tokenizer, or a fast one .*{sentence}"):
                ask(thing)


def test_words_are_those_of_a_tokeniser_of_transformers_too():
    """Without what it puts around a text."""
    transformers = pytest.importorskip("transformers")
    from tokenizers.processors import TemplateProcessing

    plain, fast = letters(), letters()
    fast.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=fast)
    assert tokens_of(["be"], fast) == tokens_of(["be"], plain)


def test_what_is_no_text_is_called_what_it_is(tmp_path):
    for thing in (torch.arange(9), [1, 2], "to be", Examples(torch.ones(2, 3), torch.ones(2).long())):
        for ask in (
            lambda x: write_cache(tmp_path / "cache", gpt(), x),
            lambda x: teacher_text(tmp_path / "text", gpt(), x),
            lambda x: measure_tokens([gpt()], x),
        ):
            with pytest.raises(
                TypeError, match=f"^a text is kdlab.data.Tokens, not {type(thing).__name__}: .*tokenise"
            ):
                ask(thing)
    assert not any(tmp_path.iterdir())


def test_models_that_are_filled_up_to_different_numbers():
    """A draft of more tokens than its verifier says how the others are taken off."""
    transformers = pytest.importorskip("transformers")
    from kdlab.huggingface import CausalLM

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    draft, verifier = (transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=n, **shape)) for n in (11, 9))
    with pytest.raises(ValueError, match=r"beyond 9 only fill the larger up, model.resize_token_embeddings\(9\)"):
        speculate(CausalLM(verifier), CausalLM(draft), PROMPTS, tokens=2)
    draft.resize_token_embeddings(9)
    assert speculate(CausalLM(verifier), CausalLM(draft), PROMPTS, tokens=2).text.shape == (1, 4)

"""On-policy distillation from prompts in Trainer: what the student writes is what it learns from."""

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import Trainer, TrainingArguments

from kdlab.huggingface import CausalLM, Distil, OwnAnswers
from kdlab.language import generate
from kdlab.objectives import ReverseKL

V = 40
PROMPTS = [[5, 6, 7], [8], [9, 3, 2, 4], [1, 2], [30, 31], [7], [3, 3, 3], [12, 13]]


class KD(Distil, Trainer):
    pass


def llama(seed, **options):
    torch.manual_seed(seed)
    shape = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    made = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(num_hidden_layers=1, max_position_embeddings=16, **shape, **options)
    )
    for p in made.parameters():
        p.data.mul_(8 if p.ndim > 1 else 1)
    return made


def padded(prompts, side):
    """A batch as a tokeniser's collator makes it."""
    width = max(map(len, prompts))
    rows = [[0] * (width - len(p)) + p if side == "left" else p + [0] * (width - len(p)) for p in prompts]
    read = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    read = torch.tensor(read) if side == "left" else torch.tensor(read).flip(1)
    return {"input_ids": torch.tensor(rows), "attention_mask": read, "index": torch.arange(len(prompts))}


def collated(examples):
    return {k: x for k, x in padded([e["input_ids"] for e in examples], "left").items() if k != "index"}


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_prompt_is_gone_on_from_and_its_own_tokens_are_no_labels(side):
    student = llama(0).train()
    found = OwnAnswers(5, temperature=0)(student, padded(PROMPTS, side))
    assert student.training and found["index"].tolist() == [*range(8)]
    for row, prompt in enumerate(PROMPTS):
        n = len(prompt)
        alone = generate(CausalLM(student), torch.tensor([prompt]), tokens=5, temperature=0)[0]
        assert torch.equal(found["input_ids"][row, : n + 5], alone)
        assert found["labels"][row].tolist() == [-100] * n + alone[n:].tolist() + [-100] * (4 - n)
        assert found["attention_mask"][row].tolist() == [1] * (n + 5) + [0] * (4 - n)


def test_nothing_is_learned_behind_the_end_of_a_text():
    """The token that ends it is learned; the generation configuration says which it is."""
    student = llama(0)
    text = OwnAnswers(5, temperature=0)(student, padded(PROMPTS[:1], "right"))["input_ids"][0, 3:].tolist()
    end = text[2]
    student.generation_config.eos_token_id = end
    for how in ({}, {"stop": (end,)}):
        found = OwnAnswers(5, temperature=0, **how)(student, padded(PROMPTS[:1], "right"))
        count = text.index(end) + 1
        assert found["labels"][0].tolist() == [-100] * 3 + text[:count] + [-100] * (5 - count)
        assert found["attention_mask"].sum() == 3 + count


def test_an_answer_that_is_there_gives_its_place_to_the_students():
    batch = {"input_ids": torch.tensor([[5, 6, 7, 20, 21], [8, 22, 23, 24, 0]])}
    batch["labels"] = torch.tensor([[-100, -100, -100, 20, 21], [-100, 22, 23, 24, -100]])
    found = OwnAnswers(4, temperature=0)(llama(0), batch)
    known = OwnAnswers(4, temperature=0)(llama(0), padded(PROMPTS[:2], "left"))
    assert all(torch.equal(found[name], known[name]) for name in found)
    assert OwnAnswers(4, probability=0.0)(llama(0), batch) == batch
    with pytest.raises(ValueError, match="^an example has no prompt: .*of prompts alone there are none"):
        OwnAnswers(4)(llama(0), {**batch, "labels": batch["input_ids"]})


@pytest.mark.parametrize("how", [{"tokens": 0}, {"temperature": -1.0}, {"probability": 1.1}])
def test_what_no_answer_can_be_is_said(how):
    with pytest.raises(ValueError, match="^own answers are of at least one token"):
        OwnAnswers(**{"tokens": 4, **how})


def trained(folder, *, rewrite, data=None, resume=False, **how):
    student = llama(0)
    recipe = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "max_grad_norm": 0.0, **how}
    args = TrainingArguments(folder, use_cpu=True, report_to="none", lr_scheduler_type="constant", **recipe)
    made = KD(
        student, teacher=llama(1), objective=1.0 * ReverseKL(), rewrite=rewrite, args=args, fused=True,
        train_dataset=data or [{"input_ids": p} for p in PROMPTS], data_collator=collated if data is None else None,
    )  # fmt: skip
    made.train(resume_from_checkpoint=resume)
    return [p.detach().clone() for p in student.parameters()]


def test_what_is_no_batch_of_prompts_is_said():
    row = torch.tensor([5, 6, 7])
    for batch in (
        ["a prompt"],
        row[None],
        {"input_ids": row},
        {"input_ids": [[5, 6]]},
        {"tokens": row[None]},
        {"input_ids": row[None] / 2},
    ):
        with pytest.raises(TypeError, match=r"^a batch of prompts has input_ids, .*padding=True"):
            OwnAnswers(2)(torch.nn.Linear(2, 2), batch)


def test_a_step_is_one_on_the_text_that_it_would_have_written(tmp_path):
    """And accumulated as whole: answers of one length each, so that micro-batches have other numbers of tokens."""
    own = OwnAnswers(4, temperature=0, stop=3)
    once = {"max_steps": 1, "train_sampling_strategy": "sequential"}
    found = trained(tmp_path, rewrite=own, **once)
    batch = own(llama(0), collated([{"input_ids": p} for p in PROMPTS[:4]]))
    rows = [{k: x[i] for k, x in batch.items()} for i in range(4)]
    torch.testing.assert_close(found, trained(tmp_path, rewrite=None, data=rows, **once))
    parts = trained(tmp_path, rewrite=own, gradient_accumulation_steps=4, **{**once, "per_device_train_batch_size": 1})
    torch.testing.assert_close(found, parts, rtol=1e-3, atol=1e-5)


def test_what_is_drawn_goes_by_the_step(tmp_path):
    whole = trained(tmp_path / "a", rewrite=OwnAnswers(4), save_steps=1)
    again = trained(tmp_path / "a", rewrite=OwnAnswers(4), resume=str(tmp_path / "a" / "checkpoint-1"))
    assert all(map(torch.equal, whole, again))
    other = trained(tmp_path / "b", rewrite=OwnAnswers(4), seed=1)
    assert not all(map(torch.equal, whole, other))


def test_examples_in_one_row_are_not_gone_on_from():
    """Else all but the first would be left out, without a word."""
    packed = {"input_ids": torch.tensor([[5, 6, 7, 8, 9]]), "position_ids": torch.tensor([[0, 1, 2, 0, 1]])}
    with pytest.raises(ValueError, match="^several examples are packed into one row, .*packing=False"):
        OwnAnswers(2)(llama(0), packed)
    padded_left = padded(PROMPTS[:2], "left") | {"position_ids": torch.tensor([[0, 1, 2], [1, 1, 0]])}
    assert OwnAnswers(2)(llama(0), padded_left)["input_ids"].shape == (2, 5)


def test_a_collator_that_gives_no_labels_gives_none():
    batch = padded(PROMPTS[:2], "left")
    found, known = (OwnAnswers(2, temperature=0)(llama(0), batch | more) for more in ({}, {"labels": None}))
    assert all(torch.equal(found[name], known[name]) for name in found)


def test_a_student_writes_no_token_that_its_teacher_does_not_have(tmp_path):
    args = TrainingArguments(tmp_path, use_cpu=True, report_to="none")
    student, teacher = llama(0), llama(1)
    student.resize_token_embeddings(V + 3)
    how = {"teacher": teacher, "objective": 1.0 * ReverseKL(), "args": args, "rewrite": OwnAnswers(2)}
    with pytest.raises(ValueError, match=rf"may write any of {V + 3} tokens, .*resize_token_embeddings\({V}\)"):
        KD(student, **how)
    student.resize_token_embeddings(V)
    KD(student, **how)

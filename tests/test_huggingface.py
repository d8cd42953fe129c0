"""An objective in the Trainer of transformers: two tiny language models of different width."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from kdlab.objectives import CrossEntropy, SkewedForwardKL, SoftTargets, next_token

OBJECTIVE = 0.3 * CrossEntropy() + 0.5 * SoftTargets(temperature=2) + 0.2 * SkewedForwardKL()


class Distiller(Trainer):
    loss_is_scaled_for_ga = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        with torch.no_grad():
            known = self.teacher(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        aligned = next_token(outputs.logits, known.logits, inputs["labels"])
        loss, _ = self.objective(**aligned, count=num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


def llama(seed, hidden, layers):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=16,
        )
    )


def examples(lengths):
    """Random tokens, padded to twelve at the right."""
    generator = torch.Generator().manual_seed(0)
    for length in lengths:
        tokens = torch.randint(64, (12,), generator=generator)
        real = torch.arange(12) < length
        yield {
            "input_ids": tokens.where(real, 0),
            "attention_mask": real.long(),
            "labels": tokens.where(real, -100),
        }


@pytest.fixture
def distiller(tmp_path):
    def make(data, **options):
        recipe = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, **options}
        arguments = TrainingArguments(
            tmp_path,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            lr_scheduler_type="constant",
            **recipe,
        )
        trainer = Distiller(model=llama(0, 16, 2), args=arguments, train_dataset=data)
        trainer.teacher, trainer.objective = llama(1, 32, 4).eval(), OBJECTIVE
        return trainer

    return make


def loss_of(trainer, student, batch):
    """The objective, without the trainer."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    z, t = student(**inputs).logits[:, :-1], trainer.teacher(**inputs).logits[:, :-1].detach()
    y = batch["labels"][:, 1:]
    return OBJECTIVE(student_logits=z, teacher_logits=t, labels=y, mask=y != -100)[0]


def stacked(data):
    return {name: torch.stack([example[name] for example in data]) for name in data[0]}


def test_a_student_is_distilled(distiller):
    data = list(examples([12, 3, 7, 5]))
    trainer = distiller(data)
    before = {name: value.clone() for name, value in trainer.teacher.state_dict().items()}
    expected = loss_of(trainer, llama(0, 16, 2), stacked(data)).item()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[0] > losses[1] > losses[2]
    assert all(entry["grad_norm"] > 0 for entry in trainer.state.log_history if "grad_norm" in entry)
    assert all(torch.equal(before[name], value) for name, value in trainer.teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.teacher.parameters())


def test_accumulated_micro_batches_are_one_batch(distiller):
    data = list(examples([12, 3, 7, 5]))  # 11 + 2 + 6 + 4 tokens to predict
    whole = distiller(data, max_steps=1)
    parts = distiller(data, max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    for trainer in (whole, parts):
        trainer.train()
    one, other = (next(e for e in trainer.state.log_history if "grad_norm" in e) for trainer in (whole, parts))
    assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)

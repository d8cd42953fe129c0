"""``writing`` and ``trainer``: kdlab beside transformers' own ``generate``, and beside a loop by hand."""

import logging
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from ..language import generate
from ..objectives import CrossEntropy, ForwardKL
from .timing import BenchmarkError, Contest, Laps, Settings, contest

#: Tokens of a vocabulary, of a prompt or a text, and those that are written.
VOCABULARY, CONTEXT, NEW = 1000, 32, 128
#: Of the large model, and of the small one.
WIDTHS = 256, 128


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise BenchmarkError("this benchmark is of transformers: pip install 'kdlab[hf]'.") from None
    return transformers


def _llama(width: int, layers: int, seed: int = 0) -> Any:
    transformers = _transformers()
    shape = {"vocab_size": VOCABULARY, "num_attention_heads": 4, "max_position_embeddings": CONTEXT + NEW}
    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, eos_token_id=None, **shape
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config)


def _timed(settings: Settings, work: Callable[[], Any]) -> Callable[[], float]:
    def one_round() -> float:
        laps = Laps(settings.device)
        laps()
        work()
        laps()
        return laps.last

    work()  # warms up
    return one_round


def writing(settings: Settings) -> list[Contest]:
    """Writing by ``CausalLM`` against ``generate`` of transformers: at most 1.2 of its time is the goal.

    The same model, prompts and number of tokens, which are drawn at temperature one, with keys and values kept. Neither ends a text early. A batch of
    eight prompts; what is counted are texts.
    """
    from ..huggingface import CausalLM

    model, rows = _llama(WIDTHS[0], 4).eval().to(settings.device), 8
    prompts = torch.randint(1, VOCABULARY, (rows, CONTEXT), generator=torch.Generator().manual_seed(0))
    prompts, ours = prompts.to(settings.device), CausalLM(model)
    how = {"attention_mask": torch.ones_like(prompts), "do_sample": True, "top_k": 0, "pad_token_id": 0}
    contestants = {
        "transformers": _timed(settings, lambda: model.generate(prompts, max_new_tokens=NEW, **how)),
        "kdlab": _timed(settings, lambda: generate(ours, prompts, tokens=NEW)),
    }
    title = f"{NEW} tokens after {CONTEXT}, {rows} texts"
    images = dict.fromkeys(contestants, rows)
    return [contest(title, contestants, settings, reference="transformers", images=images)]


def trainer(settings: Settings) -> list[Contest]:
    """``Distil`` within ``Trainer`` against a bare loop: fused, as one uses it for language models, at most 1.03 of its time is the goal.

    The same batches in the same order, models, loss and optimiser, without clipping and without a schedule; a round is ``settings.steps`` steps of eight texts.
    Between the two stands ``Trainer`` with the loss of the bare loop in it: what it takes beyond that is the trainer's, and what ``Distil`` takes
    beyond it is the mixin's. Unfused its divergence keeps more digits than the loop's ``kl_div``, which takes longer.
    """
    transformers = _transformers()
    from ..huggingface import Distil

    rows, teacher = 8, _llama(WIDTHS[0], 4, seed=1).eval().to(settings.device)
    tokens = torch.randint(VOCABULARY, (settings.steps * rows, 2 * CONTEXT), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in tokens]

    def loss_by_hand(student: Any, batch: dict) -> torch.Tensor:
        with torch.no_grad():
            p = F.log_softmax(teacher(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1].float(), -1)
        z = student(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1].float().flatten(0, 1)
        soft = F.kl_div(F.log_softmax(z, -1), p.flatten(0, 1), reduction="batchmean", log_target=True)
        return 0.5 * F.cross_entropy(z, batch["labels"][:, 1:].flatten()) + 0.5 * soft

    class ByHand(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return loss_by_hand(model, inputs)

    class KD(Distil, transformers.Trainer):
        pass

    class Clock(transformers.TrainerCallback):
        """From the first step's beginning to the last one's end, without what a trainer prepares."""

        def __init__(self) -> None:
            self.laps = Laps(settings.device)

        def on_train_begin(self, *_, **__) -> None:
            self.laps()

        on_step_end = on_train_begin

    def bare() -> float:
        student = _llama(WIDTHS[1], 2).to(settings.device).train()
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.0)
        loader = torch.utils.data.DataLoader(data, batch_size=rows)  # pyrefly: ignore[bad-argument-type]
        laps = Laps(settings.device)
        laps()
        for batch in loader:
            loss = loss_by_hand(student, {name: tensor.to(settings.device) for name, tensor in batch.items()})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        laps()
        return laps.last

    def trained(kind: type, folder: str, **options: Any) -> float:
        args = transformers.TrainingArguments(
            folder, per_device_train_batch_size=rows, num_train_epochs=1, learning_rate=1e-3, lr_scheduler_type="constant",
            max_grad_norm=0.0, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            train_sampling_strategy="sequential", dataloader_pin_memory=False, use_cpu=settings.device == "cpu",
        )  # fmt: skip
        made = kind(_llama(WIDTHS[1], 2), args=args, train_dataset=data, **options)
        made.pop_callback(transformers.PrinterCallback)
        made.add_callback(clock := Clock())
        made.train()
        return clock.laps.marks[-1] - clock.laps.marks[0]

    with tempfile.TemporaryDirectory() as folder, _quiet():
        objective = 0.5 * CrossEntropy() + 0.5 * ForwardKL()
        contestants = {
            "bare loop": bare,
            "Trainer, by hand": lambda: trained(ByHand, folder),
            "Trainer, Distil": lambda: trained(KD, folder, teacher=teacher, objective=objective),
            "Trainer, Distil, fused": lambda: trained(KD, folder, teacher=teacher, objective=objective, fused=True),
        }
        images = dict.fromkeys(contestants, settings.steps * rows)
        return [contest("a step of distillation", contestants, settings, reference="bare loop", images=images)]


@contextmanager
def _quiet():
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

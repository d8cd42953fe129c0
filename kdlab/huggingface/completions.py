"""Any objective of logits in TRL's distillation trainer, which draws the student's answers itself, with vLLM if asked to."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..objectives import Objective, Term, entropy
from ..objectives.checks import IGNORED
from .distillation import Distillation


class DistilCompletions:
    """Makes ``trl.DistillationTrainer`` minimise an objective in place of its Jensen–Shannon divergence.

    ::

        class KD(DistilCompletions, DistillationTrainer): ...

        KD(student, teacher, objective=1.0 * ReverseKL(), args=args, train_dataset=prompts).train()

    All else is the trainer's: prompts, drawing, tools, logging. Each term is logged by its name; ``beta`` and ``temperature`` of its
    configuration, of the divergence, are not looked at.

    Args:
        objective: terms of logits, whose weights are drawn; hidden states are for :class:`~kdlab.huggingface.trainer.Distil`, with
            :class:`~kdlab.huggingface.answers.OwnAnswers`.
        arguments, options: the trainer's own.

    Raises:
        ValueError: for terms that look at layers, learn, or compare the examples of a batch.
    """

    def __init__(self, *arguments: Any, objective: Objective | Term, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.take(objective)

    def take(self, objective: Objective | Term) -> None:
        """Minimise this from now on."""
        objective = 1.0 * objective if isinstance(objective, Term) else objective
        learns = any(p.requires_grad for p in objective.parameters())
        whole = any("texts" in term.needs_whole_batch_of for term in objective.terms)
        if objective.student_layers or objective.teacher_layers or learns or whole:
            raise ValueError(
                "in this trainer the objective is of logits, learns nothing and compares no examples; for others there is Distil, with rewrite=OwnAnswers(…)."
            )
        self.distillation = Distillation(self.model, self.teacher_model, objective)

    def _compute_loss(
        self, unwrapped_student: nn.Module, inputs: Mapping[str, Tensor], num_items_in_batch: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch = _batch(inputs)
        seen = self.distillation.look(unwrapped_student, batch)
        count = (
            None if num_items_in_batch is None else torch.as_tensor(num_items_in_batch, device=seen["labels"].device)
        )
        counts = None if count is None else dict.fromkeys(("count", "hidden_count", "example_count"), count)
        progress = self.state.global_step / max(self.state.max_steps, 1)
        loss, terms = self.distillation.compare(seen, counts=counts, progress=progress)
        mode = "train" if unwrapped_student.training else "eval"
        for name, value in terms.items():
            self._metrics[mode][name].append(value.item())
        spread = entropy(seen["student_logits"].detach()).where(seen["mask"], 0.0)
        return loss, spread.sum(), seen["mask"].sum()


def _batch(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What TRL has drawn, as examples whose labels are the student's own tokens."""
    counted = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    labels = inputs["completion_ids"].masked_fill(counted == 0, IGNORED)
    own = {"prompt_ids", "completion_ids", "prompt_mask", "completion_mask", "tool_mask", "num_items_in_batch"}
    return {k: x for k, x in inputs.items() if k not in own} | {
        "input_ids": torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
        "attention_mask": torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
        "labels": torch.cat([torch.full_like(inputs["prompt_ids"], IGNORED), labels], 1),
    }

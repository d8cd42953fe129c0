"""Distillation in transformers' own Trainer, and in whatever descends from it."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..objectives import AlignedLogits, HeadLogits, Objective, SparseTargets, Term, cross_entropy, forward_kl, soften
from ..training.checkpoint import CheckpointError, load_tensors, save_tensors
from ..training.checks import check_counts
from ..training.distributed import average
from ..training.measures import _gaps
from ..training.modules import warn_of_half_precision
from ..training.seeds import number
from .answers import OwnAnswers
from .distillation import Distillation
from .models import unwrapped

# From student, batch and generator to another batch.
Rewrite = Callable[[nn.Module, Mapping[str, Tensor], torch.Generator], Mapping[str, Tensor]]
_FILE = "objective.safetensors"


class Distil:
    """Makes a ``transformers.Trainer``, or what descends from it, minimise an objective: ``class KD(Distil, Trainer): pass``.

    ::

        class KD(Distil, Trainer): ...

        KD(student, teacher=teacher, objective=objective, args=args, train_dataset=data).train()

    The loss is the objective's alone, whatever the trainer's own would be; what it sees of a batch is said at
    :class:`~kdlab.huggingface.distillation.Distillation`. A step is the same, to rounding, whether its batch is seen as one, accumulated, or
    spread over processes (``torchrun``, ``accelerate launch``):
    means over tokens, hidden states and examples divide by the numbers of the whole. What the objective learns is trained and clipped with the student,
    and kept in each checkpoint beside it, never in it: ``save_pretrained`` writes the student alone. A schedule follows the trainer's
    steps. The trainer's columns also keep what the teacher reads, and ``index``. Its ``distillation``, called with the student and a batch, says the loss
    of any other batch, such as one of the student's own answers to prompts that were held out.

    Beside the loss, each term is logged by its name. Evaluation also gives what :func:`~kdlab.training.measures.measure` says of all
    examples, or tokens, together: ``eval_accuracy``, ``eval_cross_entropy``, ``eval_calibration_error``, and with a teacher
    of as many classes ``eval_agreement``, ``eval_kl_to_teacher``; ``eval_loss`` is the mean of the batches' losses. Batches without a label that counts
    are left out of it, and train nothing that goes by logits. ``compute_metrics`` and ``predict`` get logits as the student gives them, not shifted.

    Args:
        objective: a term or a weighted sum of terms, whose weights are drawn.
        teacher: as in :class:`~kdlab.huggingface.distillation.Distillation`. It is moved to the trainer's device, unless it is spread over several.
        fused: as in :class:`~kdlab.huggingface.distillation.Distillation`.
        gradient_norms: also log the norm of each weighted term's gradient by the student's parameters (of this process's batch), at the first step after
            each logging; that step makes all logits.
        rewrite: what a batch that is trained on becomes before it is looked at, such as :class:`~kdlab.huggingface.answers.OwnAnswers`: a function of
            student, batch and a generator, which goes by the seed, the step and the process.
        arguments, options: the trainer's own.

    Raises:
        ValueError: for options of the trainer's that would be ignored; a student that may write tokens which the teacher does not have; for terms that need each batch as a whole, or gradient norms, where gradients are
            accumulated; several GPUs in one process; or an objective that learns under FSDP or DeepSpeed.
    """

    loss_is_scaled_for_ga = True  # by the counts of the whole step

    def __init__(
        self, *arguments: Any, objective: Objective | Term, teacher: nn.Module | None = None, fused: bool = False,
        gradient_norms: bool = False, rewrite: Rewrite | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(*arguments, **options)
        self.model_accepts_loss_kwargs = True  # earlier versions go by this
        self.distillation = Distillation(self.model, teacher, objective, fused=fused)
        self.gradient_norms, self.rewrite = gradient_norms, rewrite
        self._check()
        self._own_optimizer = self.optimizer is None
        if teacher is not None and getattr(self.distillation.teacher, "inner", None) is not None:
            _placed(self.distillation.teacher.model, self.args.device)
        self.distillation.objective.to(self.args.device)
        self.distillation.share()
        self._counts, self._sums, self._steps, self._norms, self._measured = None, {}, 0, {}, None

    def _check(self) -> None:
        objective, accumulated = self.distillation.objective, self.args.gradient_accumulation_steps > 1
        if self.args.label_smoothing_factor or self.compute_loss_func is not None or self.model_init is not None:
            raise ValueError(
                "the loss is the objective's, of one student: no label_smoothing_factor (SmoothedLabels is a term), compute_loss_func or model_init."
            )
        if self.args.n_gpu > 1:
            raise ValueError(
                "several GPUs in one process are not supported: start with torchrun or accelerate launch, or show one GPU."
            )
        if (self.is_fsdp_enabled or self.is_deepspeed_enabled) and self._learned:
            raise ValueError(
                "under FSDP and DeepSpeed the objective cannot learn (projectors, banks, temperatures): use DistributedDataParallel."
            )
        if (self.is_fsdp_enabled or self.is_deepspeed_enabled) and self.rewrite is not None:
            raise ValueError("under FSDP and DeepSpeed the student cannot write: use DistributedDataParallel.")
        if not self.is_fsdp_enabled and not self.is_deepspeed_enabled:  # which keep weights in float32 themselves
            warn_of_half_precision(self.model)
        if isinstance(self.rewrite, OwnAnswers) and self.distillation.teacher is not None:
            _check_readable(self.model, self.distillation.teacher.model)
        whole = [type(term).__name__ for term in objective.terms if "texts" in term.needs_whole_batch_of]
        if accumulated and whole:
            raise ValueError(f"{', '.join(whole)} compare the examples of a batch: gradient_accumulation_steps=1.")
        if accumulated:
            check_counts(objective, self.args.gradient_accumulation_steps)
        if accumulated and self.gradient_norms:
            raise ValueError("gradient norms are measured where a batch is run as one: gradient_accumulation_steps=1.")

    @property
    def _learned(self) -> list[Tensor]:
        return [p for p in self.distillation.objective.parameters() if p.requires_grad]

    # What is trained ---------------------------------------------------------------------------------------------------------

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The trainer's, when its optimiser also has what the objective learns; weights of matrices decay, others do not."""
        trained = optimizer or self.optimizer
        held = {id(p) for group in trained.param_groups for p in group["params"]}
        left = [p for p in self._learned if id(p) not in held]
        if left and not self._own_optimizer:
            raise ValueError(
                "the optimiser that was given does not train what the objective learns: make it of [*student.parameters(), *objective.parameters()]."
            )
        for decay, group in (
            (self.args.weight_decay, [p for p in left if p.ndim > 1]),
            (0.0, [p for p in left if p.ndim < 2]),
        ):
            if group:
                trained.add_param_group({"params": group, "weight_decay": decay})
        return super().create_scheduler(num_training_steps, optimizer)

    def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
        """The batches of a step, and what its means divide by."""
        batches, count = super().get_batch_samples(*arguments, **options)
        self.distillation.objective.zero_grad()  # the trainer's own zero_grad is the student's
        if batches:
            batches = self._rewritten([self._prepare_inputs(batch) for batch in batches])
            self._counts = self.distillation.counts(batches)
            count, self._steps = self._counts["count"], self._steps + 1
        return batches, count

    def _rewritten(self, batches: list) -> list:
        if self.rewrite is None:
            return batches
        place = "rewrite", self.args.seed, self.state.global_step, self.args.process_index
        generator = torch.Generator(self.args.device).manual_seed(number(*place))
        with torch.no_grad(), self.accelerator.autocast():
            return [self.rewrite(self.model, batch, generator) for batch in batches]

    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        loss = super().training_step(*arguments, **options)
        if self.accelerator.sync_gradients:
            self.distillation.average_gradients()
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: Mapping, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's, of one micro-batch, as its part of the step's; outputs are the logits."""
        training = model.training
        measuring = training and self.gradient_norms and not self._norms
        progress = self.state.global_step / max(self.state.max_steps, 1)
        with self.accelerator.autocast():
            logits, seen = self.distillation._look(model, inputs, fused=not (return_outputs or measuring))
            labelled = training or "mask" not in seen or bool(seen["mask"].any())
            if labelled:
                counts = self._counts if training else None
                loss, terms = self.distillation.compare(seen, counts=counts, progress=progress)
            else:
                loss, terms = torch.zeros((), device=self.args.device), {}
        if measuring:
            student = [p for p in self.model.parameters() if p.requires_grad]
            norms = self.distillation.objective.gradient_norms(terms, student, progress)
            self._norms = {f"{name}.gradient_norm": norm for name, norm in norms.items()}
        if training:
            for name, value in terms.items():
                before = 0.0 if name.endswith(".temperature") else self._sums.get(name, 0.0)
                self._sums[name] = before + value.detach()
        elif self._measured is not None:
            beside = torch.full_like(loss, labelled).repeat(self.args.eval_batch_size)
            self._labelled.append(self.gather_function(beside))
            if (rows := _by_position(seen)) is not None:
                rows = self.gather_function(self.accelerator.pad_across_processes(rows, dim=1))
                self._measured.append(rows[rows[..., 0] > 0, 1:].cpu())
        if not return_outputs:
            return loss
        from transformers.modeling_outputs import CausalLMOutput

        return loss, CausalLMOutput(logits=logits)

    def _clip_grad_norm(self, model: nn.Module):
        return super()._clip_grad_norm(nn.ModuleList([model, self.distillation.objective]))

    # What is logged and measured ---------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        if "loss" in logs and self._steps:
            means = {
                k: v if k.endswith(".temperature") else v / self._steps for k, v in self._sums.items()
            } | self._norms
            values = average(torch.stack([*means.values()]).float()).tolist()
            logs = {**logs, **dict(zip(means, values, strict=True))}
            self._sums, self._steps, self._norms = {}, 0, {}
        super().log(logs, *arguments, **options)

    def prediction_step(
        self, model: nn.Module, inputs: Mapping, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        if not prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        with torch.no_grad(), self.compute_loss_context_manager():  # without all logits, if fused
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def evaluation_loop(self, *arguments: Any, metric_key_prefix: str = "eval", **options: Any) -> Any:
        self._measured, self._labelled = [], []
        try:
            output = super().evaluation_loop(*arguments, metric_key_prefix=metric_key_prefix, **options)
            if self._labelled:
                # One beside each loss that the trainer takes the mean of, or zero, as the loss is, where no label counts.
                if not (share := torch.cat(self._labelled).mean().item()):
                    raise ValueError(
                        "nothing that is evaluated has a label that counts, all are −100: give rows with labels, or leave labels out and call predict."
                    )
                output.metrics[f"{metric_key_prefix}_loss"] /= share
            if self._measured:
                found = _measures(torch.cat(self._measured).double())
                output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        finally:
            self._measured = None
        return output

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self._signature_columns is not None and "index" not in self._signature_columns:
            teacher = self.distillation.teacher
            self._signature_columns = [
                *self._signature_columns,
                "index",
                *sorted(set() if teacher is None else teacher.names),
            ]

    # What is kept ------------------------------------------------------------------------------------------------------------

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        objective = self.distillation.objective
        if self.args.should_save and objective.state_dict():
            save_tensors(os.path.join(output_dir, _FILE), objective.state_dict(), {"objective": repr(objective)})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        objective = self.distillation.objective
        if checkpoint is not None and objective.state_dict():
            tensors, header = load_tensors(path := os.path.join(checkpoint, _FILE))
            if header["objective"] != repr(objective):
                raise CheckpointError(f"{path} belongs to another objective, {header['objective']}.")
            objective.load_state_dict(tensors)
        super()._load_optimizer_and_scheduler(checkpoint)


def _placed(teacher: nn.Module, device) -> None:
    """Move a teacher, unless its layers were told where to be or it is quantised, which cannot be."""
    places = {p.device for p in teacher.parameters()}
    if len(places) == 1 and places != {torch.device(device)} and getattr(teacher, "hf_device_map", None) is None:
        teacher.to(device)


def _check_readable(student: nn.Module, teacher: nn.Module) -> None:
    """That a teacher of transformers reads whatever the student may write."""
    written, read = (
        getattr(getattr(unwrapped(model), "config", None), "get_text_config", lambda: None)()
        for model in (student, teacher)
    )
    if written is not None and read is not None and written.vocab_size > read.vocab_size:
        raise ValueError(
            f"the student may write any of {written.vocab_size} tokens, of which the teacher reads {read.vocab_size}: where the others only fill its vocabulary "
            f"up, student.resize_token_embeddings({read.vocab_size}) takes them off. Of another tokeniser, kdlab.language.Retokenised reads them."
        )


def _by_position(seen: dict) -> Tensor | None:
    """What is measured of each label, shape ``(examples, positions, …)``: first whether it counts. None where labels are no classes."""
    student, teacher, labels = seen["student_logits"], seen["teacher_logits"], seen["labels"]
    if labels is None or labels.is_floating_point() or labels.shape != student.shape[:-1]:
        return None
    if isinstance(student, HeadLogits):  # an example at a time
        cut = [{k: None if seen[k] is None else seen[k][i : i + 1] for k in _MEASURED} for i in range(len(labels))]
        return torch.cat(
            [_by_position({k: x.dense() if isinstance(x, HeadLogits) else x for k, x in part.items()}) for part in cut]
        )
    mask = seen.get("mask")
    mask = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask
    right = student.argmax(-1) == labels
    found = [mask, cross_entropy(student, labels, mask=mask, reduction="none"), right, soften(student).amax(-1)]
    if (
        teacher is not None
        and not isinstance(teacher, (AlignedLogits, SparseTargets))
        and teacher.shape == student.shape
    ):
        teacher = teacher.dense() if isinstance(teacher, HeadLogits) else teacher
        first = teacher.argmax(-1)
        found += [
            student.argmax(-1) == first,
            forward_kl(student, teacher, mask=mask, reduction="none"),
            first == labels,
        ]
    rows = torch.stack([x.float() for x in found], -1)
    return rows if rows.ndim == 3 else rows.unsqueeze(1)


_MEASURED = ("student_logits", "teacher_logits", "labels", "mask")


def _measures(rows: Tensor) -> dict[str, float]:
    """:func:`~kdlab.training.measures.measure` of what :func:`_by_position` says of each label."""
    losses, right, confidence, *of_teacher = rows.unbind(-1)
    found = {
        "accuracy": right.mean(),
        "cross_entropy": losses.mean(),
        "calibration_error": _gaps(confidence, right.bool(), 15).abs().sum() / len(rows),
    }
    if of_teacher:
        agrees, divergence, teacher_right = of_teacher
        found |= {"agreement": agrees.mean(), "kl_to_teacher": divergence.mean()}
        for name, part in (("right", teacher_right > 0), ("wrong", teacher_right == 0)):
            if part.any():
                found[f"agreement_where_teacher_{name}"] = agrees[part].mean()
    return {name: value.item() for name, value in found.items()}

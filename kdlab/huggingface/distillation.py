"""One look at a batch, and what an objective says of it: for the loops of transformers, Accelerate and Lightning."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..objectives import CrossEntropy, Objective, Term
from ..objectives.checks import IGNORED
from ..training import Taps, evaluation_mode
from ..training.distributed import average, rank_and_world
from ..training.modules import check_model, check_two
from ..training.protocols import by_index, by_view
from .models import CausalLM, unwrapped


class Distillation:
    """A student, its teacher and an objective; called with a batch of the student's data, it says the loss.

    A batch is what a collator makes, tensors by name: what the models take (``input_ids``, ``attention_mask``, ``pixel_values``, …) and
    ``labels``; ``index`` where the objective needs the examples' places in the training set. Each model gets what its forward names.
    Labels of a causal language model are those of the tokens themselves, and are shifted here. Labels of −100 and padding do not count.

    Layers are captured while the model runs as it is called, so that DistributedDataParallel averages and ``torch.compile`` compiles.
    They are named as in the model itself, without what ``peft``, compilers and wrappers put before them. The student is given to
    this class before it is wrapped. While it is in evaluation mode, terms that know the examples by their index are left out: they know the training
    set's alone. What the objective learns is in ``objective.parameters()``: give it to the optimiser, and on several
    processes call :meth:`average_gradients` before the optimiser's step. ::

        distillation = Distillation(student, teacher, objective)
        optimizer = torch.optim.AdamW([*student.parameters(), *objective.parameters()], lr=1e-4)
        model, optimizer, loader = accelerator.prepare(student, optimizer, loader)
        for step, batch in enumerate(loader):
            loss, terms = distillation(model, batch, progress=step / len(loader))
            accelerator.backward(loss)
            distillation.average_gradients()
            optimizer.step()
            optimizer.zero_grad()

    Args:
        student: a model of ``transformers``, with adapters of ``peft`` or without; or any module that is called with tensors by name.
        teacher: the same; or :func:`~kdlab.huggingface.models.without_adapter` of the student; None where the objective needs none. It looks in
            evaluation mode and without gradient, in its own type, such as bfloat16.
        objective: a term or a weighted sum of terms.
        fused: take the loss straight from the last hidden states and the head, a few tokens at a time
            (:class:`~kdlab.objectives.vocabulary.HeadLogits`): of causal language models, whose logits are then never all there. A teacher
            whose head cannot be read gives its logits.

    Raises:
        TypeError: for what is no objective, or no model.
        ValueError: if there is no teacher and one is needed, if training the student would move it, for layers that are not there,
            for a student whose head cannot be read, or a teacher that knows examples by their places and cannot see whose these are.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> from kdlab.objectives import CrossEntropy, HiddenMSE, SoftTargets
    >>> shape = {"vocab_size": 50, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    >>> student, teacher = (BertForSequenceClassification(BertConfig(num_hidden_layers=n, **shape)) for n in (1, 2))
    >>> objective = CrossEntropy() + SoftTargets() + HiddenMSE(("bert.encoder.layer.0", "bert.encoder.layer.1"))
    >>> distillation = Distillation(student, teacher, objective)
    >>> loss, terms = distillation(student, {"input_ids": torch.ones(2, 5).long(), "labels": torch.tensor([0, 1])})
    >>> list(terms)
    ['CrossEntropy', 'SoftTargets', 'HiddenMSE']
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, objective: Objective | Term, *, fused: bool = False
    ):
        check_model(student, "a student")
        if isinstance(student, CausalLM):
            raise TypeError(
                "here the student is the model of transformers itself, as trainers call and save it: student.model, of this CausalLM."
            )
        if not isinstance(objective, (Objective, Term)):
            raise TypeError(f"the objective is a term or a sum of terms, such as SoftTargets(), not {objective!r}.")
        self.objective = 1.0 * objective if isinstance(objective, Term) else objective
        if self.objective.needs_teacher and teacher is None:
            raise ValueError(f"the objective {self.objective!r} needs a teacher: teacher=….")
        weighted = zip(self.objective.weights, self.objective.terms, strict=True)
        self._held_out = Objective([x for x in weighted if not _knows_examples(x[1])] or [(1.0, CrossEntropy())])
        inner = unwrapped(student)
        self.shifts = _shifts_labels(inner)
        self.two_parts = inner if getattr(getattr(inner, "config", None), "is_encoder_decoder", False) else None
        if fused and not self.shifts:
            raise ValueError(
                f"{type(student).__name__} is no causal language model, whose losses alone can be fused: fused=False."
            )
        self.student = _Tapped(student, self.objective.student_layers, fused)
        self.teacher = None
        if self.objective.needs_teacher:
            check_model(teacher, "a teacher")
            check_two(student, teacher)
            readable = fused and _has_plain_head(teacher)
            self.teacher = _Tapped(teacher, self.objective.teacher_layers, readable)
            if (by_index(teacher) or by_view(teacher)) and "input_ids" not in self.teacher.names:
                raise ValueError(
                    f"{type(teacher).__name__} goes by the places of the examples, and a batch does not show whose they are: put what it says of each into a "
                    "column of the data, say teacher_logits, and give a module whose forward takes teacher_logits and returns it."
                )

    def __call__(
        self,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        *,
        counts: dict[str, Tensor] | None = None,
        progress: float | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the value of each term by its name, as :class:`~kdlab.objectives.terms.Objective` gives them.

        Args:
            model: the student as it is called, wrapped or not.
            batch: tensors by name.
            counts: what :meth:`counts` says of all batches of a step, where gradients are accumulated or there are several processes:
                the losses of its batches then add up to that of all of them. None: this batch is all.
            progress: the part of the training that is done, 0 to 1, where a schedule needs it.
        """
        return self.compare(self.look(model, batch), counts=counts, progress=progress)

    def look(self, model: nn.Module, batch: Mapping[str, Tensor], *, fused: bool = True) -> dict:
        """What an objective takes: logits, hidden states and labels of a batch, and what of them counts."""
        return self._look(model, batch, fused)[1]

    def _look(self, model: nn.Module, batch: Mapping[str, Tensor], fused: bool) -> tuple[Tensor | None, dict]:
        """The student's logits as it gives them, not shifted; and what an objective takes."""
        batch = _given(batch)
        self.objective.train(model.training)
        student, student_hidden = self.student(model, batch, fused, self.teacher)
        teacher, teacher_hidden = None, None
        if self.teacher is not None:
            with torch.no_grad(), evaluation_mode(self.teacher.model):
                teacher, teacher_hidden = self.teacher(self.teacher.model, batch, fused, self.student)
        logits, masks = student, self._masks(batch)
        labels, shifted = _labels(batch, self.shifts)
        if shifted:
            student, labels = None if student is None else student[:, :-1], labels[:, 1:]
            teacher = None if teacher is None else teacher[:, :-1]
        elif labels is not None and labels.ndim == 1 and student is not None and student.ndim != 2:
            masks.pop("mask", None)  # a label for each example says nothing of logits for each token
        return logits, {
            "student_logits": student,
            "teacher_logits": teacher,
            "student_hidden": student_hidden,
            "teacher_hidden": teacher_hidden,
            "labels": labels,
            "index": batch.get("index"),
            **masks,
        }

    def compare(self, seen: dict, *, counts: dict[str, Tensor] | None = None, progress: float | None = None) -> Any:
        """What the objective says of what was seen; arguments as in calling."""
        by_position = "hidden_mask" in seen
        objective = self.objective if self.objective.training else self._held_out
        if counts is None or by_position:
            return objective(**seen, **(counts or {}), progress=progress)
        # Each example has as many positions as any other, but not each has a label: Σ / n = part · Σ / (part · n).
        part = _examples(seen) / counts["example_count"]
        of_labels = {"count": part * counts["count"]} if "mask" in seen else {}
        found, terms = objective(**seen, **of_labels, progress=progress)
        return part * found, {k: v if k.endswith(".temperature") else part * v for k, v in terms.items()}

    def counts(self, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """What the means of a step divide by: how many labels, tokens that are read, and examples its batches have.

        One where there are none, so that of a step without labels the sum over them, zero, is divided by it. On several processes the mean over them,
        since their gradients are averaged; every process asks.
        """
        batches = [_given(batch) for batch in batches]
        numbers = average(torch.stack([self._numbers(batch) for batch in batches]).sum(0))
        count, examples, *hidden = numbers.where(numbers > 0, 1.0)
        if self.two_parts is None:
            return {"count": count, "hidden_count": hidden[0], "example_count": examples}
        of_parts = dict(zip(_parts(batches[0], self.two_parts), hidden, strict=True))
        return {"count": count, "hidden_count": of_parts, "example_count": examples}

    def _masks(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        masks = _masks(batch, self.shifts)
        return masks if self.two_parts is None else {**masks, "hidden_mask": _parts(batch, self.two_parts)}

    def _numbers(self, batch: Mapping[str, Tensor]) -> Tensor:
        """How many labels and examples a batch has, and tokens that are read, of each part, float32."""
        first = next(x for x in batch.values() if isinstance(x, Tensor) and x.ndim)
        masks, examples = self._masks(batch), torch.tensor(len(first), device=first.device)
        hidden = masks.get("hidden_mask", examples)
        hidden = hidden.values() if isinstance(hidden, dict) else [hidden]
        return torch.stack([x.sum() for x in (masks.get("mask", examples), examples, *hidden)]).float()

    @torch.no_grad()
    def average_gradients(self) -> None:
        """Replace each gradient of what the objective learns by its mean over the processes, as DistributedDataParallel does with the student's."""
        for p in self.objective.parameters():
            if p.grad is not None:
                p.grad.copy_(average(p.grad))

    @torch.no_grad()
    def share(self) -> None:
        """On several processes: all objectives become the first one's."""
        if rank_and_world()[1] > 1:
            for tensor in self.objective.state_dict().values():
                torch.distributed.broadcast(tensor, 0)

    def close(self) -> None:
        """Take the hooks out of both models."""
        for tapped in (self.student, self.teacher):
            if tapped is not None:
                tapped.taps.close()


class _Tapped:
    """A model with taps in it, which is called under whatever is wrapped around it."""

    def __init__(self, model: nn.Module, layers: Sequence[str], fused: bool):
        self.model = model.model if isinstance(model, CausalLM) else model
        self.inner = unwrapped(self.model)
        self.head = _fused(self.model) if fused else None
        self.body = [
            name
            for name, part in self.inner.named_modules()
            if self.head is not None and part is self.inner.get_decoder()
        ][:1]
        self.taps = Taps(self.inner, dict.fromkeys([*layers, *self.body]))
        _, *taken = inspect.signature(type(self.inner).forward).parameters.items()
        forward = dict(taken)
        self.names = {name for name, p in taken if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"labels"}
        self.required = [name for name, p in forward.items() if name in self.names and p.default is p.empty]
        self.takes_any = any(p.kind is p.VAR_KEYWORD for p in forward.values())

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor], fused: bool, other: "_Tapped | None"):
        """Logits, or what stands for them, and hidden states by layer."""
        fused = fused and self.head is not None
        self.taps.model = model
        logits, hidden = self.taps(**self._inputs(batch, other), **({"logits_to_keep": 1} if fused else {}))
        last = [hidden[name] for name in self.body]
        if fused:
            logits = self.head.head_logits(last[0])
        return logits, hidden

    def _inputs(self, batch: Mapping[str, Tensor], other: "_Tapped | None") -> dict:
        """What this model takes of a batch: what its forward names, and, if it takes anything, what nobody names."""
        elsewhere = {"labels", "shift_labels", "index"} | (set() if other is None else other.names)
        inputs = {k: v for k, v in batch.items() if k in self.names or (self.takes_any and k not in elsewhere)}
        if "use_cache" in self.names:
            inputs["use_cache"] = False
        if "decoder_input_ids" in self.names and "decoder_input_ids" not in batch and _are_written(batch):
            inputs["decoder_input_ids"] = _shifted_right(self.inner, batch["labels"])
        if missing := [name for name in self.required if name not in inputs]:
            place = "; index, of a cache, is a row's place in its text" if "index" in missing else ""
            raise ValueError(
                f"{type(self.inner).__name__} reads {', '.join(missing)}, and the batch has {', '.join(batch)}: each is a column of the data{place}."
            )
        return inputs


def _given(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """A batch without what is None, as some collators have labels where there are none.

    Raises:
        TypeError: for what is no batch.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"a batch is tensors by name, what the models take and labels, not {type(batch).__name__}: {{'input_ids': …, 'labels': …}}."
        )
    return {name: value for name, value in batch.items() if value is not None}


def _are_written(batch: Mapping[str, Tensor]) -> bool:
    """Whether labels are a text that a decoder writes: else it reads the encoder's, as T5 and BART do that classify."""
    return "labels" in batch and batch["labels"].ndim == 2 and not batch["labels"].is_floating_point()


def _shifted_right(model: nn.Module, labels: Tensor) -> Tensor:
    """What a decoder reads to predict the labels: as the model says it, or as those that do not say it, such as Whisper, have it."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels=labels)
    before = torch.full_like(labels[:, :1], model.config.decoder_start_token_id)
    return torch.cat([before, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, model.config.pad_token_id)], 1)


def _fused(model: nn.Module) -> CausalLM:
    """A causal language model whose logits are its head's, scaled and capped.

    Raises:
        ValueError: if they are not.
    """
    fused = CausalLM(model)
    fused.fused = True
    return fused


def _has_plain_head(model: nn.Module) -> bool:
    try:
        return _fused(model) is not None
    except (AttributeError, TypeError, ValueError):
        return False


def _knows_examples(term: Term) -> bool:
    return "index" in inspect.signature(term.forward).parameters


def _shifts_labels(model: nn.Module) -> bool:
    """Whether a model's labels are the tokens that it reads, each predicted from those before it: as ``transformers`` knows it.

    That goes by the name of the class, and takes the loss of causal language models where a name says nothing, as GPT2LMHeadModel's.
    """
    if not hasattr(model, "loss_type"):
        return False
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    asks = inspect.unwrap(type(model).forward).__code__.co_names
    by_default = ForCausalLMLoss if "loss_function" in asks else None
    return LOSS_MAPPING.get(model.loss_type, by_default) is ForCausalLMLoss and not model.config.is_encoder_decoder


def _labels(batch: Mapping[str, Tensor], shifts: bool) -> tuple[Tensor | None, bool]:
    """The labels of a batch, and whether they are still to be shifted."""
    if "shift_labels" in batch:
        return batch["shift_labels"], False
    return batch.get("labels"), shifts and "labels" in batch


def _masks(batch: Mapping[str, Tensor], shifts: bool) -> dict[str, Tensor]:
    """Which labels count, and which tokens are read: of those nothing where an example has one label and no token is padding."""
    labels, shifted = _labels(batch, shifts)
    read = batch.get("attention_mask")
    read = read.bool() if isinstance(read, Tensor) and read.ndim == 2 else None
    if labels is None and shifts and read is not None:
        return {"mask": read, "hidden_mask": read}
    masks = {} if read is None else {"hidden_mask": read}
    if labels is None or labels.is_floating_point():
        return masks
    if labels.ndim < 2:
        return {"mask": labels != IGNORED, **masks}
    mask = labels[:, 1:] != IGNORED if shifted else labels != IGNORED
    if shifted and read is not None:  # what is predicted from padding
        mask = mask & read[:, :-1]
    return {"mask": mask, "hidden_mask": torch.ones_like(labels, dtype=torch.bool) if read is None else read}


def _parts(batch: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Which tokens each part of a model reads, and what the one sees of the other; of the decoder, those before its labels."""
    read, written = batch.get("attention_mask"), batch.get("decoder_attention_mask")
    if written is None and _are_written(batch):
        written = batch["labels"] != IGNORED
    elif written is None and "decoder_input_ids" in batch:
        written = torch.ones_like(batch["decoder_input_ids"])
    elif written is None:  # one place later, after its first token
        same = torch.ones_like(batch["input_ids"]) if read is None else read
        written = torch.cat([torch.ones_like(same[:, :1]), same[:, :-1]], 1)
    written = written.bool()
    if read is None and model.main_input_name not in ("input_ids",):  # of sound, say, is not known how long it becomes
        return {"decoder": written}
    read = torch.ones_like(batch["input_ids"]).bool() if read is None else read.bool()
    return {"encoder": read, "decoder": written, "cross": written[:, :, None] & read[:, None, :]}


def _examples(seen: dict) -> int:
    """How many were seen."""
    if seen["student_logits"] is not None:
        return len(seen["student_logits"])
    return len(next(iter(seen["student_hidden"].values())))

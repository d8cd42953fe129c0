"""The step, from a batch to moved weights. To be read from top to bottom.

:class:`Step` is what the students of one process do together: some write their own text, the teacher looks once at what several see
alike, and each learns. :func:`learn` is gradient descent for one of them, and :func:`compare` its forward pass and its losses.
"""

import math
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext

import torch
from torch import Tensor, nn

from ..data.examples import each
from ..objectives import HeadLogits
from ..objectives.checks import IGNORED
from .determinism import deterministic_attention
from .distributed import average_gradients
from .measures import evaluation_mode
from .micro_batches import count_of_all, counted, micro_batches, part_of, read_tokens
from .precision import autocast
from .protocols import by_index, by_view
from .seeds import number, seed_torch
from .student import Student
from .taps import Taps
from .views import aligned


class Step:
    """One look of the teacher, and one step of every student.

    Attributes:
        teacher: None where no objective asks for one.
        steps: how many an epoch has.
        gradient_norms: whether each term's is measured, at the first step of an epoch.
        shared: whether the teacher has layers in common with a student, which are in training mode as the student's.
        boxes: where in the pictures students and teacher look, by seed; of those whose views say so.
    """

    def __init__(self, teacher: Taps | None, steps: int, device, gradient_norms: bool):
        self.teacher, self.steps, self.gradient_norms = teacher, steps, gradient_norms
        self.device, self.shared, self.boxes = torch.device(device), False, {}

    def __call__(
        self,
        students: list[Student],
        batches: dict,
        views: dict,
        looked: dict | None = None,
        watch=lambda who: nullcontext(),
    ) -> dict:
        """Take it; returns what the teacher said of each view.

        Args:
            batches, views: keyed by seed: (inputs, labels, indices), and inputs as the teacher sees them where it has a view of its own.
                To a teacher of kept logits, by seed and view, which examples are seen in which view.
            looked: what the teacher has said already.
            watch: a context for each student's step, and with None for the teacher's look.
        """
        rewritten = {}
        for s in students:
            if s.rewrite is not None:
                try:
                    rewritten[s] = self.rewrite(s, *batches[s.recipe.seed])
                except FloatingPointError as error:
                    s.failure = error
        students = [s for s in students if s.failure is None]
        unseen = [s for s in students if s.view not in (looked or {})]
        looked = {**(looked or {}), **self.look(unseen, batches, views, rewritten, watch)}
        streams = [torch.cuda.Stream() for _ in students] if self.capturing() else None
        for place, s in enumerate(students):
            batch = rewritten[s] if s in rewritten else batches[s.recipe.seed]
            boxes = self.boxes.get(s.recipe.seed, {}) if s.view[1] == "own" else None
            seed_torch(self.device, s.recipe.seed, *s.position)
            with ExitStack() as stack:
                if streams is not None:  # branches of one graph
                    streams[place].wait_stream(torch.cuda.current_stream())
                    stack.enter_context(torch.cuda.stream(streams[place]))
                stack.enter_context(watch(s))
                try:
                    learn(s, *batch, *looked.get(s.view, (None, {})), boxes, self.steps, self.gradient_norms)
                except FloatingPointError as error:
                    s.failure = error
        for stream in streams or ():
            torch.cuda.current_stream().wait_stream(stream)
        return looked

    def rewrite(self, student: Student, inputs, labels, index):
        """The batch as the student's own ``rewrite`` leaves it."""
        seed = number(student.recipe.seed, *student.position, "rewrite")
        generator = torch.Generator(self.device).manual_seed(seed)
        with autocast(self.device, student.recipe.precision):
            try:
                inputs, labels = student.rewrite(student.model, inputs, labels, student.progress(self.steps), generator)
                wrote = 1.0
            except FloatingPointError:
                wrote = math.nan
        student.check_finite({"logits of the student's own text": wrote})  # in any process
        return inputs, labels, index

    @torch.no_grad()
    def look(self, students, batches, views, rewritten, watch) -> dict:
        """The teacher's logits and hidden states for each distinct view of a batch."""
        wanted = dict.fromkeys(s.view for s in students if s.objective.needs_teacher)
        if not wanted:
            return {}
        inputs = []
        for seed, view in wanted:
            if isinstance(view, Student):
                inputs.append(rewritten[view][0])
            elif by_index(self.teacher.model):
                inputs.append(batches[seed][2])
            elif by_view(self.teacher.model):
                inputs.append(views[seed, view])
            else:
                inputs.append(views[seed] if view == "own" else batches[seed][0])
        with ExitStack() as stack:
            stack.enter_context(autocast(self.device, students[0].recipe.precision))
            if self.shared:  # its layers are in training mode, as the student's
                stack.enter_context(evaluation_mode(self.teacher.model))
            apart = students[0].recipe.teacher_mode == "train"  # batch normalisation of a batch, and not of several
            if len(inputs) == 1 or self.device.type == "cpu" or apart:
                looked = {}
                for (seed, view), part in zip(wanted, inputs, strict=True):
                    which = view if isinstance(view, str) else "rewritten"
                    seed_torch(self.device, seed, *students[0].position, f"teacher's {which} view")
                    with watch(None):
                        looked[seed, view] = self.teacher(part)
                return looked
            with watch(None):
                logits, hidden = self.teacher(_joined(inputs))
        size = logits.shape[0] // len(inputs)
        return {
            key: (
                logits[i * size : (i + 1) * size],
                {name: value[i * size : (i + 1) * size] for name, value in hidden.items()},
            )
            for i, key in enumerate(wanted)
        }

    def capturing(self) -> bool:
        return self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def learn(
    s: Student, inputs, labels, index, teacher_logits, teacher_hidden, boxes, steps: int, gradient_norms: bool
) -> None:
    """One step of gradient descent."""
    seen = {
        "inputs": inputs,
        "labels": labels,
        "index": index,
        "teacher_logits": teacher_logits,
        "teacher_hidden": teacher_hidden,
        "boxes": boxes,
    }
    s.optimizer.zero_grad()
    progress, sums = s.progress(steps), {}
    for part, counts in micro_batches(s.recipe.micro_batches, labels, inputs):
        loss, terms = compare(s, progress, counts, **{k: part_of(v, part) for k, v in seen.items()})
        if gradient_norms and s.step == 0:
            large = {name: s.scaled(value) for name, value in terms.items()}
            found = s.objective.gradient_norms(large, s.model.parameters(), progress)
            scale = 1.0 if s.scaler is None else s.scaler.get_scale()
            s.norms |= {f"{name}.gradient_norm": _finite(norm.item() / scale) for name, norm in found.items()}
        with deterministic_attention(labels):
            s.scaled(loss).backward()
        for name, value in {"loss": loss, **terms}.items():
            sums.setdefault(name, []).append(value.detach())
    average_gradients(s.optimizer)
    if s.scaler is not None:
        s.scaler.unscale_(s.optimizer)
    if s.step == 0:
        lengths = [p.grad.norm() for p in s.model.parameters() if p.grad is not None]
        s.norms |= {"gradient_norm": _finite(torch.stack(lengths).norm().item())} if lengths else {}
    if s.recipe.max_gradient_norm:
        nn.utils.clip_grad_norm_(s.parameters(), s.recipe.max_gradient_norm)
    if s.scaler is None:
        s.optimizer.step()
    else:  # unless a gradient is not finite
        s.scaler.step(s.optimizer)
        s.scaler.update()
    s.note(sums)


def _finite(x: float) -> float | None:
    """A number, as a record may hold it: none where float16 had no room for it, and the step is left out."""
    return x if math.isfinite(x) else None


def compare(
    s: Student, progress: float, counts: dict, *, inputs, labels, index, teacher_logits, teacher_hidden, boxes=None
):
    """What the objective says of some examples: the loss, and each term by name."""
    inputs = each(lambda x: x.contiguous(memory_format=s.layout) if x.ndim == 4 else x, inputs)
    with autocast(s.device, s.recipe.precision):
        student_logits, student_hidden = s.taps(inputs)
    if boxes is not None:  # views of their own
        pairs = [
            pair for term in s.objective.terms for pair in zip(term.teacher_layers, term.student_layers, strict=True)
        ]
        teacher_hidden = aligned(teacher_hidden, student_hidden, pairs, boxes)
    if labels.device.type == "cpu":  # a glance; elsewhere the epoch's mean is looked at
        if isinstance(student_logits, Tensor):  # where −∞ says that a class does not exist
            largest = [student_logits.detach().amax()]
        else:  # of a model without a head, or of products that are left to the objective
            headless = student_logits is None
            seen = student_hidden.values() if headless else (student_logits.hidden, student_logits.weight)
            largest = [x.detach().abs().amax() for x in seen]
        for x in largest:  # NaN, where any is
            s.check_finite({"student logits": x.item()})
    masks, counts = _masks(inputs, labels, student_logits), counts or count_of_all(labels, student_logits)
    # Products with a head that are left to the objective are made as the model's own. On a CPU they stay in float32, as in all records.
    lower = isinstance(student_logits, HeadLogits) and labels.device.type != "cpu"
    if s.recipe.mixup:  # of a mixture nobody knows
        labels = index = None
    try:
        with autocast(s.device, s.recipe.precision) if lower else nullcontext():
            return s.objective(
                student_logits=student_logits,
                teacher_logits=teacher_logits,
                student_hidden=student_hidden,
                teacher_hidden=teacher_hidden,
                labels=labels,
                index=index,
                progress=progress,
                **masks,
                **counts,
            )
    except ValueError as error:
        if labels is None or labels.device.type != "cpu" or counts.get("count", counted(labels).sum()) > 0:
            raise
        raise ValueError(
            f"all labels of a batch are {IGNORED}, which leaves nothing in it to learn: leave examples that have no other label out of the training "
            "split, or give zeros where no term looks at labels."
        ) from error


def _masks(inputs, labels: Tensor, student_logits) -> dict[str, Tensor]:
    """Of texts: every token of a block is read, and those with a label are learned from; where a text has one label, which tokens are read."""
    counts = counted(labels)
    if counts.ndim == 1:
        read = read_tokens(inputs, counts)
        return {} if read is None else {"hidden_mask": read}
    if student_logits is None:
        return {}
    shape = student_logits.shape
    if counts.shape not in (shape[:-1], (shape[0], *shape[2:])):
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(shape)}: class indices have no axis of "
            "classes, and probabilities, one-hot too, are floating point."
        )
    read = read_tokens(inputs, counts)
    return {"mask": counts, "hidden_mask": torch.ones_like(counts) if read is None else read}


def _joined(inputs: list):
    """Inputs, or dictionaries of them, one after another."""
    if isinstance(inputs[0], Mapping):
        return {name: torch.cat([part[name] for part in inputs]) for name in inputs[0]}
    return torch.cat(inputs)

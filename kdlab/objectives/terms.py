r"""Terms around the pure functions, and the weighted sum that composes them as the mathematics is written.

>>> 0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4)
0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4)

A weight or a temperature may be a schedule (:mod:`~kdlab.objectives.schedules`).
"""

import copy
import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.shapes import Float

from . import divergences, response, vocabulary
from .aligned import AlignedLogits
from .checks import (
    IGNORED,
    _inspectable,
    check_distribution,
    check_fraction,
    check_indices,
    check_outputs,
    check_same_shape,
    check_temperature,
    check_weight,
    counted_labels,
)
from .schedules import Schedule, Varying, Weight, at
from .softening import classes_last, prepared, said_axis, without_autocast
from .sparse import SparseTargets, check_targets, sparse_forward_kl
from .types import Count, Labels, Logits, Loss, Mask, Probabilities, Scalar
from .vocabulary import HeadLogits, LossAndSlope, TokenLogits, by_autograd

#: What a training step has to offer. ``mask`` is True where a position of the logits counts, ``hidden_mask`` where one of
#: the hidden states does; ``count``, ``hidden_count`` and ``example_count`` are what means over them and over examples divide
#: by; ``index`` is that of the examples in the training set; ``progress`` is the part of the training that is done, 0 to 1.
SEEN = frozenset(
    [
        "student_logits",
        "teacher_logits",
        "labels",
        "mask",
        "count",
        "student_hidden",
        "teacher_hidden",
        "hidden_mask",
        "hidden_count",
        "example_count",
        "index",
        "progress",
    ]
)


class Objective(nn.Module):
    """A weighted sum of terms.

    Calling it with what the training step has seen, each by name, returns the total and the value of each term by its
    name, before weighting (and of a temperature that changes, as ``name.temperature``). There are ``student_logits``, ``teacher_logits``, ``labels``; ``mask`` (True where a position
    counts; without one, all but labels of −100) and ``count`` (what means divide by, if not by the positions of this batch); ``student_hidden``,
    ``teacher_hidden`` (dicts from layer to tensor, as :class:`~kdlab.training.taps.Taps` gives them), ``hidden_mask``,
    ``hidden_count``, ``example_count``; ``index`` of the examples; ``progress`` of the training. A term takes what it needs and leaves the
    rest; an argument that no term knows is refused. Terms are modules, so what they learn is in ``parameters()`` and
    ``state_dict()``.

    >>> objective = 0.5 * CrossEntropy() + 0.5 * SoftTargets(temperature=2)
    >>> total, terms = objective(student_logits=torch.zeros(1, 2), teacher_logits=torch.zeros(1, 2),
    ...                          labels=torch.tensor([0]))
    >>> {name: round(value.item(), 4) for name, value in terms.items()}
    {'CrossEntropy': 0.6931, 'SoftTargets': 0.0}
    """

    def __init__(self, weighted_terms: Sequence[tuple[Weight, "Term"]]) -> None:
        super().__init__()
        for weight, _ in weighted_terms:
            if not isinstance(weight, Schedule) and not (isinstance(weight, Real) and math.isfinite(weight)):
                raise ValueError(f"the weight of a term must be a finite number or a schedule, not {weight!r}.")
        self.weights = tuple(weight for weight, _ in weighted_terms)
        self.terms: Sequence[Term] = nn.ModuleList(term for _, term in weighted_terms)  # pyrefly: ignore[bad-assignment] of terms alone
        kinds = [term.name or type(term).__name__ for term in self.terms]
        self.names = tuple(
            kind if kinds.count(kind) == 1 else f"{kind}_{kinds[: i + 1].count(kind)}" for i, kind in enumerate(kinds)
        )
        if twice := [term.name for term in self.terms if term.name and self.names.count(term.name) != 1]:
            raise ValueError(f"two terms are called {twice[0]!r}: give each a name of its own.")
        taken, self._needed = zip(*(_takes(type(term)) for term in self.terms), strict=True) if self.terms else ((), ())
        self._accepted = SEEN.union(*taken)

    @property
    def needs_teacher(self) -> bool:
        return any(term.needs_teacher for term in self.terms)

    @property
    def student_layers(self) -> tuple[str, ...]:
        """The layers of the student that the terms look at."""
        return _layers((term.student_layers, term.logit_layers[0]) for term in self.terms)

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        """The layers of the teacher that the terms look at."""
        return _layers((term.teacher_layers, term.logit_layers[1]) for term in self.terms)

    def forward(self, *unnamed: object, **seen: Any) -> tuple[Scalar, dict[str, Scalar]]:
        if unnamed:
            raise TypeError("give each thing by its name: student_logits=…, teacher_logits=…, labels=….")
        if unknown := seen.keys() - self._accepted:
            raise TypeError(f"no term of {self!r} takes {', '.join(sorted(unknown))}.")
        if (
            seen.get("mask") is None
            and (learned := _learned(seen.get("labels"), seen.get("student_logits"))) is not None
        ):
            seen["mask"] = learned
        progress = seen.get("progress")
        weights = {name: at(weight, progress) for name, weight in zip(self.names, self.weights, strict=True)}
        in_chunks = isinstance(seen.get("student_logits"), HeadLogits)
        if not in_chunks and isinstance(seen.get("teacher_logits"), HeadLogits):
            seen["teacher_logits"] = seen["teacher_logits"].dense()  # the student's are all there, too
        sparse = isinstance(seen.get("teacher_logits"), SparseTargets)
        aligned = isinstance(seen.get("teacher_logits"), AlignedLogits)
        values, by_token = {}, {}
        for name, term, needed in zip(self.names, self.terms, self._needed, strict=True):
            given = _at_heads(term, seen)
            if missing := [f"{key}=…" for key in needed if given.get(key) is None]:
                raise TypeError(f"{name} needs {', '.join(missing)}.")
            if sparse and term.needs_teacher and not isinstance(getattr(term, "inner", term), SparseForwardKL):
                raise TypeError(
                    f"{name} needs all of the teacher, of which SparseTargets keep a few entries: use SparseForwardKL."
                )
            if aligned and term.needs_teacher and not term.student_layers and not term.takes_aligned:
                raise TypeError(
                    f"{name} compares one vocabulary, and the teacher has a tokeniser of its own: MergedVocabulary({name}(), …) and "
                    "SharedVocabulary make classes of two that can be compared."
                )
            by_chunk = in_chunks and given is seen and not term.student_layers
            if by_chunk and not hasattr(term, "inner"):  # which another term asks
                if aligned and term.needs_teacher:
                    raise TypeError(
                        f"{name} looks at all logits at once where the teacher has a tokeniser of its own: let the student return them, "
                        "with fused = False."
                    )
                if any(True for _ in term.parameters()):
                    raise TypeError(
                        f"{name} learns a temperature or more and needs all logits at once: let the student return them, with "
                        "fused = False, or give student_logits.dense()."
                    )
                if getattr(term, "class_axis", None) not in (None, -1):
                    raise TypeError(
                        f"{name}: HeadLogits have their classes in the last axis, not in {term.class_axis}."
                    )
                if "labels" in needed and _soft(seen["labels"]):
                    raise TypeError(
                        f"{name}: labels must be integer class indices where the student returns HeadLogits. For soft labels let it "
                        "return all logits, with fused = False, or give student_logits.dense()."
                    )
                by_token[name] = term
                continue
            values[name] = term(**given)
            if not isinstance(values[name], Tensor) or values[name].ndim:
                raise ValueError(f"a term gives one number, a tensor without axes, and {name} does not.")
        total: Any = sum(weights[name] * value for name, value in values.items())
        if by_token:
            together, means = self._in_chunks(by_token, weights, **seen)
            total = total + together
            values = {name: {**values, **means}[name] for name in self.names}
        for name, term in zip(self.names, self.terms, strict=True):
            temperature: Any = getattr(getattr(term, "inner", term), "temperature", 0)
            if not isinstance(temperature, Real):
                values[f"{name}.temperature"] = torch.as_tensor(at(temperature, progress)).detach()
        return total, values

    def _in_chunks(
        self,
        terms,
        weights,
        *,
        student_logits,
        teacher_logits=None,
        labels=None,
        mask=None,
        count=None,
        progress=None,
        **_,
    ):
        """What terms that look at logits give together, taken from the student's hidden states."""
        needed = {key for name, needs in zip(self.names, self._needed, strict=True) if name in terms for key in needs}
        return vocabulary.token_means(
            {name: term.on_tokens for name, term in terms.items()},
            {name: weights[name] for name in terms},
            student_logits,
            teacher_logits if "teacher_logits" in needed else None,
            # Also where no term looks at them: a label of −100 says that a token does not count.
            None if _soft(labels) else labels,
            mask=mask,
            count=count,
            progress=progress,
        )

    def gradient_norms(
        self, values: dict[str, Scalar], wrt: Iterable[Tensor], progress: float | None = None
    ) -> dict[str, Scalar]:
        """The norm of each weighted term's gradient: which of them moves the student.

        Args:
            values: what calling the objective returned; before ``backward``, which frees what is needed here.
            wrt: tensors to differentiate by, such as ``student.parameters()`` or ``[student_logits]``; those that are frozen
                are left out.
            progress: needed if a weight is a schedule.

        Raises:
            ValueError: if all of ``wrt`` are frozen.
            RuntimeError: after ``backward``.

        >>> z = torch.tensor([[0.0, 0.0]], requires_grad=True)
        >>> objective = 0.5 * CrossEntropy()
        >>> _, values = objective(student_logits=z, labels=torch.tensor([0]))
        >>> objective.gradient_norms(values, [z])
        {'CrossEntropy': tensor(0.3536)}
        """
        norms, wrt = {}, [x for x in wrt if x.requires_grad]
        if not wrt:
            raise ValueError("gradient norms are by tensors that are trained, and none of these requires a gradient.")
        for name, weight in zip(self.names, self.weights, strict=True):
            term = at(weight, progress) * values[name]
            try:
                found = (
                    torch.autograd.grad(term, wrt, retain_graph=True, allow_unused=True) if term.requires_grad else []
                )
            except RuntimeError as error:
                if "second time" not in str(error):
                    raise
                raise RuntimeError("gradient norms come before loss.backward(), which frees what they need.") from None
            squares = [g.square().sum() for g in found if g is not None]
            norms[name] = torch.stack(squares).sum().sqrt() if squares else torch.zeros_like(values[name])
        return norms

    def reset_parameters(self) -> None:
        """Draw anew whatever the terms have learned."""
        _reset(self.terms)

    def fresh(self) -> "Objective":
        """A copy of its own, whatever terms learn drawn anew.

        An objective of a plan (:mod:`kdlab.study.plans`) may be on the meta device, where its memories take no space; its
        fresh copy is on the CPU.

        >>> objective = 1.0 * CrossEntropy()
        >>> objective.fresh(), objective.fresh() is objective
        (1 * CrossEntropy(), False)
        """
        copied = copy.deepcopy(self)
        if any(tensor.is_meta for tensor in copied.state_dict().values()):
            copied.to_empty(device="cpu")
        copied.reset_parameters()
        return copied

    def __add__(self, other: "Term | Objective") -> "Objective":
        if not isinstance(other, (Term, Objective)):
            return NotImplemented
        return Objective([*_weighted(self), *_weighted(other)])

    def __mul__(self, factor: Weight) -> "Objective":
        if not isinstance(factor, (Real, Schedule)):
            return NotImplemented
        if isinstance(factor, Schedule) and any(isinstance(weight, Schedule) for weight in self.weights):
            raise TypeError("a weight that is a schedule already cannot be multiplied by another schedule.")
        return Objective([(factor * weight, term) for weight, term in _weighted(self)])  # pyrefly: ignore[unsupported-operation]

    __rmul__ = __mul__

    def __radd__(self, zero: int) -> "Objective":  # so that sum() works
        return self if zero == 0 else NotImplemented

    def __repr__(self) -> str:
        return " + ".join(f"{_shown(weight)} * {term!r}" for weight, term in _weighted(self))


def _layers(of_terms) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer for layers, head in of_terms for layer in (*layers, head) if layer is not None))


def _at_heads(term, seen):
    """What was seen, with the logits of the heads that a term looks at in the place of the models' own."""
    taken = {}
    for who, head in zip(("student", "teacher"), term.logit_layers, strict=True):
        if head is not None:
            hidden = seen.get(f"{who}_hidden") or {}
            if head not in hidden:
                raise ValueError(
                    f"{term!r} needs {head!r} of the {who}: capture objective.{who}_layers with kdlab.training.Taps and pass {who}_hidden."
                )
            taken[f"{who}_logits"] = hidden[head]
    if not taken:
        return seen
    given = {**seen, **taken}
    return {k: x.dense() if isinstance(x, HeadLogits) else x for k, x in given.items()}


def _soft(labels):
    """Whether labels are probabilities."""
    return isinstance(labels, Tensor) and labels.is_floating_point()


def _learned(labels, logits):
    """Which positions have a label that is not −100; None where all have, or labels are not one a position."""
    if not (isinstance(labels, Tensor) and isinstance(logits, Tensor)) or labels.is_floating_point() or not labels.ndim:
        return None
    if labels.shape not in (logits.shape[:-1], (logits.shape[0], *logits.shape[2:])):
        return None
    learned = labels != IGNORED
    return None if _inspectable(learned) and learned.all() else learned


@cache
def _takes(kind: type["Term"]) -> tuple[frozenset[str], tuple[str, ...]]:
    """The names of what terms of this class take, and of what they cannot do without."""
    _, *parameters = inspect.signature(kind.forward).parameters.values()
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    return frozenset(p.name for p in named), tuple(p.name for p in named if p.default is p.empty)


def _weighted(part: "Term | Objective") -> "list[tuple[Weight, Term]]":
    return list(zip(part.weights, part.terms, strict=True)) if isinstance(part, Objective) else [(1.0, part)]


def _reset(module):
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()
    else:
        for part in module.children():
            _reset(part)


def _shown(value):
    """Numbers short and exact; everything else as it is described."""
    return f"{value:.12g}" if isinstance(value, Real) and not isinstance(value, bool) else described(value)


def described(value: object) -> str:
    """Its ``repr``; of a plain function, whose own is another in every process, the name and a checksum of the code.

    What a function closes over is not looked at. Of ``functools.partial``, its function and what it is given are described.
    """
    if isinstance(value, partial):
        named = (f"{name}={described(x)}" for name, x in value.keywords.items())
        return f"partial({', '.join([*map(described, (value.func, *value.args)), *named])})"
    if not inspect.isfunction(value):
        return repr(value)
    try:
        code = inspect.getsource(value)
    except OSError:
        code = value.__code__.co_code.hex()
    return f"{value.__qualname__} {hashlib.sha256(code.encode()).hexdigest()}"


class Term(nn.Module):
    """One thing to match.

    A subclass writes ``forward`` with the keyword arguments that it needs, and ``**_`` for the rest; sets
    ``needs_teacher = False`` if it looks at no teacher, and ``student_layers`` and ``teacher_layers`` if it looks into the
    models; and, if it has parameters of its own, writes ``extra_repr`` with them: the ``repr`` is how records and
    checkpoints tell objectives apart.
    """

    needs_teacher = True
    name: str | None = None
    #: Whose logits it looks at, of student and teacher, where these are not the model's own.
    logit_layers: tuple[str | None, str | None] = (None, None)
    student_layers: tuple[str, ...] = ()
    teacher_layers: tuple[str, ...] = ()
    #: Of which data, ``"images"`` or ``"texts"``, it needs each batch as a whole: what it says of parts does not add up.
    needs_whole_batch_of: tuple[str, ...] = ()
    #: Whether it takes the logits of a teacher with a tokeniser of its own, :class:`~kdlab.objectives.aligned.AlignedLogits`.
    takes_aligned = False

    def __new__(cls, *_: Any, **options: Any) -> "Term":
        taken = list(inspect.signature(cls.__init__).parameters.values())[1:]
        unknown = options.keys() - {p.name for p in taken}
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in taken):
            named = [p.name for p in taken if p.kind is not p.VAR_POSITIONAL and p.name != "options"]
            raise TypeError(
                f"{cls.__name__} takes {', '.join(named) or 'no option'}, not {', '.join(sorted(unknown))}; a weight is a factor, "
                f"0.5 * {cls.__name__}(…)."
            )
        return super().__new__(cls)

    def __init__(self) -> None:
        super().__init__()

    def check_rewrite(self, rewrite: object) -> None:
        """That it can learn from what ``rewrite`` makes of each batch; raises ValueError if not. Most terms learn from anything."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__init__ is not Term.__init__ and cls.extra_repr is nn.Module.extra_repr:
            raise TypeError(f"{cls.__name__} has an __init__, so it must write extra_repr: runs are told apart by it.")
        own = vars(cls).keys()
        if own & {"forward", "function"} and not own & {"on_tokens", "closed_form"}:
            cls.on_tokens = Term.on_tokens  # another loss has another gradient
        if "forward" in own:
            cls.forward = without_autocast(cls.forward)

    def on_tokens(self, tokens: TokenLogits) -> LossAndSlope:
        """What each of some tokens loses, shape ``(n,)`` or their sum, and the gradient of the sum by their logits, ``(n, V)``, which
        may be overwritten once all terms are known.

        For :class:`~kdlab.objectives.vocabulary.HeadLogits`. A term that is a sum over tokens divided by ``count`` may say
        ``on_tokens = by_autograd``; its own formula is faster.

        Raises:
            TypeError: if the term has none.
        """
        raise TypeError(
            f"{type(self).__name__} looks at all logits at once: let the student return them, with fused = False, or give it student_logits.dense()."
        )

    def named(self, name: str) -> "Term":
        """The term, whose value goes by this name wherever it is logged; else by that of its class, numbered where there are several.

        Raises:
            ValueError: for what is no name; for two of one name, as they are added.

        >>> objective = SoftTargets(temperature=1).named("sharp") + SoftTargets(temperature=8)
        >>> objective, objective.names
        (1 * SoftTargets(temperature=1).named('sharp') + 1 * SoftTargets(temperature=8), ('sharp', 'SoftTargets'))
        """
        if not isinstance(name, str) or not name or "." in name or name == "loss":
            raise ValueError(f'a name is a text without ".", and not "loss"; {name!r} is none.')
        self.name = name
        return self

    def at_head(self, layer: str | None, teacher_layer: str | None = None) -> "Term":
        """The term, which takes logits from another head than the model's own: from the output of a module, by its path.

        DeiT has a head for labels and one for its teacher, and its output is their mean: ``CrossEntropy().at_head("cls_classifier") +
        HardTargets().at_head("distillation_classifier")``.

        Args:
            layer: of the student; None: its own logits.
            teacher_layer: of the teacher; None: its own.

        >>> objective = CrossEntropy() + SoftTargets().at_head("exits.0")
        >>> objective, objective.student_layers
        (1 * CrossEntropy() + 1 * SoftTargets(temperature=4).at_head('exits.0'), ('exits.0',))
        """
        self.logit_layers = (layer, teacher_layer)
        return self

    def __add__(self, other: "Term | Objective") -> "Objective":
        return Objective(_weighted(self)) + other

    def __radd__(self, zero: int) -> "Objective":
        return Objective(_weighted(self)) if zero == 0 else NotImplemented

    def __mul__(self, weight: Weight) -> "Objective":
        return Objective(_weighted(self)) * weight

    __rmul__ = __mul__

    def __repr__(self) -> str:
        head, teacher = self.logit_layers
        at = (
            ""
            if self.logit_layers == (None, None)
            else f".at_head({head!r}{'' if teacher is None else f', {teacher!r}'})"
        )
        name = "" if self.name is None else f".named({self.name!r})"
        return f"{type(self).__name__}({self.extra_repr()}){at}{name}"


def _options(**given):
    """Keyword arguments as they are written, without those that are None."""
    return ", ".join(f"{name}={_shown(value)}" for name, value in given.items() if value is not None)


class _OfLabels(Term):
    """A term that holds the student against labels alone."""

    needs_teacher = False

    def __init__(self, class_axis: int | None = None) -> None:
        super().__init__()
        self.class_axis = class_axis

    def extra_repr(self) -> str:
        return _options(class_axis=self.class_axis)


class CrossEntropy(_OfLabels):
    """Labels at temperature one, class indices or probabilities: :func:`~kdlab.objectives.response.cross_entropy`."""

    def forward(
        self,
        *,
        student_logits: Logits,
        labels: Labels | Probabilities,
        mask: Mask | None = None,
        count: Count | None = None,
        **_: Any,
    ) -> Scalar:
        return response.cross_entropy(student_logits, labels, mask=mask, count=count, class_axis=self.class_axis)

    def on_tokens(self, tokens: TokenLogits) -> LossAndSlope:
        return vocabulary.cross_entropy(tokens.at(1.0), tokens.labels)  # pyrefly: ignore[bad-argument-type]


class SmoothedLabels(Term):
    """Label smoothing, the teacher that knows nothing: :func:`~kdlab.objectives.response.smooth_labels`, over the classes that exist."""

    needs_teacher = False

    def __init__(self, smoothing: float = 0.1, class_axis: int | None = None) -> None:
        super().__init__()
        check_fraction("smoothing", smoothing)
        self.smoothing, self.class_axis = smoothing, class_axis

    def extra_repr(self) -> str:
        return _options(smoothing=self.smoothing, class_axis=self.class_axis)

    def forward(
        self,
        *,
        student_logits: Logits,
        labels: Labels | Probabilities,
        mask: Mask | None = None,
        count: Count | None = None,
        **_: Any,
    ) -> Scalar:
        soft = _soft(labels)
        student, labels = classes_last(self.class_axis, student_logits, labels, fits=mask if soft else labels)
        if soft:
            check_distribution(labels, student, mask)
            even = torch.full_like(labels, 1 / student.shape[-1])
            labels = labels if mask is None else torch.where(mask.unsqueeze(-1), labels, even)
        else:
            labels = counted_labels(labels, student, mask)
        exists, classes = ~student.isneginf(), student.shape[-1]
        if student.dtype != torch.float64 and _inspectable(student) and exists.all():
            target = response.smooth_labels(labels, classes, smoothing=self.smoothing)
        else:
            even = exists.to(torch.promote_types(student.dtype, torch.float32)) / exists.sum(-1, keepdim=True).clamp(
                min=1
            )
            hard = response.smooth_labels(labels, classes, smoothing=0.0).to(even.dtype)
            target = (1 - self.smoothing) * hard + self.smoothing * even
        return response.cross_entropy(student, target, mask=mask, count=count, class_axis=-1)

    def on_tokens(self, tokens: TokenLogits) -> LossAndSlope:
        return vocabulary.cross_entropy(tokens.at(1.0), tokens.labels, self.smoothing)  # pyrefly: ignore[bad-argument-type]


class _Softened(Term):
    """A term that is a function of both logits, its options, and a temperature; ``closed_form`` is the same on tokens."""

    function: Callable[..., Tensor]
    closed_form: Callable[..., LossAndSlope]

    def __init__(
        self, temperature: Varying = 1.0, class_axis: int | None = None, *, options: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        for percent in range(101):
            check_temperature(at(temperature, percent / 100))
        self.temperature, self.class_axis, self.options = temperature, class_axis, options or {}

    def extra_repr(self) -> str:
        return _options(**self.options, temperature=self.temperature, class_axis=self.class_axis)

    def _how(self, mask, count, progress, class_axis):
        temperature = at(self.temperature, progress)
        return {"temperature": temperature, "mask": mask, "count": count, "class_axis": class_axis}

    def forward(
        self,
        *,
        student_logits: Logits,
        teacher_logits: Logits,
        labels: Tensor | None = None,
        mask: Mask | None = None,
        count: Count | None = None,
        progress: float | None = None,
        **_: Any,
    ) -> Scalar:
        how = self._how(mask, count, progress, said_axis(self.class_axis, student_logits, labels))
        return type(self).function(student_logits, teacher_logits.detach(), **self.options, **how)

    def on_tokens(self, tokens: TokenLogits) -> LossAndSlope:
        temperature = at(self.temperature, tokens.progress)
        return type(self).closed_form(tokens.at(temperature), **self.options)


class ForwardKL(_Softened):
    r""":math:`D_{\mathrm{KL}}(p\,\|\,q)` without :math:`T^2`: :func:`~kdlab.objectives.divergences.forward_kl`."""

    function = divergences.forward_kl
    closed_form = vocabulary.forward_kl


class ReverseKL(_Softened):
    r""":math:`D_{\mathrm{KL}}(q\,\|\,p)` without :math:`T^2`: :func:`~kdlab.objectives.divergences.reverse_kl`."""

    function = divergences.reverse_kl
    closed_form = vocabulary.reverse_kl


class SkewedForwardKL(_Softened):
    r""":math:`D_{\mathrm{KL}}(p\,\|\,\lambda p + (1-\lambda) q)`: :func:`~kdlab.objectives.divergences.skewed_forward_kl`."""

    function = divergences.skewed_forward_kl
    closed_form = vocabulary.skewed_forward_kl

    def __init__(self, skew: float = 0.1, temperature: Varying = 1.0, class_axis: int | None = None) -> None:
        check_fraction("skew", skew)
        super().__init__(temperature, class_axis, options={"skew": skew})


class SkewedReverseKL(_Softened):
    r""":math:`D_{\mathrm{KL}}(q\,\|\,(1-\lambda) p + \lambda q)`: :func:`~kdlab.objectives.divergences.skewed_reverse_kl`."""

    function = divergences.skewed_reverse_kl
    closed_form = vocabulary.skewed_reverse_kl

    def __init__(self, skew: float = 0.1, temperature: Varying = 1.0, class_axis: int | None = None) -> None:
        check_fraction("skew", skew)
        super().__init__(temperature, class_axis, options={"skew": skew})


class GeneralisedJSD(_Softened):
    r""":math:`\beta D_{\mathrm{KL}}(p\|m) + (1-\beta) D_{\mathrm{KL}}(q\|m)`: :func:`~kdlab.objectives.divergences.generalised_jsd`."""

    function = divergences.generalised_jsd
    closed_form = vocabulary.generalised_jsd

    def __init__(
        self, beta: float = 0.5, scaled: bool = False, temperature: Varying = 1.0, class_axis: int | None = None
    ) -> None:
        check_fraction("beta", beta)
        super().__init__(temperature, class_axis, options={"beta": beta, "scaled": scaled})


class TotalVariation(_Softened):
    r""":math:`\tfrac12\sum|p - q|`: :func:`~kdlab.objectives.divergences.total_variation`."""

    function = divergences.total_variation
    closed_form = vocabulary.total_variation


class NegativeLogAcceptance(_Softened):
    r""":math:`-\log\sum\min(p, q)`: :func:`~kdlab.objectives.divergences.negative_log_acceptance`."""

    function = divergences.negative_log_acceptance
    closed_form = vocabulary.negative_log_acceptance


class SoftTargets(_Softened):
    r""":math:`T^2 D_{\mathrm{KL}}(p\,\|\,q)`: :func:`~kdlab.objectives.response.soft_targets`.

    With ``standardised``, both logits are brought to mean zero and deviation one first
    (:func:`~kdlab.objectives.response.standardise`).
    """

    def __init__(self, temperature: Varying = 4.0, standardised: bool = False, class_axis: int | None = None) -> None:
        super().__init__(temperature, class_axis, options={"standardised": True} if standardised else {})

    @staticmethod
    def function(student_logits: Logits, teacher_logits: Logits, *, standardised: bool = False, **how: Any) -> Loss:
        if not standardised:
            return response.soft_targets(student_logits, teacher_logits, **how)
        as_said = {name: how.pop(name, None) for name in ("mask", "class_axis")}
        student, teacher, temperature = prepared(student_logits, teacher_logits, how.pop("temperature"), **as_said)
        shapes = (response.standardised(logits) for logits in (student, teacher))
        return response.soft_targets(*shapes, temperature=temperature, mask=as_said["mask"], class_axis=-1, **how)

    closed_form = vocabulary.soft_targets

    def on_tokens(self, tokens: TokenLogits) -> LossAndSlope:
        return by_autograd(self, tokens) if self.options else super().on_tokens(tokens)


class SparseForwardKL(Term):
    """Forward KL from what a cache keeps of the teacher: :func:`~kdlab.objectives.sparse.sparse_forward_kl`."""

    def forward(
        self,
        *,
        student_logits: Logits,
        teacher_logits: SparseTargets,
        mask: Mask | None = None,
        count: Count | None = None,
        **_: Any,
    ) -> Scalar:
        return sparse_forward_kl(student_logits, teacher_logits.detach(), mask=mask, count=count)

    def on_tokens(self, tokens: TokenLogits) -> LossAndSlope:
        check_targets(tokens.student, tokens.teacher)
        return vocabulary.sparse_forward_kl(tokens.at(1.0), tokens.teacher)  # pyrefly: ignore[bad-argument-type]


class HardTargets(Term):
    """The teacher's likeliest class in the place of the label, at temperature one: hard-label distillation.

    Source: DeiT, Touvron et al. (2021), eq. 3.
    """

    def __init__(self, class_axis: int | None = None):
        super().__init__()
        self.class_axis = class_axis

    def extra_repr(self) -> str:
        return _options(class_axis=self.class_axis)

    def forward(
        self,
        *,
        student_logits: Logits,
        teacher_logits: Logits,
        labels: Tensor | None = None,
        mask: Mask | None = None,
        count: Count | None = None,
        **_: Any,
    ) -> Scalar:
        class_axis = said_axis(self.class_axis, student_logits, labels)
        student, teacher = classes_last(class_axis, student_logits, teacher_logits, fits=mask)
        check_same_shape(student, teacher, mask)
        return response.cross_entropy(student, teacher.argmax(-1), mask=mask, count=count, class_axis=-1)

    def on_tokens(self, tokens: TokenLogits) -> LossAndSlope:
        return vocabulary.cross_entropy(tokens.at(1.0), tokens.teacher.argmax(-1))  # pyrefly: ignore[missing-attribute]


class LogitMSE(Term):
    r""":math:`\frac1N\sum (z_i - t_i)^2`: :func:`~kdlab.objectives.response.logit_mse`."""

    on_tokens = by_autograd

    def __init__(self, centred: bool = False, class_axis: int | None = None) -> None:
        super().__init__()
        self.centred, self.class_axis = centred, class_axis

    def extra_repr(self) -> str:
        return _options(centred=self.centred, class_axis=self.class_axis)

    def forward(
        self,
        *,
        student_logits: Logits,
        teacher_logits: Logits,
        labels: Tensor | None = None,
        mask: Mask | None = None,
        count: Count | None = None,
        **_: Any,
    ) -> Scalar:
        check_outputs(student_logits)
        how = {"mask": mask, "count": count, "class_axis": said_axis(self.class_axis, student_logits, labels)}
        return response.logit_mse(student_logits, teacher_logits.detach(), centred=self.centred, **how)


class SquaredError(_OfLabels):
    r""":math:`\frac1N\sum (z_i - y_i)^2` of outputs and labels that are numbers: :func:`~kdlab.objectives.response.squared_error`.

    Beside it, :class:`LogitMSE` matches the outputs of a teacher, of one output too.
    """

    def forward(
        self,
        *,
        student_logits: Logits,
        labels: Float[Tensor, "*batch N"] | Float[Tensor, "*positions"],
        mask: Mask | None = None,
        count: Count | None = None,
        **_: Any,
    ) -> Scalar:
        return response.squared_error(student_logits, labels, class_axis=self.class_axis, mask=mask, count=count)


class DecoupledKD(_Softened):
    """DKD: :func:`~kdlab.objectives.response.decoupled_kd`."""

    on_tokens = by_autograd

    def __init__(
        self,
        target_weight: float = 1.0,
        other_weight: float = 8.0,
        temperature: Varying = 4.0,
        class_axis: int | None = None,
    ) -> None:
        check_weight("target_weight", target_weight)
        check_weight("other_weight", other_weight)
        options = {"target_weight": target_weight, "other_weight": other_weight}
        super().__init__(temperature, class_axis, options=options)

    def forward(  # pyrefly: ignore[bad-override] it needs labels
        self,
        *,
        student_logits: Logits,
        teacher_logits: Logits,
        labels: Labels | Probabilities,
        mask: Mask | None = None,
        count: Count | None = None,
        progress: float | None = None,
        **_: Any,
    ) -> Scalar:
        check_indices(labels, "DecoupledKD")
        how = self._how(mask, count, progress, self.class_axis)
        return response.decoupled_kd(student_logits, teacher_logits.detach(), labels, **self.options, **how)


class DIST(_Softened):
    """Correlation between classes and between examples: :func:`~kdlab.objectives.response.dist_loss`.

    It compares the examples of a batch with each other, and so needs each batch as a whole: ``count`` is not looked at.
    """

    needs_whole_batch_of = ("images", "texts")  # it compares examples with each other

    def __init__(
        self,
        inter_weight: float = 1.0,
        intra_weight: float = 1.0,
        temperature: Varying = 1.0,
        class_axis: int | None = None,
    ) -> None:
        check_weight("inter_weight", inter_weight)
        check_weight("intra_weight", intra_weight)
        options = {"inter_weight": inter_weight, "intra_weight": intra_weight}
        super().__init__(temperature, class_axis, options=options)

    @staticmethod
    def function(student_logits: Logits, teacher_logits: Logits, *, count: Count | None = None, **how: Any) -> Loss:
        return response.dist_loss(student_logits, teacher_logits, **how)


class PermutedSoftTargets(SoftTargets):
    """Soft targets whose wrong classes are shuffled anew at every step:
    :func:`~kdlab.objectives.response.permute_dark_knowledge`. The control of the study, not a method."""

    def forward(  # pyrefly: ignore[bad-override] it needs labels
        self, *, teacher_logits: Logits, labels: Labels | Probabilities, mask: Mask | None = None, **seen: Any
    ) -> Scalar:
        check_indices(labels, "PermutedSoftTargets")
        shuffled = response.permute_dark_knowledge(
            teacher_logits.detach(), labels, mask=mask, class_axis=self.class_axis
        )
        return super().forward(teacher_logits=shuffled, labels=labels, mask=mask, **seen)


class SpreadSoftTargets(SoftTargets):
    """Soft targets whose wrong classes are all alike: :func:`~kdlab.objectives.response.spread_dark_knowledge`. A control
    of the study, not a method."""

    on_tokens = by_autograd

    def forward(  # pyrefly: ignore[bad-override] it needs labels
        self,
        *,
        teacher_logits: Logits,
        labels: Labels | Probabilities,
        mask: Mask | None = None,
        progress: float | None = None,
        **seen: Any,
    ) -> Scalar:
        check_indices(labels, "SpreadSoftTargets")
        even = response.spread_dark_knowledge(
            teacher_logits.detach(),
            labels,
            temperature=at(self.temperature, progress),
            mask=mask,
            class_axis=self.class_axis,
        )
        return super().forward(teacher_logits=even, labels=labels, mask=mask, progress=progress, **seen)

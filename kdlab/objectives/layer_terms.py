r"""Terms that look into the models: at hidden states, attention, relations between examples, embeddings.

Layers are named by module path, such as ``"layer2"`` or ``"model.layers.3"``, and captured by
:class:`~kdlab.training.taps.Taps`, which :func:`~kdlab.training.loop.fit` does by itself; no model is edited. A name alone
stands for the same path in student and teacher; a pair ``("layer2", "stages.1")`` for one each. ``"input:fc"`` is what
goes *into* ``fc``. With several layers, a term is the **sum** over them.

A model of two parts, such as T5, reads tokens and writes others. Then ``hidden_mask`` and ``hidden_count`` are dicts, with a mask and a number for each, ``"encoder"``
and ``"decoder"`` (and for the attention of the one to the other, ``"cross"``), and a term takes those that its layer's path names, or that ``mask=`` says.

Layers are logged together; apart, each as a term with a name: ``sum(HiddenMSE(pair).named(pair[0].replace(".", "_")) for pair in pairs)``.

Under gradient accumulation, means over positions and over examples take their ``hidden_count`` and ``example_count`` from the
whole batch. Terms that compare the examples of a batch with each other (relations, contrast, DIST) cannot: they are means over
the examples at hand, so that M micro-batches add them up M times.

>>> HiddenMSE(("layer2", "stages.1"), projector=Projector("conv", 32, 64))
HiddenMSE(('layer2', 'stages.1'), projector=Projector('conv', 32, 64))
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdlab.shapes import Bool, Integer

from .attention import Form, Heads, Normalise, activation_attention, attention_map_mse
from .checks import check_hidden_mask, check_indices, check_temperature
from .contrastive import ContrastiveMemory, info_nce
from .features import Projector, as_maps, channels_last, hidden_cosine, hidden_mse, same_size
from .relational import rkd_angle, rkd_distance, similarity_preserving
from .softening import counted_rows, full_precision
from .terms import Term, _reset, _shown
from .types import Count, Hidden, Mask, Scalar

# A module path of both, or one of the student and one of the teacher.
Layer = str | tuple[str, str]
# True where one of the hidden states counts; of a model of two parts, for each of them.
HiddenMask = Bool[Tensor, "B ..."] | dict[str, Tensor]
HiddenCount = Count | dict[str, Count]
Part = Literal["encoder", "decoder", "cross"]
# How the attention of a decoder to its encoder is called.
_CROSS = {"EncDecAttention", "encoder_attn", "crossattention", "cross_attn"}


def _total(losses: Iterable[Tensor]) -> Tensor:
    first, *others = losses
    return sum(others, first)


class _LayerTerm(Term):
    """A function of a layer of each model, summed over pairs of layers."""

    function: Callable[..., Tensor]
    prefix = ""

    def __init__(self, *layers: Layer, mask: Part | None = None, **options: Any) -> None:
        super().__init__()
        if mask not in (None, "encoder", "decoder", "cross"):
            raise ValueError(f'mask is "encoder", "decoder" or "cross", not {mask!r}.')
        pairs = [tuple(layer) if isinstance(layer, tuple) else (layer, layer) for layer in layers]
        if not pairs or not all(len(pair) == 2 and all(isinstance(path, str) for path in pair) for pair in pairs):
            raise ValueError(
                f"{type(self).__name__} takes module paths, or pairs of them (student, teacher), not "
                f"{layers!r}; a list is unpacked with *."
            )
        self.pairs, self.options, self.part = pairs, options, mask
        self.student_layers = tuple(self.prefix + student for student, _ in pairs)
        self.teacher_layers = tuple(self.prefix + teacher for _, teacher in pairs)

    def extra_repr(self) -> str:
        pairs = [repr(s) if s == t else repr((s, t)) for s, t in self.pairs]
        part = {} if self.part is None else {"mask": self.part}
        return ", ".join(pairs + [f"{k}={_shown(v)}" for k, v in {**self.options, **part}.items()])

    def of_part(self, given: Any, layer: str) -> Any:
        """The mask, or the number, of a layer's positions."""
        if not isinstance(given, dict):
            if given is not None and self.part is not None:
                raise ValueError(
                    f"{self!r} asks for a mask by its name, and there is one for all positions: leave mask out."
                )
            return given
        path = layer.rpartition(":")[2].split(".")
        by_path = "cross" if _CROSS & {*path} else next((x for x in ("decoder", "encoder") if x in path), None)
        name = self.part or by_path
        if name not in given:
            raise ValueError(
                f"of {', '.join(given)}, which mask goes with {layer!r}? {type(self).__name__}(…, mask=…) says it."
            )
        return given[name]

    def captured(self, student_hidden: Hidden | None, teacher_hidden: Hidden | None) -> Iterator[tuple[Tensor, Tensor]]:
        """The pairs of tensors; the teacher's without gradient."""
        for student, teacher in zip(self.student_layers, self.teacher_layers, strict=True):
            found = []
            for who, path, hidden in (
                ("student", student, student_hidden),
                ("teacher", teacher, teacher_hidden),
            ):
                if hidden is None or path not in hidden:
                    raise ValueError(
                        f"{self!r} needs {path!r} of the {who}: capture objective.{who}_layers with kdlab.training.Taps "
                        f"and pass {who}_hidden."
                    )
                found.append(hidden[path])
            yield found[0], found[1].detach()


def _counted(hidden, mask):
    """States of tokens, or maps, with zeros where a mask of positions leaves them out; others as they are."""
    if mask is None or mask.ndim < 2:
        return hidden
    if hidden.ndim == 4 and mask.shape == (hidden.shape[0], *hidden.shape[2:]):
        return torch.where(mask.unsqueeze(1), hidden, 0.0)
    return counted_rows(hidden, mask) if mask.shape == hidden.shape[:-1] else hidden


class _Hidden(_LayerTerm):
    """A loss of hidden states, each pair of layers with a projector of its own."""

    needs_whole_batch_of = ("images",)  # whose positions it counts itself

    def __init__(self, *layers: Layer, projector: nn.Module | None = None, mask: Part | None = None) -> None:
        super().__init__(*layers, mask=mask, **({} if projector is None else {"projector": projector}))
        self.projectors: nn.ModuleList | None = None
        if projector is not None:
            if not isinstance(projector, nn.Module):
                raise TypeError(
                    f'a projector is a module, such as Projector("linear", student_width, teacher_width), not {projector!r}.'
                )
            self.projectors = nn.ModuleList(copy.deepcopy(projector) for _ in self.pairs)
            for copied in self.projectors[1:]:
                _reset(copied)

    def forward(
        self,
        *,
        student_hidden: Hidden | None = None,
        teacher_hidden: Hidden | None = None,
        mask: Mask | None = None,
        hidden_mask: HiddenMask | None = None,
        hidden_count: HiddenCount | None = None,
        example_count: Count | None = None,
        **_: Any,
    ) -> Scalar:
        losses = []
        for i, (student, teacher) in enumerate(self.captured(student_hidden, teacher_hidden)):
            layer = self.student_layers[i]
            of_examples = student.ndim == 2  # such as what is pooled, beside states of tokens
            if not of_examples:
                check_hidden_mask(mask, hidden_mask)
            counted, count = None, example_count
            if not of_examples:
                counted, count = self.of_part(hidden_mask, layer), self.of_part(hidden_count, layer)
            student = _counted(student, counted)  # before a projector, whose gradient is a product with it
            student = student if self.projectors is None else self.projectors[i](student)
            student, teacher = map(channels_last, same_size(*as_maps(full_precision(student), full_precision(teacher))))
            if self.projectors is None and (narrow := student.shape[-1]) != (wide := teacher.shape[-1]):
                kind = "conv" if student.ndim == 4 else "linear"
                raise ValueError(
                    f"{layer!r} of the student is {narrow} wide, and {self.teacher_layers[i]!r} of the teacher {wide}: give a projector, "
                    f'projector=Projector("{kind}", {narrow}, {wide}), or choose layers of one size.'
                )
            losses.append(type(self).function(student, teacher, mask=counted, count=count))
        return _total(losses)


class HiddenMSE(_Hidden):
    """Squared error of hidden states: :func:`~kdlab.objectives.features.hidden_mse`.

    On a map of a convolutional network, with ``projector=Projector("conv", …)``, it is the **hint** of FitNets (published
    with weight 100, on the middle stage).

    Args:
        layers: module paths, or pairs of them (student, teacher); see
            :func:`~kdlab.objectives.features.match_layers`. Maps of different size are averaged down to the smaller. Beside a map, the tokens
            of a vision transformer are one, too, where their number is a square.
        projector: where widths differ, a :class:`~kdlab.objectives.features.Projector` or a module of one's own; every pair gets a copy with weights of its own.
        mask: of a model of two parts, whose positions these are; None: by the layers' paths.
    """

    function = hidden_mse


class HiddenCosine(_Hidden):
    """One minus the cosine of hidden states: :func:`~kdlab.objectives.features.hidden_cosine`. Arguments as in
    :class:`HiddenMSE`."""

    function = hidden_cosine


class AttentionMaps(_LayerTerm):
    """Attention maps of transformers: :func:`~kdlab.objectives.attention.attention_map_mse`.

    Args:
        layers: module paths of *attention* modules. Where a module computes fused attention, its maps are recovered from
            queries and keys as it runs.
        heads: ``"match"``, ``"mean"`` or ``"group"``.
        normalise: ``"none"`` (the article's formula), ``"queries"`` or ``"entries"``.
        mask: as in :class:`HiddenMSE`; ``"cross"`` is that of a decoder's attention to its encoder.
    """

    prefix = "attention:"

    def __init__(
        self, *layers: Layer, heads: Heads = "match", normalise: Normalise = "none", mask: Part | None = None
    ) -> None:
        super().__init__(*layers, mask=mask, heads=heads, normalise=normalise)

    def forward(
        self,
        *,
        student_hidden: Hidden | None = None,
        teacher_hidden: Hidden | None = None,
        mask: Mask | None = None,
        hidden_mask: HiddenMask | None = None,
        example_count: Count | None = None,
        **_: Any,
    ) -> Scalar:
        check_hidden_mask(mask, hidden_mask)
        losses = []
        for layer, (student, teacher) in zip(
            self.student_layers, self.captured(student_hidden, teacher_hidden), strict=True
        ):
            how: dict[str, Any] = {**self.options, "mask": self.of_part(hidden_mask, layer), "count": example_count}
            losses.append(attention_map_mse(student, teacher, **how))
        return _total(losses)


class ActivationAttention(_LayerTerm):
    """Attention transfer (AT) between maps of convolutional networks:
    :func:`~kdlab.objectives.attention.activation_attention`; published with weight 1000, all stages.

    Args:
        layers: module paths, or pairs of them.
        form: ``"released"`` or ``"paper"``.
    """

    def __init__(self, *layers: Layer, form: Form = "released") -> None:
        super().__init__(*layers, form=form)

    def forward(
        self,
        *,
        student_hidden: Hidden | None = None,
        teacher_hidden: Hidden | None = None,
        example_count: Count | None = None,
        **_: Any,
    ) -> Scalar:
        captured = self.captured(student_hidden, teacher_hidden)
        how: dict[str, Any] = {**self.options, "count": example_count}
        return _total(activation_attention(student, teacher, **how) for student, teacher in captured)


class _Relation(_LayerTerm):
    """A function that compares the examples of a batch; what a mask leaves out of their hidden states is zero in it."""

    needs_whole_batch_of = ("images", "texts")

    def captured(
        self,
        student_hidden: Hidden | None,
        teacher_hidden: Hidden | None,
        mask: Mask | None = None,
        hidden_mask: HiddenMask | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for layer, pair in zip(self.student_layers, super().captured(student_hidden, teacher_hidden), strict=True):
            if all(x.ndim == 3 for x in pair):  # states of tokens; what is pooled or a map has no padding
                check_hidden_mask(mask, hidden_mask)
            counted = self.of_part(hidden_mask, layer) if any(x.ndim > 2 for x in pair) else None
            yield _counted(pair[0], counted), _counted(pair[1], counted)

    def forward(
        self,
        *,
        student_hidden: Hidden | None = None,
        teacher_hidden: Hidden | None = None,
        mask: Mask | None = None,
        hidden_mask: HiddenMask | None = None,
        **_: Any,
    ) -> Scalar:
        captured = self.captured(student_hidden, teacher_hidden, mask, hidden_mask)
        return _total(type(self).function(s, t, **self.options) for s, t in captured)


class RKDDistance(_Relation):
    """Relative distances between examples: :func:`~kdlab.objectives.relational.rkd_distance`; published with weight 25,
    on the embedding."""

    function = rkd_distance


class RKDAngle(_Relation):
    """Angles between three examples: :func:`~kdlab.objectives.relational.rkd_angle`; published with weight 50, on the
    embedding."""

    function = rkd_angle


class SimilarityPreserving(_Relation):
    """Similarities between examples (SP): :func:`~kdlab.objectives.relational.similarity_preserving`; published with
    weight 3000, on the last stage."""

    function = similarity_preserving


class InfoNCE(_Relation):
    """Contrast within the batch: :func:`~kdlab.objectives.contrastive.info_nce`.

    Args:
        layer: a module path, or a pair of them. Features are flattened.
        projector: where widths differ.
        temperature: of the similarities.
        same_class: whether other examples of the same class are negatives.
    """

    def __init__(
        self, layer: Layer, *, projector: Projector | None = None, temperature: float = 0.1, same_class: bool = True
    ) -> None:
        check_temperature(temperature)
        options: dict[str, Any] = {} if projector is None else {"projector": projector}
        super().__init__(layer, **options, temperature=temperature, same_class=same_class)
        self.projector = copy.deepcopy(projector)

    def forward(
        self,
        *,
        student_hidden: Hidden | None = None,
        teacher_hidden: Hidden | None = None,
        labels: Integer[Tensor, " B"] | None = None,
        mask: Mask | None = None,
        hidden_mask: HiddenMask | None = None,
        **_: Any,
    ) -> Scalar:
        if not self.options["same_class"]:
            if labels is None:
                raise ValueError(f"{self!r} needs labels=… to leave out examples of the same class.")
            check_indices(labels, "InfoNCE(same_class=False)")
        ((student, teacher),) = self.captured(student_hidden, teacher_hidden, mask, hidden_mask)
        student = student if self.projector is None else self.projector(student)
        return info_nce(
            student.flatten(1),
            teacher.flatten(1),
            temperature=self.options["temperature"],
            labels=None if self.options["same_class"] else labels,
        )


class CRD(_Relation):
    """Contrast with a memory of the whole training set: :class:`~kdlab.objectives.contrastive.ContrastiveMemory`;
    published with weight 0.8, on the embedding.

    It needs ``index``, the examples' places in the training set, and ``labels``.

    Args:
        layer: a module path, or a pair of them; ``"input:fc"`` is the embedding of most image models.
        student_width, teacher_width: features of the layer, flattened.
        examples: size of the training set.
        options: of :class:`~kdlab.objectives.contrastive.ContrastiveMemory`; ``loss="info_nce"`` is memory-bank InfoNCE.
    """

    def __init__(self, layer: Layer, *, student_width: int, teacher_width: int, examples: int, **options: Any) -> None:
        widths = {"student_width": student_width, "teacher_width": teacher_width, "examples": examples}
        super().__init__(layer, **widths, **options)
        self.memory = ContrastiveMemory(**self.options)

    def forward(
        self,
        *,
        student_hidden: Hidden | None = None,
        teacher_hidden: Hidden | None = None,
        labels: Integer[Tensor, " B"] | None = None,
        index: Integer[Tensor, " B"] | None = None,
        mask: Mask | None = None,
        hidden_mask: HiddenMask | None = None,
        **_: Any,
    ) -> Scalar:
        if labels is None or index is None:
            raise ValueError(f"{self!r} needs labels=… and index=…, the examples' places in the training set.")
        check_indices(labels, "CRD")
        ((student, teacher),) = self.captured(student_hidden, teacher_hidden, mask, hidden_mask)
        return self.memory(student, teacher, labels, index)

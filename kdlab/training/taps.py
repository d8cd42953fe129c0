r"""Taps: what the layers of a model compute, captured as it runs, without editing it."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..objectives import AlignedLogits, HeadLogits, SparseTargets
from ..objectives.attention import attention_from_qk
from ..objectives.vocabulary import AnyLogits
from .modules import check_model
from .state import plain_names


class Taps:
    """A model that also says what some of its layers computed.

    Calling it runs the model (with a dictionary, as ``model(**inputs)``; with inputs in the type of its weights) and returns its logits and a dict from each layer's name to what was captured there. A
    layer is named by module path, as ``named_modules`` does: ``"layer2"`` is the output of ``layer2`` (its first tensor),
    ``"input:fc"`` the first input of ``fc``, and ``"attention:encoder.0.attn"`` the attention maps ``(B, heads, L, S)`` of that
    module: those that it returns, or, where it calls PyTorch's fused attention, which returns none, those recovered from
    the queries and keys of the call; both before dropout, whose noise would be most of what two models differ by.

    The hooks stay until :meth:`close`; they do nothing while the model is called directly. Layers are captured with their
    gradient. Run a teacher under ``torch.no_grad()``.

    A layer that runs more than once in a pass gives its last output. A layer whose output is then changed in place
    (such as by ``nn.ReLU(inplace=True)``) gives the changed one. A compiled model is tapped before its first call, since
    hooks that come later are not compiled; ``"attention:"`` may break its graph, which ``fullgraph=True`` forbids. With
    gradient checkpointing, choose ``use_reentrant=False``: the other kind leaves what is inside it without gradient, and is
    refused. A tapped model cannot be pickled; :meth:`close` first.

    Args:
        model: any module; its output may be logits, a tuple that starts with them, an object with ``.logits``, or a dict without, as that of an
            encoder: then the logits are None, and terms look at layers.
        layers: names, as above. What DataParallel, ``torch.compile`` and ``peft`` put before them may be left out.

    Raises:
        ValueError: for a name that is not in the model.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with Taps(model, ["0", "input:2"]) as taps:
    ...     logits, hidden = taps(torch.ones(1, 4))
    >>> logits.shape, {name: tuple(value.shape) for name, value in hidden.items()}
    (torch.Size([1, 2]), {'0': (1, 3), 'input:2': (1, 3)})
    """

    def __init__(self, model: nn.Module, layers: Iterable[str] = ()) -> None:
        if isinstance(layers, str):
            raise TypeError(f"layers is a list of names: [{layers!r}].")
        check_model(model)
        self.model, self.layers = model, tuple(layers)
        self._captured, self._running, self._hooks, self._modes = {}, False, [], []
        named = dict(model.named_modules())
        without = plain_names(model)
        plain = {without(name): module for name, module in named.items()}
        plain = _without_peft(plain) | plain
        modules = plain | named
        found = []
        for layer in self.layers:
            kind, _, path = layer.rpartition(":")
            if kind not in ("", "input", "attention"):
                raise ValueError(f'a layer is "path", "input:path" or "attention:path", not {layer!r}.')
            if len(named) == 1 and path:
                raise ValueError(
                    f"{type(model).__name__} has no modules, and so no {path!r}: hidden states and attention are those of a model itself, "
                    "not of what is kept of one, or of a function."
                )
            if path not in modules:
                near = difflib.get_close_matches(path, plain, n=3, cutoff=0.3)
                raise ValueError(
                    f"{type(model).__name__} has no module {path!r}"
                    + (f"; there are {', '.join(map(repr, near))}, among others." if near else ".")
                )
            found.append((getattr(self, f"_tap_{kind or 'output'}"), layer, modules[path]))
        for tap, layer, module in found:
            tap(layer, module)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[AnyLogits | AlignedLogits | None, dict[str, Tensor]]:
        self._captured = {}
        self._running, self._with_gradient = True, torch.is_grad_enabled()
        try:
            output = call(self.model, *args, **kwargs)
        finally:
            self._running = False
            captured, self._captured = self._captured, {}
            for modes in self._modes:  # after an interrupt, which no hook is told of
                while modes:
                    modes.pop().__exit__(None, None, None)
        if missing := [layer for layer in self.layers if layer not in captured]:
            raise RuntimeError(
                f"{type(self.model).__name__} did not run, or gave no tensor at, {', '.join(missing)}. (A module with "
                "attention calls fused attention, or returns its maps, as DeBERTa does with model.config.output_attentions = True; it is the "
                "tapped model that is called, and no copy of it; a compiled model is tapped before its first call.)"
            )
        # Maps are recovered out here: what is computed inside a checkpointed module would be computed again.
        headless = isinstance(output, Mapping) and "logits" not in output and self.layers
        return None if headless else logits_of(output), {
            layer: x() if callable(x) else x for layer, x in captured.items()
        }

    def _capture(self, layer, found):
        if self._with_gradient and not torch.is_grad_enabled():
            raise RuntimeError(
                f"{layer} of {type(self.model).__name__} runs without gradient, as re-entrant gradient checkpointing has it: "
                "pass use_reentrant=False."
            )
        self._captured[layer] = found

    def _tap_output(self, layer, module):
        def hook(module, args, output):
            if self._running and (found := _first_tensor(output)) is not None:
                self._capture(layer, found)

        self._hooks.append(module.register_forward_hook(hook))

    def _tap_input(self, layer, module):
        def hook(module, args, kwargs):
            if self._running and (found := _first_tensor([*args, *kwargs.values()])) is not None:
                self._capture(layer, found)

        self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _tap_attention(self, layer, module):
        self._modes.append(modes := [])

        def enter(module, args):
            if self._running:
                modes.append(_FusedAttention())
                modes[-1].__enter__()

        def leave(module, args, output):
            if not modes:
                return
            mode = modes.pop()
            mode.__exit__(None, None, None)
            maps = mode.maps
            if maps is None and isinstance(
                output, (tuple, list)
            ):  # the module returns its maps; T5's, after a bias of the same shape
                maps = mode.before_dropout(
                    next((x for x in output[:0:-1] if isinstance(x, Tensor) and x.ndim in (3, 4)), None)
                )
            if isinstance(maps, Tensor) and maps.ndim == 3:  # averaged over heads
                maps = maps.unsqueeze(1)
            if maps is not None:
                self._capture(layer, maps)

        self._hooks += [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave, always_call=True),
        ]

    def close(self) -> None:
        """Take the hooks out of the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __enter__(self) -> "Taps":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _FusedAttention(TorchFunctionMode):
    """Sees the calls of fused attention; ``maps`` is then a function that computes its maps. And those of dropout, with what each was given."""

    maps = None

    def __init__(self) -> None:
        super().__init__()
        self.dropped = []

    def before_dropout(self, maps):
        """What they were before dropout, if that is what they come from."""
        return next((given for dropped, given in self.dropped if dropped is maps), maps)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.dropout:
            dropped = function(*args, **kwargs)
            self.dropped.append((dropped, args[0] if args else kwargs["input"]))
            return dropped
        if function is F.multi_head_attention_forward:  # nn.MultiheadAttention: once for maps, once as asked
            asked = {**kwargs, "training": False, "need_weights": True, "average_attn_weights": False}
            self.maps = lambda: function(*args, **asked)[1]
        elif function is F.scaled_dot_product_attention:
            self.maps = lambda: _recovered(*args, **kwargs)
        return function(*args, **kwargs)


def _recovered(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """The maps of a call of fused attention; one head has no axis of its own there."""
    with torch.autocast("cuda" if query.is_cuda else "cpu", enabled=False):
        maps = attention_from_qk(query, key, causal=is_causal, mask=attn_mask, scale=scale)
    return maps if maps.ndim == 4 else maps.unsqueeze(1)


def _without_peft(named: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The modules inside models of ``peft``, named as without it: ``"model.layers.0"`` for ``"base_model.model.model.layers.0"``."""
    names, found = {module: name for name, module in named.items()}, {}
    for path, part in named.items():
        if hasattr(part, "get_base_model"):
            before = f"{names[part.get_base_model()]}."
            inside = {name.removeprefix(before): x for name, x in named.items() if name.startswith(before)}
            found |= {f"{path}.{name}".lstrip("."): x for name, x in inside.items()}
    return found


def call(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a model says of inputs; a dictionary of them by their names, as ``model(**inputs)``.

    Inputs in floating point are given in the model's own type, that of its first weights, such as bfloat16.

    Raises:
        TypeError: for pictures in uint8, if it cannot read them.
    """
    if len(args) == 1 and isinstance(args[0], Mapping) and not kwargs:
        args, kwargs = (), dict(args[0])
    weights = (p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype.itemsize > 1)
    if (kind := next(weights, None)) is not None:
        args = tuple(_in_type(x, kind) for x in args)
        kwargs = {name: _in_type(x, kind) for name, x in kwargs.items()}
    try:
        return model(*args, **kwargs)
    except RuntimeError as error:
        given = {x.dtype for x in (*args, *kwargs.values()) if isinstance(x, Tensor)}
        if torch.uint8 not in given or not re.search(r"\b(Byte|unsigned char)", str(error)):
            raise
        raise TypeError(
            f"{type(model).__name__} cannot read pictures in uint8: give floats, such as pictures.float() / 255, normalised as it expects, or a "
            "kdlab.data.Split."
        ) from error


def _in_type(given: Any, kind: torch.dtype) -> Any:
    return given.to(kind) if isinstance(given, Tensor) and given.is_floating_point() else given


def logits_of(output: Any) -> Any:
    """The logits in what a model returned: a tensor, an object with ``.logits``, or a tuple that starts with them."""
    if isinstance(output, (Tensor, HeadLogits, SparseTargets, AlignedLogits)):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    such = f": output[{next(iter(output))!r}]" if isinstance(output, Mapping) and output else ""
    if hasattr(output, "start_logits"):
        such = ": torch.stack([output.start_logits, output.end_logits], 1), beside labels of the two places"
    raise TypeError(
        f"a model must return logits, a tuple that starts with them, or .logits, not {type(output).__name__}; a module of your own around it "
        f"does{such}."
    )


def _first_tensor(output):
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return next((part for part in parts if isinstance(part, Tensor)), None)

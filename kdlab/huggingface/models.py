"""Causal language models of transformers, called as kdlab's own are; adapters that are turned off."""

import inspect
from collections.abc import Collection
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdlab.shapes import Float, Integer

from ..models.gpt import check_tokens
from ..objectives import HeadLogits
from ..training import evaluation_mode
from ..training.modules import check_model
from .caches import KeysAndValues, Reread


class CausalLM(nn.Module):
    """A model of ``transformers``, as teacher or student; with adapters of ``peft``, quantised, compiled or wrapped, too.

    Logits are those of the model's own forward pass, whatever its head is. Layers are named as in the model itself, behind
    ``"model."``, such as ``"model.model.layers.0"``.

    Args:
        model: such as ``AutoModelForCausalLM.from_pretrained(…)``.

    Raises:
        TypeError: for what is no model of ``transformers``.
        ValueError: if the model does not give one row of logits a token, a token's logits depend on what follows it, or it is an encoder with a decoder.

    Attributes:
        vocabulary, context: how many logits a token has, and how many tokens the model reads (of its text configuration).
        fused: whether it returns :class:`~kdlab.objectives.vocabulary.HeadLogits`, with the scale and the softcap of its configuration. Setting
            it raises ValueError where these would not be the model's own logits: of a head that is no plain linear map (adapters,
            quantised weights), or logits that are made otherwise.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    >>> CausalLM(LlamaForCausalLM(config))(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 50])
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        check_model(model)
        self.model, self._fused, self._goes_on = model, False, None
        self._scale: float | None = None
        config = getattr(unwrapped(model), "config", None)
        if not hasattr(config, "get_text_config"):
            raise TypeError(
                f"{type(model).__name__} is no model of transformers, whose configuration CausalLM reads: a model of kdlab.models writes, "
                "teaches and learns as it is, in kdlab.training.fit and kdlab.language.generate."
            )
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(
                f"{type(unwrapped(model)).__name__} has an encoder and a decoder, and here texts are gone on from by causal language models alone: Distil and "
                "Distillation take it as it is, with labels, such as those that generate() of the teacher has written."
            )
        config = config.get_text_config()
        self.vocabulary = config.vocab_size
        self.context = getattr(config, "max_position_embeddings", None) or 2**31
        if (tokens := self._two_texts()).is_meta:
            return
        with torch.no_grad(), evaluation_mode(self):
            logits = self._own_logits(tokens)
        if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
            raise ValueError(
                f"{type(model).__name__} gives logits of shape {tuple(logits.shape)} for tokens of shape {tuple(tokens.shape)}, not "
                "a row for each; virtual tokens of prompt tuning, for one, are not supported."
            )
        if not _near(logits[0, :2], logits[1, :2], 1e-4):
            raise ValueError(
                f"the logits of {type(model).__name__} depend on the tokens that follow: it is no causal language model, or is told "
                "by its configuration to look both ways."
            )
        self.vocabulary = logits.shape[-1]

    @property
    def fused(self) -> bool:
        return self._fused

    @fused.setter
    def fused(self, fused: bool) -> None:
        if fused:
            self._plain_head()
            if not (tokens := self._two_texts()).is_meta:
                with torch.no_grad(), evaluation_mode(self):
                    self._check_last(*self._head_logits(tokens))
        self._fused = fused

    def forward(
        self, tokens: Integer[Tensor, "B T"], cache: Reread | KeysAndValues | None = None
    ) -> Float[Tensor, "B T V"] | HeadLogits:
        """Logits ``(B, T, V)`` of what follows each of ``tokens``, ``(B, T)``, with a cache after what it holds; those of a single
        token that follows a cache are a tensor, fused or not.

        Raises:
            ValueError: as :class:`~kdlab.models.gpt.GPT`'s; or, fused, if since then the head has become one that cannot be read.
            RuntimeError: for a cache where gradients are wanted.
        """
        check_tokens(tokens, self.vocabulary, self.context, 0 if cache is None else cache.longest)
        if cache is not None and torch.is_grad_enabled():
            raise RuntimeError("a cache keeps no gradients: use it within torch.no_grad().")
        # What is on the right of a token has no influence on it, so that rows of different length need no mask.
        if cache is None:
            return self._read(tokens)
        if isinstance(cache, KeysAndValues):
            given = {k: x for k, x in cache.inputs(tokens).items() if k != "position_ids" or k in self._names}
            logits = self._read(tokens, **given)
            cache.extended(tokens)
            return logits
        tokens, places = cache.extend(tokens)
        first = int(places.min())  # the logits of what was read before are not made again
        logits = self._read(tokens, first)
        if not isinstance(logits, HeadLogits):
            return logits.gather(1, (places - first)[..., None].expand(-1, -1, logits.shape[-1]))
        width = logits.hidden.shape[-1]
        return replace(logits, hidden=logits.hidden.gather(1, places[..., None].expand(-1, -1, width)))

    def _read(self, tokens: Tensor, first: int = 0, **given: Any) -> Tensor | HeadLogits:
        """Logits of all tokens, or those from place ``first`` on where they are a tensor."""
        if not self.fused or (given and tokens.shape[1] == 1):  # of one token, the model's own are made in any case
            return self._own_logits(tokens, first, **given)
        logits, last = self._head_logits(tokens, **given)
        if tokens.device.type == "cpu":  # a glance; elsewhere it would wait for the device
            self._check_last(logits, last)
        return logits

    def _two_texts(self) -> Tensor:
        """Something to read, on the model's device; the texts differ in their last token."""
        return torch.tensor([[0, 1, 2], [0, 1, 1]], device=self._device)

    @property
    def _device(self):
        return next(chain(self.model.parameters(), self.model.buffers()), torch.empty(0)).device

    def _own_logits(self, tokens: Tensor, first: int = 0, **given: Any) -> Tensor:
        """The model's own, of all tokens from place ``first`` on."""
        keep = {}
        if first and self._keeps_logits:
            keep = {"logits_to_keep": torch.arange(first, tokens.shape[1], device=tokens.device)}
        # What grows with each step would be compiled with each.
        model = getattr(self.model, "_orig_mod", self.model) if given else self.model
        logits = model(**{"input_ids": tokens, "use_cache": False, **keep, **given}).logits
        return logits if keep or not first else logits[:, first:]

    @property
    def _keeps_logits(self) -> bool:
        return "logits_to_keep" in self._names

    @property
    def _names(self) -> Collection[str]:
        """What the model's forward names."""
        return inspect.signature(unwrapped(self.model).forward).parameters

    def _head_logits(self, tokens: Tensor, **given: Any) -> tuple[HeadLogits, Tensor]:
        """Last hidden states and the head; and the model's own logits of the last token, made in the same pass."""
        self._plain_head()
        inner, hidden = unwrapped(self.model), []
        hooks = [
            body.register_forward_hook(lambda module, given, output: hidden.append(output[0]))
            for body in {inner.base_model, inner.get_decoder()}  # of OPT, the first does not run
        ]
        try:  # a compiled model would not run the hook
            last = getattr(self.model, "_orig_mod", self.model)(
                **{"input_ids": tokens, "use_cache": False, "logits_to_keep": 1, **given}
            ).logits
        finally:
            for hook in hooks:
                hook.remove()
        if not hidden:
            raise ValueError(f"{type(inner).__name__} is compiled in parts: {self._instead}")
        if self._scale is None:
            with torch.no_grad():
                made = {x: self.head_logits(hidden[-1][:, -1:], x).dense() for x in self._scales}
                self._scale = min(made, key=lambda x: (made[x] - last).abs().max().item())
        return self.head_logits(hidden[-1], self._scale), last

    def head_logits(self, hidden: Tensor, scale: float | None = None) -> HeadLogits:
        """What the head says of last hidden states ``(B, T, d)``, with which the scale of its logits is taken in; None: the one that it has."""
        inner, scale = unwrapped(self.model), self._scale if scale is None else scale
        head = inner.get_output_embeddings()
        softcap = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)
        if scale in (None, 1.0):
            return HeadLogits(hidden, head.weight, head.bias, softcap)
        return HeadLogits(hidden * scale, head.weight, None if head.bias is None else head.bias * scale, softcap)

    @property
    def _scales(self) -> list[float]:
        """By what the configuration may mean that logits are multiplied: of one name, some models divide and some multiply."""
        config = unwrapped(self.model).config.get_text_config()
        given = [getattr(config, name, None) for name in ("logits_scaling", "logit_scale", "lm_head_multiplier")]
        return [scale for x in given if isinstance(x, (int, float)) and x for scale in (1 / x, x)] + [1.0]

    def _plain_head(self) -> nn.Linear:
        """The head, if what is read of it is all that it does."""
        inner = unwrapped(self.model)
        head, body = inner.get_output_embeddings(), inner.base_model
        plain = type(head) is nn.Linear or (parametrize.is_parametrized(head) and isinstance(head, nn.Linear))
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        if (
            not plain
            or "forward" in vars(head)
            or any(getattr(head, name) for name in hooks)
            or type(head.weight) not in (Tensor, nn.Parameter)
            or head.weight.ndim != 2
        ):
            raise ValueError(
                f"the head of {type(inner).__name__}, a {type(head).__module__}.{type(head).__name__}, is no plain linear map: "
                f"{self._instead}"
            )
        known = {id(p) for part in (head, body) for p in part.parameters()}
        elsewhere = [name for name, p in self.model.named_parameters() if id(p) not in known]
        if body is inner or elsewhere or not self._keeps_logits:
            what = f"has {elsewhere[0]} beside body and head" if elsewhere else "does not show its body by itself"
            raise ValueError(f"{type(inner).__name__} {what}: {self._instead}")
        return head

    def _check_last(self, logits: HeadLogits, last: Tensor) -> None:
        with torch.no_grad():
            ours = logits[:, -1:].dense()
        if ours.shape != last.shape or not _near(ours, last):
            raise ValueError(
                f"{type(unwrapped(self.model)).__name__} scales its logits, or makes them otherwise than by its head and a softcap: "
                f"{self._instead}"
            )

    _instead = "leave fused = False, and the model makes its logits itself."

    def cache(self, batch: int) -> Reread | KeysAndValues:
        """What was read, for ``batch`` sequences: keys and values, in the cache of ``transformers``.

        Of models that keep something else (recurrent states), or that in a small text do not go on from there as they would from the whole,
        the tokens, which are read again with each step: the same text, only slower.
        """
        if self._goes_on is None:
            self._goes_on = self._keeps_keys_and_values()
        return (KeysAndValues if self._goes_on else Reread)(batch, self._device)

    @torch.no_grad()
    def _keeps_keys_and_values(self) -> bool:
        """Whether it goes on from them: of two texts, one of which went back."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

        tokens = self._two_texts()
        kinds = {type(layer) for layer in DynamicCache(config=unwrapped(self.model).config).layers}
        if "past_key_values" not in self._names or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
            return False
        if tokens.is_meta:
            return True
        cache = KeysAndValues(2, tokens.device)
        with evaluation_mode(self):
            self(tokens, cache)
            cache.rewind(torch.tensor([3, 1], device=tokens.device))
            found = _last_of(self(tokens[:, 1:], cache))
            whole = [self(torch.cat([row[:n], row[1:]])[None]) for row, n in zip(tokens, (3, 1), strict=True)]
        part = 1e-4 if found.dtype in (torch.float32, torch.float64) else 0.02
        return all(_near(ours, _last_of(known)[0], part) for ours, known in zip(found, whole, strict=True))


def unwrapped(model: nn.Module) -> nn.Module:
    """The model of ``transformers`` inside what ``torch.compile``, ``peft``, DataParallel and FSDP put around it."""
    while True:
        if hasattr(model, "get_base_model"):  # of peft
            model = model.get_base_model()
        elif inner := {"_orig_mod", "module"} & model._modules.keys():
            model = model._modules[inner.pop()]
        else:
            return model


def _last_of(logits: Tensor | HeadLogits) -> Tensor:
    """Those of the last token."""
    last = logits[:, -1]
    return last.dense() if isinstance(last, HeadLogits) else last


def _near(ours: Tensor, known: Tensor, part: float = 0.02) -> bool:
    """Up to a part of the largest; by itself, up to the rounding of bfloat16."""
    return torch.allclose(ours.float(), known.float(), rtol=part, atol=part * known.abs().max().item())


class WithoutAdapter(nn.Module):
    """A model whose adapters are off while it is looked at; see :func:`without_adapter`."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        check_model(student, "a student")
        self._modules = student._modules  # under the student's own names
        object.__setattr__(self, "_student", student)
        object.__setattr__(self, "_adapted", _adapted(student))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # vocabulary, context, cache, config
            return getattr(self._student, name)

    @property
    def fused(self) -> bool:
        """The student's."""
        return self._student.fused

    @fused.setter
    def fused(self, fused: bool) -> None:
        self._student.fused = fused

    @torch.no_grad()
    def forward(self, *arguments: Any, **named: Any) -> Any:
        with evaluation_mode(self._student), _turned_off(self._adapted):
            return self._student(*arguments, **named)

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        """What it uses: all but the adapters."""
        state = self._student.state_dict(*arguments, **options)
        return type(state)((name, value) for name, value in state.items() if not _of_an_adapter(name, self._adapted))


def without_adapter(student: nn.Module) -> WithoutAdapter:
    """The model that ``peft``'s adapters were put into, as the teacher of the same model with them: no weight is there twice.

    It looks in evaluation mode, without gradient and with adapters off; between its looks the student is as it was. What is
    trained beside the adapters (biases, with ``bias="all"``) would move the teacher, and ``fit`` refuses that.

    Args:
        student: a model of ``peft``, or a module that has one in it, such as a :class:`CausalLM`.

    Raises:
        TypeError: if there is no adapter in it, or more than one model of ``peft``.

    >>> from peft import LoraConfig, get_peft_model
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    >>> adapters = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    >>> student = CausalLM(get_peft_model(LlamaForCausalLM(config), adapters))
    >>> teacher, tokens = without_adapter(student), torch.tensor([[1, 2, 3]])
    >>> torch.equal(teacher(tokens), student(tokens))
    False
    """
    return WithoutAdapter(student)


def _adapted(model: nn.Module) -> nn.Module:
    """The one model of ``peft`` in a module."""
    found = [
        module for module in model.modules() if hasattr(module, "disable_adapter") and hasattr(module, "peft_config")
    ]
    if len(found) != 1:
        raise TypeError(
            f"{type(model).__name__} has {len(found) or 'no'} model{'s' * (len(found) > 1)} of peft in it, of which one can be turned "
            "off: make it with peft.get_peft_model."
        )
    return found[0]


@contextmanager
def _turned_off(adapted: nn.Module):
    """Without adapters; what is trained stays as it was, which ``peft`` does not promise."""
    trained = [(p, p.requires_grad) for p in adapted.parameters()]
    try:
        with adapted.disable_adapter():
            yield
    finally:
        for p, requires_grad in trained:
            p.requires_grad_(requires_grad)


def _of_an_adapter(name: str, adapted: nn.Module) -> bool:
    """Whether a name in a state dict is that of an adapter's, or of a copy that stands in for what it was made of."""
    marks = {getattr(tuner, "prefix", None) for tuner in adapted.modules()} | {
        "modules_to_save.",
        "trainable_tokens_",
        "prompt_encoder.",
    }
    return any(mark in name for mark in marks if mark)

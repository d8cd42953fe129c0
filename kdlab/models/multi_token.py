r"""Multi-token prediction: modules on a language model that predict the tokens after the next.

The state :math:`h_i` of a model gives the logits of :math:`x_{i+1}`. Module :math:`k` makes a state :math:`h_i^k` that gives those
of :math:`x_{i+k+1}`, through the model's own embedding :math:`E`. In a row they read the tokens between,

.. math:: h_i^k = \operatorname{Block}_k\bigl(W_k\,[\operatorname{norm}(h_i^{k-1});\ \operatorname{norm}(E x_{i+k})]\bigr),
    \qquad h_i^0 = h_i

and side by side they do not: :math:`h_i^k = h_i + \operatorname{MLP}_k(\operatorname{norm}(h_i))`. The model stays as it is.

Source: in a row, DeepSeek-AI (2024), DeepSeek-V3, eq. 21–23; side by side, Gloeckle et al. (2024) and, on a model that is frozen,
Cai et al. (2024), Medusa.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.shapes import Float, Integer, Shaped

from ..objectives import HeadLogits
from .gpt import GPT, MLP, Block, Cache, Remembered, gpt_224x4, gpt_704x13


class MultiToken(nn.Module):
    """A language model that is frozen, and modules that predict ``depth`` further tokens.

    Called with tokens ``(B, T)`` it returns logits ``(B, depth, T, V)``; what module k says at the last k tokens, whose followers
    it cannot read, means nothing.

    It learns from :class:`~kdlab.data.tokens.Tokens` with ``ahead=depth``: from their labels, or from :class:`Ahead` as its teacher.

    Args:
        trunk: the model, which is frozen in place: give a copy, ``copy.deepcopy(model)``, if it is to learn more.
        depth: number of modules.
        in_a_row: whether a module reads the token before the one it predicts, and the state of the module before; else all
            look at the model's own state.

    Attributes:
        fused: as :class:`~kdlab.models.gpt.GPT`'s.

    Raises:
        TypeError: for a trunk that is not :class:`~kdlab.models.gpt.GPT`, such as a model of ``transformers``.
        ValueError: for no module.

    >>> trunk = GPT(100, width=32, layers=2, heads=2, context=16)
    >>> MultiToken(trunk, 3, in_a_row=True)(torch.zeros(1, 16, dtype=torch.long)).shape
    torch.Size([1, 3, 16, 100])
    """

    def __init__(self, trunk: GPT, depth: int, *, in_a_row: bool) -> None:
        super().__init__()
        if not isinstance(trunk, GPT):
            raise TypeError(f"modules stand on kdlab's GPT, not on {type(trunk).__name__}.")
        if depth < 1:
            raise ValueError(f"at least one module is needed, not {depth}.")
        self.vocabulary, self.context, self.heads = trunk.vocabulary, trunk.context, trunk.heads
        self.depth, self.in_a_row, self.fused = depth, in_a_row, False
        width = trunk.embedding.weight.shape[1]
        make = (lambda: InARow(width, trunk.heads)) if in_a_row else (lambda: SideBySide(width))
        self.blocks = nn.ModuleList(make() for _ in range(depth))
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(depth))
        self.apply(trunk._initialise)
        self.trunk = trunk.requires_grad_(False)

    @property
    def embedding(self) -> nn.Embedding:
        return self.trunk.embedding

    def stand_on(self, model: GPT) -> None:
        """Take the weights of a trained model for the trunk.

        Raises:
            ValueError: for a model of another shape.
        """
        weights = model.state_dict()
        ours = {name: value.shape for name, value in self.trunk.state_dict().items()}
        if ours != {name: value.shape for name, value in weights.items()}:
            raise ValueError("these modules were made for a model of another shape.")
        self.trunk.load_state_dict(weights)

    def forward(self, tokens: Integer[Tensor, "B T"]) -> Float[Tensor, "B depth T V"] | HeadLogits:
        with torch.no_grad(), as_fused(self.trunk):
            state = hidden = self.trunk(tokens).hidden
        states = []
        for k in range(1, self.depth + 1):
            if self.in_a_row:
                state = self.step(k, state, shifted(tokens, k), self.trunk.rotation[: tokens.shape[1]])
            else:
                state = self.step(k, hidden)
            states.append(self.norms[k - 1](state))
        logits = HeadLogits(torch.stack(states, 1), self.embedding.weight)
        return logits if self.fused else logits.dense()

    def step(
        self,
        k: int,
        state: Float[Tensor, "*batch d"],
        tokens: Integer[Tensor, "B T"] | None = None,
        rotated: Float[Tensor, "..."] | None = None,
        remembered: Remembered | None = None,
    ) -> Float[Tensor, "*batch d"]:
        """States ``(B, T, d)`` of module k from those before it and, in a row, the tokens ``(B, T)`` that it reads."""
        if self.in_a_row:
            return self.blocks[k - 1](state, self.embedding(tokens), rotated, remembered)
        return self.blocks[k - 1](state)

    def logits(self, k: int, state: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch V"]:
        """Logits ``(…, V)`` of a state of module k."""
        return HeadLogits(self.norms[k - 1](state), self.embedding.weight).dense()

    def cache(self, batch: int) -> Cache:
        """Room for keys and values of modules in a row; who uses it keeps account of the lengths."""
        return Cache(self, batch)


class InARow(nn.Module):
    """A transformer block that reads a state and the embedding of a later token."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.state_norm, self.token_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.join = nn.Linear(2 * width, width, bias=False)
        self.block = Block(width, heads)

    def forward(
        self,
        state: Float[Tensor, "B T d"],
        embedded: Float[Tensor, "B T d"],
        rotated: Float[Tensor, "..."],
        remembered: Remembered | None = None,
    ) -> Float[Tensor, "B T d"]:
        x = self.join(torch.cat([self.state_norm(state), self.token_norm(embedded)], -1))
        return self.block(x.to(state.dtype), rotated, remembered)  # the stream stays in full precision under autocast


class SideBySide(nn.Module):
    """An MLP beside a state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mlp = nn.RMSNorm(width), MLP(width)

    def forward(self, state: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return state + self.mlp(self.norm(state))


class Ahead(nn.Module):
    """What a language model itself says of further tokens, once it has read up to them: who teaches :class:`MultiToken`.

    Logits ``(B, depth, T, V)``: at place i of row k, the model's own of :math:`x_{i+k+1}` given :math:`x_{\\le i+k}`.

    Raises:
        ValueError: for no further token.

    Source: Zhao et al. (2026), multi-token prediction via self-distillation.
    """

    def __init__(self, model: GPT, depth: int) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"at least one further token is looked at, not {depth}.")
        self.model, self.depth, self.fused = model, depth, False

    def forward(self, tokens: Integer[Tensor, "B T"]) -> Float[Tensor, "B depth T V"] | HeadLogits:
        with as_fused(self.model):
            logits = self.model(tokens)
        ahead = torch.stack([shifted(logits.hidden, k) for k in range(1, self.depth + 1)], 1)
        logits = HeadLogits(ahead, logits.weight)
        return logits if self.fused else logits.dense()


@contextmanager
def as_fused(model: Any) -> Generator[Any, None, None]:
    """A model that returns its states and its head, for as long as this lasts."""
    before, model.fused = model.fused, True
    try:
        yield model
    finally:
        model.fused = before


def shifted(x: Shaped[Tensor, "B T *rest"], k: int, fill: float = 0) -> Shaped[Tensor, "B T *rest"]:
    """``x``, ``(B, T, …)``, k places to the left; at the end ``fill``."""
    return torch.cat([x[:, k:], torch.full_like(x[:, :k], fill)], 1)[:, : x.shape[1]]


def heads_in_a_row_224x4(vocabulary: int) -> MultiToken:
    """Three modules in a row on :func:`~kdlab.models.gpt.gpt_224x4`."""
    return MultiToken(gpt_224x4(vocabulary), 3, in_a_row=True)


def heads_side_by_side_224x4(vocabulary: int) -> MultiToken:
    """Three modules side by side on :func:`~kdlab.models.gpt.gpt_224x4`."""
    return MultiToken(gpt_224x4(vocabulary), 3, in_a_row=False)


def heads_in_a_row_704x13(vocabulary: int) -> MultiToken:
    """Three modules in a row on :func:`~kdlab.models.gpt.gpt_704x13`."""
    return MultiToken(gpt_704x13(vocabulary), 3, in_a_row=True)


def heads_side_by_side_704x13(vocabulary: int) -> MultiToken:
    """Three modules side by side on :func:`~kdlab.models.gpt.gpt_704x13`."""
    return MultiToken(gpt_704x13(vocabulary), 3, in_a_row=False)

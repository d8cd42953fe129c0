r"""A small GPT: a decoder-only transformer with rotary positions, RMSNorm, SwiGLU and fused attention.

Tokens :math:`(B, T)` to the logits :math:`(B, T, V)` of the tokens that follow them. A layer's hidden states are the output of
``"blocks.0"``, ``"blocks.1"``, …, its attention maps ``"attention:blocks.0.attention"``, the states before the vocabulary
``"norm"`` (:class:`~kdlab.training.taps.Taps`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.shapes import Bool, Float, Integer

from ..objectives import HeadLogits

# The cache, the number of the layer, the places of the tokens and what each of them may see.
Remembered = tuple["Cache", int, Integer[Tensor, "B T"], Bool[Tensor, "B 1 T context"]]


class GPT(nn.Module):
    """A causal language model whose input and output embeddings are one.

    Args:
        vocabulary: number of tokens, :math:`V`.
        width: of the hidden states.
        layers, heads: how many; ``width`` is a multiple of twice ``heads``.
        context: the longest sequence that it takes.

    Attributes:
        fused: whether it returns :class:`~kdlab.objectives.vocabulary.HeadLogits`, so that losses never hold the logits of all
            tokens at once; else they are a tensor.

    Source: rotary positions, Su et al. (2021); RMSNorm, Zhang & Sennrich (2019); SwiGLU, Shazeer (2020).

    >>> model = GPT(100, width=32, layers=2, heads=2, context=16)
    >>> model(torch.zeros(1, 16, dtype=torch.long)).shape
    torch.Size([1, 16, 100])
    """

    def __init__(self, vocabulary: int, *, width: int, layers: int, heads: int, context: int = 256) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"the width must be a multiple of twice the heads, and {width} is not of {2 * heads}.")
        self.vocabulary, self.context, self.heads, self.fused = vocabulary, context, heads, False
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.register_buffer("rotation", rotation(context, width // heads), persistent=False)
        self.apply(self._initialise)

    def _initialise(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, Block):  # what is added to the stream, 2 · layers times, keeps its size
            for last in (module.attention.out, module.mlp.out):
                nn.init.normal_(last.weight, std=0.02 / (2 * len(self.blocks)) ** 0.5)

    def forward(
        self, tokens: Integer[Tensor, "B T"], cache: "Cache | None" = None
    ) -> Float[Tensor, "B T V"] | HeadLogits:
        """Logits ``(B, T, V)`` of what follows each of ``tokens``, ``(B, T)``.

        With a :class:`Cache` the tokens go on from what it holds, and it holds them afterwards; no gradient goes through it.

        Raises:
            ValueError: for no token, tokens that the vocabulary lacks, or more than the context.
            RuntimeError: for a cache where gradients are wanted.
        """
        if cache is not None and torch.is_grad_enabled():
            raise RuntimeError("a cache keeps no gradients: use it within torch.no_grad().")
        check_tokens(tokens, self.vocabulary, self.context, 0 if cache is None else cache.longest)
        x = self.embedding(tokens)
        if cache is None:
            rotated, remembered = self.rotation[: tokens.shape[1]], None
        else:
            places = cache.lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
            rotated = self.rotation[places].unsqueeze(1)
            remembered = places, (torch.arange(self.context, device=tokens.device) <= places[..., None]).unsqueeze(1)
        for number, block in enumerate(self.blocks):
            x = block(x, rotated, None if remembered is None else (cache, number, *remembered))
        if cache is not None:
            cache.lengths, cache.longest = cache.lengths + tokens.shape[1], cache.longest + tokens.shape[1]
        logits = HeadLogits(self.norm(x), self.embedding.weight)
        return logits if self.fused else logits.dense()

    def cache(self, batch: int) -> "Cache":
        """An empty cache for ``batch`` sequences."""
        return Cache(self, batch)


def check_tokens(tokens: Integer[Tensor, "B T"], vocabulary: int, context: int, before: int = 0) -> None:
    """That a model of this vocabulary and context can read these tokens after ``before`` others."""
    if tokens.ndim != 2 or tokens.is_floating_point() or not tokens.numel():
        raise ValueError(
            f"tokens are whole numbers of shape (batch, time), at least one, not {tokens.dtype} of shape {tuple(tokens.shape)}."
        )
    if before + tokens.shape[1] > context:
        raise ValueError(f"a sequence of {before + tokens.shape[1]} tokens is longer than the context of {context}.")
    if tokens.device.type == "cpu" and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
        raise ValueError(f"a token is not in the vocabulary of {vocabulary}: was the text tokenised for another model?")


class Block(nn.Module):
    """Attention and MLP, each added to the stream of hidden states."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(width), Attention(width, heads)
        self.mlp_norm, self.mlp = nn.RMSNorm(width), MLP(width)

    def forward(
        self, x: Float[Tensor, "B T d"], rotated: Float[Tensor, "..."], remembered: Remembered | None = None
    ) -> Float[Tensor, "B T d"]:
        x = x + self.attention(self.attention_norm(x), rotated, remembered)
        return x + self.mlp(self.mlp_norm(x))


class Attention(nn.Module):
    """Causal attention with rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Float[Tensor, "B T d"], rotated: Float[Tensor, "..."], remembered: Remembered | None = None
    ) -> Float[Tensor, "B T d"]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, T, d)
        q, k = rotate(q, rotated), rotate(k, rotated)
        if remembered is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            cache, number, places, mask = remembered
            k, v = cache.extend(number, places, k, v)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    r"""SwiGLU: :math:`W_o(\operatorname{silu}(W_g x) \odot W_u x)`, about as many weights as a plain MLP four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 32 * max(round(8 * width / 3 / 32), 1)
        self.gate_and_up = nn.Linear(width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        gate, up = self.gate_and_up(x).chunk(2, -1)
        return self.out(F.silu(gate) * up)


class Cache:
    """The keys and values of what a model has read, for sequences of any length each.

    Attributes:
        lengths: how many tokens of each sequence it holds, ``(B,)``; kept in one place, where a captured step finds them.
        longest: the largest of them, or zero if they are not checked.
        checked: whether they are compared with the context, and with what is rewound: for that, a device is waited for.
    """

    def __init__(self, model: Any, batch: int) -> None:
        weight = model.embedding.weight
        width = weight.shape[1] // model.heads
        shape = (len(model.blocks), 2, batch, model.heads, model.context, width)
        self.kept = weight.new_zeros(shape)
        self._lengths, self._longest = torch.zeros(batch, dtype=torch.long, device=weight.device), 0
        self.checked = True

    @property
    def lengths(self) -> Integer[Tensor, " B"]:
        return self._lengths

    @lengths.setter
    def lengths(self, lengths: Integer[Tensor, " B"]) -> None:
        self._lengths.copy_(lengths)

    @property
    def longest(self) -> int:
        return self._longest if self.checked else 0

    @longest.setter
    def longest(self, longest: int) -> None:
        self._longest = longest

    def rewind(self, lengths: Integer[Tensor, " B"]) -> None:
        """Forget all but the first ``lengths`` tokens of each sequence, ``(B,)``."""
        if self.checked:
            if (lengths > self.lengths).any() or (lengths < 0).any():
                raise ValueError("a cache can be shortened only to lengths between zero and what it holds.")
            self.longest = int(lengths.max())
        self.lengths = lengths

    def extend(
        self,
        layer: int,
        places: Integer[Tensor, "B T"],
        k: Float[Tensor, "B heads T d"],
        v: Float[Tensor, "B heads T d"],
    ) -> tuple[Float[Tensor, "B heads context d"], Float[Tensor, "B heads context d"]]:
        """Write keys and values ``(B, heads, T, d)`` at their places ``(B, T)``; all that the layer holds, of the context's length."""
        index = places[:, None, :, None].expand_as(k)
        keys, values = self.kept[layer]
        keys.scatter_(2, index, k.to(keys.dtype))
        values.scatter_(2, index, v.to(values.dtype))
        return keys.to(k.dtype), values.to(v.dtype)


def rotation(context: int, width: int) -> Float[Tensor, "context 2 half"]:
    """Cosines and sines of the angles by which pairs of features turn at each position, ``(context, 2, width / 2)``."""
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2).double() / width)
    angles = torch.arange(context).double()[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()], 1).float()


def rotate(x: Float[Tensor, "B heads T d"], rotated: Float[Tensor, "... T 2 half"]) -> Float[Tensor, "B heads T d"]:
    """Turn the pairs of features of ``x``, ``(B, heads, T, d)``, by ``rotated``, ``(…, T, 2, d / 2)``."""
    cosine, sine = rotated.to(x.dtype).unbind(-2)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cosine - b * sine, a * sine + b * cosine], -1)


def multiply_adds(model: GPT, context: int = 256) -> float:
    """Of one forward pass at one token, on average over a context.

    An entry of a weight matrix is one (of the embedding once, as the output layer); attention adds two products with all tokens up to
    this one, half a context on average. A backward pass is taken for twice as many.

    Raises:
        TypeError: for what is no GPT.
        ValueError: for a context that it does not take.

    >>> multiply_adds(gpt_64x2(4096)) / 1e6
    0.389248
    """
    if not isinstance(model, GPT):
        raise TypeError(f"multiply_adds counts those of a kdlab.models.GPT, not of {type(model).__name__}.")
    if not 1 <= context <= model.context:
        raise ValueError(f"the context is from 1 to {model.context} tokens, not {context}.")
    width = model.embedding.embedding_dim
    attention = 2 * width * (context + 1) / 2
    matrices = [p.numel() for block in model.blocks for p in block.parameters() if p.ndim == 2]
    return model.embedding.weight.numel() + sum(matrices) + len(model.blocks) * attention


def gpt_64x2(vocabulary: int) -> GPT:
    """Width 64, 2 layers; with 4,096 tokens 0.36 M parameters."""
    return GPT(vocabulary, width=64, layers=2, heads=2)


def gpt_96x3(vocabulary: int) -> GPT:
    """Width 96, 3 layers; with 4,096 tokens 0.7 M parameters."""
    return GPT(vocabulary, width=96, layers=3, heads=3)


def gpt_224x2(vocabulary: int) -> GPT:
    """Width 224, 2 layers; with 4,096 tokens 2.14 M parameters. Half the blocks of :func:`gpt_224x4`."""
    return GPT(vocabulary, width=224, layers=2, heads=7)


def gpt_224x4(vocabulary: int) -> GPT:
    """Width 224, 4 layers; with 4,096 tokens 3.4 M parameters."""
    return GPT(vocabulary, width=224, layers=4, heads=7)


def gpt_192x4(vocabulary: int) -> GPT:
    """Width 192, 4 layers; with 16,384 tokens 4.9 M parameters."""
    return GPT(vocabulary, width=192, layers=4, heads=6, context=512)


def gpt_320x6(vocabulary: int) -> GPT:
    """Width 320, 6 layers; with 16,384 tokens 13 M parameters."""
    return GPT(vocabulary, width=320, layers=6, heads=5, context=512)


def gpt_704x13(vocabulary: int) -> GPT:
    """Width 704, 13 layers; with 16,384 tokens 89 M parameters."""
    return GPT(vocabulary, width=704, layers=13, heads=11, context=512)

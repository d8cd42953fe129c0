"""Causal language models of transformers, called as kdlab's own are."""

import torch
from torch import Tensor, nn

from ..models.gpt import check_tokens
from ..objectives import HeadLogits
from ..training import evaluation_mode


class CausalLM(nn.Module):
    """A model of ``transformers``, as teacher or student.

    Layers are named as in the model itself, behind ``"model."``, such as ``"model.model.layers.0"``.

    Args:
        model: such as ``AutoModelForCausalLM.from_pretrained(…)``.

    Raises:
        ValueError: if the model makes its logits in another way than by its head and a softcap.

    Attributes:
        fused: whether it returns :class:`~kdlab.objectives.vocabulary.HeadLogits`, with the softcap of its configuration.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    >>> CausalLM(LlamaForCausalLM(config))(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 50])
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.fused = model, False
        self.vocabulary = model.get_output_embeddings().weight.shape[0]
        self.context = getattr(model.config, "max_position_embeddings", 2**31)
        tokens = torch.arange(3, device=next(model.parameters()).device)[None]
        if tokens.is_meta:
            return
        with torch.no_grad(), evaluation_mode(self):
            ours, known = self(tokens), model(input_ids=tokens).logits
        if not torch.allclose(ours, known, rtol=0.02, atol=0.02 * known.abs().max().item()):
            raise ValueError(
                f"{type(model).__name__} scales its logits, or makes them otherwise than by its head and a softcap."
            )

    def forward(self, tokens: Tensor, cache: "Reread | None" = None) -> Tensor | HeadLogits:
        """Logits ``(B, T, V)`` of what follows each of ``tokens``, ``(B, T)``, with a cache after what it holds.

        Raises:
            ValueError: as :class:`~kdlab.models.gpt.GPT`'s.
        """
        check_tokens(tokens, self.vocabulary, self.context, 0 if cache is None else int(cache.lengths.max()))
        if cache is not None:
            tokens, places = cache.extend(tokens)
        # What is on the right of a token has no influence on it, so that rows of different length need no mask.
        hidden = self.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        if cache is not None:
            hidden = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
        head, softcap = (
            self.model.get_output_embeddings(),
            getattr(self.model.config, "final_logit_softcapping", None),
        )
        logits = HeadLogits(hidden, head.weight, head.bias, softcap)
        return logits if self.fused else logits.dense()

    def cache(self, batch: int) -> "Reread":
        """What was read, to be read again with each step: the same text as with a cache of keys and values, only slower."""
        return Reread(batch, next(self.parameters()).device)


class Reread:
    """The tokens of sequences of any length each; see :class:`kdlab.models.gpt.Cache`."""

    def __init__(self, batch: int, device):
        self.tokens = torch.zeros(batch, 0, dtype=torch.long, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)

    def extend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens with the new ones, and the places of these."""
        places = self.lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        room = int(places.max()) + 1 - self.tokens.shape[1]
        self.tokens = torch.cat([self.tokens, self.tokens.new_zeros(len(tokens), max(room, 0))], 1)
        self.tokens = self.tokens.scatter(1, places, tokens)
        self.lengths = self.lengths + tokens.shape[1]
        return self.tokens, places

    def rewind(self, lengths: Tensor) -> None:
        if (lengths > self.lengths).any() or (lengths < 0).any():
            raise ValueError("a cache can be shortened only to lengths between zero and what it holds.")
        self.lengths = lengths

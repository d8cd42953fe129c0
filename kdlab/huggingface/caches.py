"""What a model of transformers has read, for sequences of any length each: its keys and values, or the tokens."""

import torch
from torch import Tensor

from kdlab.shapes import Integer


class Reread:
    """The tokens, to be read again with each step; see :class:`kdlab.models.gpt.Cache`."""

    def __init__(self, batch: int, device: torch.device | str) -> None:
        self.tokens = torch.zeros(batch, 0, dtype=torch.long, device=device)
        self.lengths, self.longest = torch.zeros(batch, dtype=torch.long, device=device), 0

    def extend(self, tokens: Integer[Tensor, "B T"]) -> tuple[Integer[Tensor, "B all"], Integer[Tensor, "B T"]]:
        """All tokens with the new ones, and the places of these."""
        places = self.lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        self.longest += tokens.shape[1]
        room = self.longest - self.tokens.shape[1]
        self.tokens = torch.cat([self.tokens, self.tokens.new_zeros(len(tokens), max(room, 0))], 1)
        self.tokens = self.tokens.scatter(1, places, tokens)
        self.lengths = self.lengths + tokens.shape[1]
        return self.tokens, places

    def rewind(self, lengths: Integer[Tensor, " B"]) -> None:
        """Forget all but the first ``lengths`` tokens of each sequence, ``(B,)``."""
        _, self.longest = _checked(lengths, self.lengths)
        self.lengths = lengths


class KeysAndValues:
    """Keys and values in ``transformers``' own cache; see :class:`kdlab.models.gpt.Cache`.

    All rows end at the same place, as where it generates from prompts that are padded on the left: what a row has forgotten is not hidden
    but taken out, so that places in the cache lie as far apart as the tokens do, and windows are as wide as they should be. Layers with
    a window keep all that was read, since a row may go back.
    """

    def __init__(self, batch: int, device: torch.device | str) -> None:
        from transformers import DynamicCache

        self.kept = DynamicCache()
        self.lengths, self.longest, self.ragged = torch.zeros(batch, dtype=torch.long, device=device), 0, False
        self._held = self.lengths  # of what lies in the cache, more than that where it was rewound since

    def inputs(self, tokens: Integer[Tensor, "B T"]) -> dict:
        """What a model takes beside tokens ``(B, T)`` that go on from here."""
        self._take_out()
        new = torch.arange(tokens.shape[1], device=tokens.device)
        mask = None
        if self.ragged:
            places = torch.arange(self.longest + len(new), device=tokens.device)
            mask = (places >= self.longest - self.lengths[:, None]).long()
        positions = self.lengths[:, None] + new
        return {"past_key_values": self.kept, "use_cache": True, "attention_mask": mask, "position_ids": positions}

    def extended(self, tokens: Integer[Tensor, "B T"]) -> None:
        """That a model has read these tokens.

        Raises:
            RuntimeError: if nothing of them is in the cache.
        """
        self.longest += tokens.shape[1]
        if self.kept.get_seq_length() != self.longest:
            raise RuntimeError(
                "the model kept no keys and values, as with gradient checkpointing in training mode: model.eval()."
            )
        self.lengths = self._held = self.lengths + tokens.shape[1]

    def rewind(self, lengths: Integer[Tensor, " B"]) -> None:
        """Forget all but the first ``lengths`` tokens of each sequence, ``(B,)``."""
        shortest, self.longest = _checked(lengths, self.lengths)
        self.lengths, self.ragged = lengths, shortest < self.longest

    def _take_out(self) -> None:
        """Move what each row keeps to the end of what the longest keeps."""
        if self.lengths is self._held or self.kept.get_seq_length() == 0:
            return
        first = (
            self.kept.get_seq_length() - self._held - (self.longest - self.lengths)
        )  # of the row, left of what it keeps
        low, high = (int(x) for x in first.aminmax())
        index = (first[:, None] + torch.arange(self.longest, device=first.device)).clamp(min=0)[:, None, :, None]
        for layer in self.kept.layers:
            for name in ("keys", "values"):
                if (held := getattr(layer, name)) is None:  # of a layer that shares another's
                    continue
                if low == high:
                    kept = held[..., low : low + self.longest, :]
                else:
                    kept = held.gather(2, index.to(held.device).expand(-1, held.shape[1], -1, held.shape[3]))
                setattr(layer, name, kept)
        self._held = self.lengths


def _checked(lengths: Tensor, held: Tensor) -> tuple[int, int]:
    """The shortest and the longest of what is kept of sequences of these lengths."""
    if (lengths > held).any() or (lengths < 0).any():
        raise ValueError("a cache can be shortened only to lengths between zero and what it holds.")
    shortest, longest = torch.stack([*lengths.aminmax()]).tolist()
    return shortest, longest

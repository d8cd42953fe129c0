"""Language models: tokeniser and text data, generation, teacher caches."""

from .caches import CacheError, TeacherCache, write_cache
from .generation import draw, generate
from .text import OwnText, teacher_text
from .tokeniser import load_text_data, parse, read_tokeniser, tokenise, train_tokeniser

__all__ = [
    "CacheError",
    "OwnText",
    "TeacherCache",
    "draw",
    "generate",
    "load_text_data",
    "parse",
    "read_tokeniser",
    "teacher_text",
    "tokenise",
    "train_tokeniser",
    "write_cache",
]

"""Models of transformers and peft: called as kdlab's own are, and distilled in transformers' own Trainer or any other loop."""

from .answers import OwnAnswers
from .completions import DistilCompletions
from .distillation import Distillation
from .encoders import SentenceEncoder, all_minilm_l6_v2, load_sentences
from .models import CausalLM, without_adapter
from .trainer import Distil

__all__ = [
    "CausalLM",
    "Distil",
    "DistilCompletions",
    "Distillation",
    "OwnAnswers",
    "SentenceEncoder",
    "all_minilm_l6_v2",
    "load_sentences",
    "without_adapter",
]

"""A spec names one run completely; its hash is its identity."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from functools import cached_property

from ..language import Drafting, OwnText
from ..objectives import Objective, Term
from ..training import Recipe


@dataclass(frozen=True)
class Pretrained:
    """A teacher that somebody else trained: a network whose weights come with it, so that no run makes it and no record is of it.

    Attributes:
        student: its name, as of a spec's student.
        weights: the SHA-256 of their file.
    """

    student: str
    weights: str

    study, teacher = "teacher", None

    @cached_property
    def hash(self) -> str:
        return spec_hash({"pretrained": self.student, "weights": self.weights})

    @property
    def name(self) -> str:
        return self.student


@dataclass(frozen=True)
class Spec:
    """One run: which student learns what, from whom, on which data, how.

    Networks and data are named, so that another machine can make the same run: those of kdlab by their names, your own by their import
    paths, such as ``"my_package.nets:small"``, a function of the number of classes. The record names the checksum of the file that it is in.

    Attributes:
        study, arm: names for people, such as ``"first-distillation"`` and ``"kd"``.
        data: ``"cifar100"`` or another data set's name; of a text with vocabulary and context, ``"books-4096-256"``; or the import path of
            a function that returns an :class:`~kdlab.data.images.ImageData` or :class:`~kdlab.data.tokens.TextData`.
        student: name of a function in ``kdlab.models``, or the import path of one.
        objective: what is minimised, a sum of terms or a term.
        recipe: how. Its seed also draws the student's initial weights, so that runs with one seed are paired.
        teacher: the spec of the teacher's own run, a :class:`Pretrained` one, or None. An objective that needs none is only compared with it.
        train_examples: how many examples of the training split, from its start; None is all.
        omit: classes of which the student is shown no example; the teacher knows them.
        hold_out: whether the validation split is held out, and measured after every epoch; False is the literature's
            protocol, which trains on it too.
        text: of a language model, where the text comes from, if not from the corpus: ``"teacher"``, sequences that the teacher
            has written after the prompts of ``own_text``, or ``"student"``, the student's own, as ``own_text`` says.
        own_text: how that is written.
        kept: what is kept of the teacher, where the student learns from a cache: a kind of cache and a number of entries, such
            as ``("sampled", 12)``; None is all.
        from_teacher: how much of its teacher's weights the student begins with; True is a copy, and the rest of a share λ < 1 is
            drawn: λ·teacher + (1 − λ)·drawn. False: all are drawn.
        blocks: which of its teacher's blocks, in this order, a GPT of fewer begins with, beside all that is not in a block; () is all.
        drafting: how the student is tried as a draft of its teacher after training; None: it is not.
    """

    study: str
    arm: str
    data: str
    student: str
    objective: Objective | Term
    recipe: Recipe
    teacher: "Spec | Pretrained | None" = None
    train_examples: int | None = None
    omit: tuple[int, ...] = ()
    hold_out: bool = True
    text: str = "corpus"
    own_text: OwnText | None = None
    kept: tuple[str, int] | None = None
    from_teacher: bool | float = False
    blocks: tuple[int, ...] = ()
    drafting: Drafting | None = None

    def __post_init__(self):
        if self.text not in ("corpus", "teacher", "student") or (self.text == "corpus") != (self.own_text is None):
            raise ValueError('text is "corpus", or "teacher" or "student" with own_text, which says how it is written.')
        needs_teacher = self.text == "teacher" or self.kept or self.drafting or self.from_teacher
        if self.teacher is None and needs_teacher:
            raise ValueError("a teacher's text, what is kept of it, a draft and a copy need a teacher.")
        if not 0 <= self.from_teacher <= 1:
            raise ValueError(f"from_teacher is a share of the teacher's weights, from 0 to 1, not {self.from_teacher}.")
        if self.blocks and not self.from_teacher:
            raise ValueError("blocks are the teacher's: they need from_teacher.")
        if self.from_teacher and not self.blocks and self.teacher.student != self.student:
            raise ValueError(f"a copy of {self.teacher.student} is no {self.student}.")
        if isinstance(self.objective, Term):
            object.__setattr__(self, "objective", 1.0 * self.objective)
        # Functions are described by 64 digits of their code, which do not say what they close over.
        if found := re.search(r" at 0x|\btensor\(|\S+ [0-9a-f]{64}\b", repr(self.objective)):
            raise ValueError(
                f"an objective is known by its repr, and {found[0].strip()!r} in that of {self.arm} does not tell it from others: give that part of it a __repr__ "
                "that says all that it computes."
            )
        for name in (self.study, self.arm):
            if not re.fullmatch(r"[\w.+-]+", name):
                raise ValueError(f"study and arm name files: letters, digits, and . + - _ alone, not {name!r}.")

    def describe(self) -> dict:
        """The spec as plain JSON values: the objective as the formula that its ``repr`` prints, the recipe as its
        differences from the published one, so that a field added later leaves the identity of old runs alone."""
        recipe = asdict(self.recipe)
        # what came later is None
        own_text = {k: v for k, v in asdict(self.own_text or OwnText()).items() if v is not None}
        plain = {
            "study": self.study,
            "arm": self.arm,
            "data": self.data,
            "student": self.student,
            "objective": repr(self.objective),
            "recipe": {f.name: recipe[f.name] for f in fields(Recipe) if recipe[f.name] != f.default},
            "teacher": self.teacher and self.teacher.hash,
            "train_examples": self.train_examples,
            **({"omit": self.omit} if self.omit else {}),
            **({} if self.hold_out else {"hold_out": False}),
            **({} if self.own_text is None else {"text": self.text, "own_text": own_text}),
            **({"kept": self.kept} if self.kept else {}),
            **({"from_teacher": self.from_teacher} if self.from_teacher else {}),
            **({"blocks": self.blocks} if self.blocks else {}),
            **({"drafting": asdict(self.drafting)} if self.drafting else {}),
        }
        return json.loads(json.dumps(plain))

    @property
    def examples(self) -> tuple:
        """What makes the examples, and what a teacher says of them. Students that train side by side have it in common."""
        written = self.own_text if self.text == "teacher" else None
        return self.data, self.train_examples, self.omit, self.hold_out, written, self.kept

    @cached_property
    def hash(self) -> str:
        return spec_hash(self.describe())

    @property
    def name(self) -> str:
        """Study, arm, seed and the first digits of the hash; the stem of its files."""
        return f"{self.study}.{self.arm}.seed{self.recipe.seed}.{self.hash[:8]}"


def spec_hash(description: dict) -> str:
    """SHA-256 of a spec's canonical JSON."""
    return hashlib.sha256(json.dumps(description, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

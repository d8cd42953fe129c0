"""Runs on texts: what a language model trains on and from whom, and what is measured of it."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from ..data import TextData, Tokens, folder
from ..language import Drafting, TeacherCache, generate, teacher_text, try_draft, write_cache
from ..language.caches import text_checksum
from ..language.text import after_prompt, text_name, written
from ..models import Ahead
from ..objectives import Objective, PolicyGradient, forward_kl, reverse_kl
from ..objectives.checks import IGNORED
from ..training import agreement, measure_further, measure_tokens
from ..training.checks import needs_whole
from ..training.distributed import by_the_first, rank_and_world
from ..training.measures import all_logits, evaluation_mode
from ..training.protocols import depth_of, fuse, stands
from ..training.state import checksum, state_of
from ..training.stopping import Interruptible
from .spec import Spec


def check(spec: Spec) -> None:
    """That it asks for nothing that texts do not have; raises ValueError if it does."""
    if spec.omit or not spec.hold_out:
        raise ValueError(f"{spec.name}: of a text no class is omitted, and its validation split is always held out.")


def begin(student: nn.Module, spec: Spec, objective: Objective, teacher: nn.Module | None) -> None:
    """A new student stands on its teacher, if it is one that stands, and leaves its logits to the losses where they can do with it.

    Raises:
        ValueError: for one that stands, without a teacher.
    """
    if stands(student):
        if teacher is None:
            raise ValueError(f"{spec.student} stands on a trained model: its spec needs a teacher.")
        student.stand_on(teacher)
    if not needs_whole(objective, "texts"):
        fuse(student)


def lesson(
    spec: Spec, data: TextData, students: list[nn.Module], teacher: nn.Module | None, device, stop=None
) -> tuple:
    """What a spec's students train on, what they validate on, and who teaches.

    Raises:
        ValueError: for students that predict other numbers of further tokens.
    """
    depths = {depth_of(student) for student in students}
    if len(depths) > 1:
        raise ValueError("students that predict as many further tokens train side by side, and no others.")
    train = data.train if spec.train_examples is None else data.train[: spec.train_examples]
    train, source = language_data(spec, train, teacher, device, stop)
    fuse(teacher)
    if depth := depths.pop():
        ahead = Ahead(teacher, depth)
        fuse(ahead)
        return replace(train, ahead=depth), None, ahead
    return train, data.validation, source


def language_data(spec: Spec, train: Tokens, teacher, device, stop=None) -> tuple[Tokens, nn.Module | None]:
    """What a language model trains on, and who teaches: the corpus or what the teacher wrote, the teacher or its cache.

    What the teacher wrote, and caches, are kept in the data folder, under the checksum of all that made them. ``stop`` ends the writing, of
    which nothing is kept then.
    """
    if teacher is None or (spec.text != "teacher" and spec.kept is None):
        return train, teacher
    precision = spec.recipe.precision
    identity = checksum(state_of(teacher).items()), text_checksum(train), precision, torch.device(device).type
    if spec.text == "teacher":
        own = spec.own_text
        path = folder() / "written" / f"{text_name(*identity, own)}.bin"
        how = {"prompt": own.prompt, "temperature": own.temperature, "device": device, "precision": precision}
        write = partial(teacher_text, path, teacher, _alone(train, stop), **how)
        by_the_first(lambda: len(write()))  # the others wait for it
        train = write()
    if spec.kept is None:
        return train, teacher
    kind, entries = spec.kept
    path = folder() / "caches" / text_name(*identity, spec.text, spec.own_text, kind, entries)
    how = {"kind": kind, "entries": entries, "device": device, "precision": precision}
    by_the_first(lambda: path.exists() or write_cache(path, teacher, _alone(train, stop), **how))
    return train, TeacherCache(path, train, teacher)


def _alone(train: Tokens, stop) -> Tokens | Interruptible:
    """A text that may be interrupted, where one process is there to be asked."""
    return train if stop is None or rank_and_world()[1] > 1 else Interruptible(train, stop)


def validated(data, teacher, how) -> None:
    """After each epoch, what :func:`~kdlab.training.loop.fit` measures by itself."""


def measured(ended, data: TextData, teacher, how) -> Iterator[tuple[None, dict]]:
    """The measures of a record, of each student whose training came to its end, with a sample of what it writes, and how it fares as a draft."""
    students = [student for _, student in ended]
    if students and (depth := depth_of(students[0])):
        ahead = Ahead(teacher, depth)
        test = Interruptible(replace(data.test.split, ahead=depth), data.test.stop)
        found = [{"modules": measure_further(s, test, teacher=ahead, **how)} for s in students]
    else:
        found = measure_tokens(students, data.test, teacher=teacher, **how) if students else []
        for student, measures in zip(students, found, strict=True):
            measures["sample"] = sample_text(student, data, how["device"])
            if teacher is not None and data.test.context > 2 * OWN_PROMPT:
                measures["own_text"] = measured_own_text(student, data, teacher, how["device"])
    for (spec, student), measures in zip(ended, found, strict=True):
        if rewards := [term.reward for term in spec.objective.terms if isinstance(term, PolicyGradient)]:
            measures["policy"] = measured_policy(spec, student, rewards[0], data, teacher, how["device"])
        if spec.drafting:
            verifier = student.trunk if stands(student) else teacher
            measures["drafting"] = measured_drafting(spec.drafting, student, data, verifier, how["device"])
        yield None, measures


#: How the records' samples begin.
PROMPT = "It was in the spring of that year that"


def sample_text(student: nn.Module, data: TextData, device, *, tokens: int = 80) -> str:
    """How a language model goes on from ``PROMPT``, drawn at temperature one."""
    prompt = torch.tensor([data.tokeniser.encode(PROMPT).ids], device=device)
    generator = torch.Generator(device).manual_seed(0)
    written = generate(student, prompt, tokens=tokens, generator=generator)
    return data.tokeniser.decode(written[0].tolist())


#: How many texts measure a student on what it writes itself, and how many tokens of the test text each goes on from.
OWN_TEXTS, OWN_PROMPT = 64, 32


@torch.no_grad()
def measured_own_text(student: nn.Module, data: TextData, teacher: nn.Module, device) -> dict[str, float]:
    """How far a student is from its teacher on text that it has written itself, after prompts of the test text: means over its tokens.

    ``kl_to_teacher`` is KL(teacher‖student) and ``reverse_kl`` KL(student‖teacher), in nats a token; ``agreement`` is on the likeliest.
    """
    generator, sums, tokens = torch.Generator(device).manual_seed(0), defaultdict(float), 0
    blocks = data.test.spread(OWN_TEXTS)
    with evaluation_mode(student), evaluation_mode(teacher):
        for inputs, _, _ in blocks.batches(16):
            text, labels = after_prompt(written(student, inputs.to(device), OWN_PROMPT, 1.0, generator), OWN_PROMPT)
            counts = labels != IGNORED
            z, t = (all_logits(model(text))[counts] for model in (student, teacher))
            tokens += len(z)
            sums["kl_to_teacher"] += forward_kl(z, t, reduction="sum").item()
            sums["reverse_kl"] += reverse_kl(z, t, reduction="sum").item()
            sums["agreement"] += agreement(z, t) * len(z)
    return {name: total / tokens for name, total in sums.items()}


#: How many texts measure a policy, and how many of them go on from one prompt.
POLICY_TEXTS, PER_PROMPT = 256, 4


@torch.no_grad()
def measured_policy(spec: Spec, student: nn.Module, reward, data: TextData, reference, device) -> dict:
    """What a policy's texts earn after prompts of the test text, how far they lead from its reference, and how they read.

    ``reward`` and ``kl`` are means over the texts that go on from a prompt, one a prompt; the divergence is exact at each token, and
    its sum over a text's is unbiased. ``distinct`` is how many different tokens a text has, divided by its length.
    """
    own = replace(spec.own_text, copies=PER_PROMPT, after=0.0, probability=1.0)
    generator = torch.Generator(device).manual_seed(0)
    blocks = data.test.spread(POLICY_TEXTS)
    blocks = blocks[: len(blocks) // PER_PROMPT * PER_PROMPT]
    for model in (student, reference):
        model.eval()
        model.fused = False
    rewards, divergences, distinct, samples = [], [], [], []
    for inputs, labels, _ in blocks.batches(64):
        inputs, labels = own(student, inputs.to(device), labels.to(device), 1.0, generator)
        of_token = reverse_kl(student(inputs), reference(inputs), reduction="none")
        rewards.append(reward(labels))
        divergences.append(of_token.where(labels != IGNORED, 0.0).sum(1))
        written = [row[row != IGNORED].tolist() for row in labels]
        distinct += [len(set(text)) / len(text) for text in written]
        samples += [data.tokeniser.decode(text) for text in written[:: 4 * PER_PROMPT]]

    def by_prompt(parts):
        return torch.cat(parts).view(-1, PER_PROMPT).mean(1).tolist()

    return {
        "reward": by_prompt(rewards),
        "kl": by_prompt(divergences),
        "distinct": sum(distinct) / len(distinct),
        "samples": samples[:8],
    }


def measured_drafting(drafting: Drafting, student: nn.Module, data: TextData, verifier, device) -> dict:
    """How the student fares as a draft, on the beginnings of blocks of the test text."""
    blocks = data.test.spread(drafting.prompts)
    return try_draft(verifier, student, (block.to(device) for block, _, _ in blocks.batches(1)), drafting)

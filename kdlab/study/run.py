"""From specs to their records."""

import importlib
import inspect
import resource
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .. import models
from ..data import ImageData, TextData, Tokens, folder, load_cifar10, load_cifar100, load_digits
from ..files import sha256
from ..language import (
    Drafting,
    TeacherCache,
    generate,
    load_text_data,
    parse,
    teacher_text,
    try_draft,
    write_cache,
)
from ..language.caches import text_checksum
from ..language.text import after_prompt, text_name, written
from ..objectives import PolicyGradient, forward_kl, reverse_kl
from ..objectives.checks import IGNORED
from ..training import (
    Learner,
    fit_together,
    fitted_temperature,
    load_model,
    measure,
    measure_further,
    measure_tokens,
    predict,
    save_model,
)
from ..training.distributed import by_the_first, rank_and_world
from ..training.measures import accuracy, agreement, all_logits, evaluation_mode
from ..training.state import checksum, state_of
from ..training.stopping import Interruptible
from .records import RecordError, columns, find_record, provenance, write_record
from .spec import Spec


@dataclass(frozen=True)
class Run:
    """What :func:`run` leaves behind: the trained student, its test logits (None if it diverged, or of a text), and the record."""

    student: nn.Module
    test_logits: Tensor | None
    record: dict


def load(name: str) -> ImageData | TextData:
    """The data set that a spec names: images, or a text as :func:`~kdlab.language.tokeniser.load_text_data` names it; or of one's own,
    by the import path of a function that returns it."""
    loaders = {"cifar100": load_cifar100, "cifar10": load_cifar10, "digits": load_digits}
    if name in loaders:
        return loaders[name]()
    if ":" in name:
        return replace(imported(name)(), name=name)
    try:
        parse(name)
    except ValueError as error:
        raise ValueError(f"unknown data {name!r}: there are {', '.join(loaders)}; {error}") from None
    return load_text_data(name)


def network(name: str) -> Callable[[int], nn.Module]:
    """What makes a network of so many classes: a function of ``kdlab.models`` by its name, or one's own by its import path.

    Raises:
        ValueError: if there is none.
    """
    if ":" in name:
        return imported(name)
    if not hasattr(models, name):
        raise ValueError(f'kdlab.models has no {name!r}; a network of your own is named by its import path, such as "my_package.nets:small".')
    return getattr(models, name)


def imported(path: str):
    """What an import path names, ``"package.module:name"``.

    Raises:
        ValueError: if it is not there.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path!r} cannot be imported ({error}): it is \"package.module:name\", of a package that is installed, or whose folder is on PYTHONPATH."
        ) from error


def own_code(spec: Spec) -> dict[str, str]:
    """Of what a spec takes by its import path, the SHA-256 of the file that it is in: kdlab's commit says nothing of it."""
    paths = [path for path in (spec.student, spec.data) if ":" in path]
    return {path: sha256(Path(inspect.getsourcefile(imported(path)))) for path in paths}


def checkpoint_path(spec: Spec, book: Path) -> Path:
    return Path(book) / "checkpoints" / f"{spec.name}.safetensors"


def stored_student(spec: Spec, book: Path, num_classes: int) -> nn.Module | None:
    """The trained student of ``spec`` from ``book``, in evaluation mode; None where it is not stored.

    Raises:
        RecordError: if the stored file is not the one that its record names.
    """
    record = find_record(spec, Path(book) / "records")
    path = checkpoint_path(spec, book)
    if record is None or "checkpoint" not in record or not path.exists():
        return None
    if sha256(path) != record["checkpoint"]["sha256"]:
        raise RecordError(f"{path} is not the checkpoint that its record names.")
    model = network(spec.student)(num_classes)
    load_model(path, model)
    return model.eval()


def stored_in(places, spec: Spec, num_classes: int) -> nn.Module | None:
    """The student of a spec from the first of several books that has it, else None."""
    for place in places:
        if (model := stored_student(spec, place, num_classes)) is not None:
            return model
    return None


def run(spec: Spec, data: ImageData | TextData, **options) -> Run:
    """Train what ``spec`` says and measure it on the test split, once, after the last epoch.

    Arguments and errors as in :func:`run_together`, and:

    Raises:
        FloatingPointError: if it diverged and there is no ``book`` to record that.
    """
    (done,) = run_together([spec], data, **options)
    if "diverged" in done.record and options.get("book") is None:
        raise FloatingPointError(done.record["diverged"])
    return done


def run_together(
    specs: Sequence[Spec],
    data: ImageData | TextData,
    *,
    teacher: nn.Module | None = None,
    book: Path | None = None,
    keep: Collection[str] = (),
    device="cpu",
    resume: Path | None = None,
    checkpoint_seconds: float | None = None,
    report: Callable[[Spec, dict], None] | None = None,
    stop: Callable[[], bool] | None = None,
    stands: Callable[[int, int, int], None] | None = None,
    graphs: bool = True,
) -> list[Run]:
    """Train the students of ``specs`` side by side, and write the record of each.

    Args:
        specs: what to run: of one data set and its part, and of one teacher or none.
        data: the data set that they name.
        teacher: the trained model of their teacher's spec; where a spec has none, a model passed here is only
            compared with.
        book: folder whose ``records`` receive the records; None writes nothing.
        keep: names of specs whose students are stored in ``book/checkpoints`` too, named in their records.
        device, checkpoint_seconds: as in :func:`~kdlab.training.loop.fit`.
        stop: as there, and asked between the batches of the test split too.
        stands, graphs: as in :func:`~kdlab.training.loop.fit_together`.
        resume: folder for the checkpoints of running training; each is removed when its record is written.
        report: called with a spec and an epoch's entry.

    Raises:
        ValueError: if the specs do not fit each other, the data are not theirs, or their teacher is not given.
        RecordError: if a record exists already.
        Stopped: if ``stop`` said so; what was done is in ``resume``.
    """
    first = specs[0]
    for spec in specs:
        check(spec, first, data, teacher, book)
    origin = provenance(device)
    train, validation = training_data(first, data)
    source = teacher
    if isinstance(data, TextData):
        train, source = language_data(first, train, teacher, device)
    learners = []
    for spec in specs:
        torch.manual_seed(spec.recipe.seed)
        student = network(spec.student)(data.num_classes)  # first: runs of one seed begin with the same weights
        objective = spec.objective.fresh()  # what it learns belongs to this run
        if hasattr(student, "stand_on"):
            if teacher is None:
                raise ValueError(f"{spec.student} stands on a trained model: its spec needs a teacher.")
            student.stand_on(teacher)
        if spec.from_teacher:
            student.load_state_dict(teacher.state_dict())
        if not any("texts" in getattr(part, "needs_whole_batch_of", ()) for part in objective.modules()):
            fused(student)
        path = None if resume is None else Path(resume) / f"{spec.name}.safetensors"
        tell = None if report is None else lambda entry, spec=spec: report(spec, entry)
        rewrite = spec.own_text if spec.text == "student" else None
        learners.append(Learner(student, objective, spec.recipe, path, tell, rewrite))
    depths = {getattr(learner.student, "depth", 0) for learner in learners}
    if len(depths) > 1:
        raise ValueError("students that predict as many further tokens train side by side, and no others.")
    if depth := depths.pop():
        train, validation, source = replace(train, ahead=depth), None, models.Ahead(teacher, depth)
    for teaching in (teacher, source):
        fused(teaching)
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    histories = fit_together(
        learners,
        train=train,
        teacher=source,
        validation=validation,
        device=device,
        checkpoint_seconds=checkpoint_seconds,
        stop=stop,
        stands=stands,
        graphs=graphs,
    )
    shared = {
        "provenance": origin,
        "data": {
            "name": data.name,
            "checksum": data.checksum,
            "split": {
                "train": len(train),
                "validation": len(data.validation) if first.hold_out else 0,
                "test": len(data.test),
            },
        },
        "selection": "last epoch; the test split was touched once, after it",
        "students_in_process": len(specs),
        "peak_memory_bytes": peak_memory(device),
    }
    writes = book is not None and rank_and_world()[0] == 0
    data = replace(data, test=Interruptible(data.test, stop), validation=Interruptible(data.validation, stop))
    how = {"device": device, "precision": first.recipe.precision}
    ended = [
        (spec, learner.student)
        for spec, learner, history in zip(specs, learners, histories, strict=True)
        if not isinstance(history, FloatingPointError)
    ]
    outcomes = iter(
        (measured_texts if isinstance(data, TextData) else measured_images)(ended, data, teacher, how)
    )
    done = []
    for spec, learner, history in zip(specs, learners, histories, strict=True):
        content = {
            **shared,
            "recipe": asdict(spec.recipe),
            "parameters": models.count_parameters(learner.student),
            **({"own_code": code} if (code := own_code(spec)) else {}),
        }
        if spec.recipe.best_by:
            content["selection"] = f"the epoch of the {spec.recipe.best_by} on the validation split; the test split was touched once, after it"
        logits = None
        if isinstance(history, FloatingPointError):
            content |= {"diverged": str(history), "test": None}
        else:
            logits, found = next(outcomes)
            content |= {
                "seconds": sum(entry["seconds"] for entry in history),
                "examples_per_second": float(np.median([entry["examples_per_second"] for entry in history])),
                "epochs": columns(history),
                "test": found,
            }
        record = {"spec": spec.describe(), "spec_hash": spec.hash, **content}
        if writes:
            if spec.name in keep and "diverged" not in content:
                path = checkpoint_path(spec, book)
                save_model(path, learner.student, {"spec_hash": spec.hash})
                content["checkpoint"] = {"file": path.name, "sha256": sha256(path)}
            record = write_record(spec, Path(book) / "records", content)
            if learner.checkpoint is not None:
                learner.checkpoint.unlink(missing_ok=True)
        done.append(Run(learner.student.eval(), logits, record))
    return done


def check(spec: Spec, first: Spec, data: ImageData | TextData, teacher, book) -> None:
    """That a spec can be run with what is given, beside ``first``."""
    if data.name != spec.data:
        raise ValueError(f"the spec asks for {spec.data}, but the data are {data.name}.")
    if spec.teacher is not None and teacher is None:
        raise ValueError(f"the spec asks for the teacher {spec.teacher.name}, but none was given.")
    network(spec.student)
    if isinstance(data, TextData) and (spec.omit or not spec.hold_out):
        raise ValueError(
            f"{spec.name}: of a text no class is omitted, and its validation split is always held out."
        )
    if not isinstance(data, TextData) and (spec.own_text or spec.kept or spec.drafting):
        raise ValueError(f"{spec.name}: texts, caches and drafts are for language models.")
    if spec.examples != first.examples:
        raise ValueError(f"{spec.name} and {first.name} have other training data.")
    if spec.teacher and first.teacher and spec.teacher.hash != first.teacher.hash:
        raise ValueError(f"{spec.name} and {first.name} have other teachers.")
    if book is not None and find_record(spec, Path(book) / "records"):
        raise RecordError(f"{spec.name} has its record already.")


def training_data(spec: Spec, data: ImageData | TextData):
    """What a spec trains on and, if it holds it out, what it validates on."""
    train = data.train
    if not spec.hold_out:
        both = (data.train, data.validation)
        train = replace(
            train,
            images=torch.cat([split.images for split in both]),
            labels=torch.cat([split.labels for split in both]),
        )
    if spec.omit:
        train = train[~torch.isin(train.labels, torch.tensor(spec.omit))]
    if spec.train_examples is not None:
        train = train[: spec.train_examples]
    return train, data.validation if spec.hold_out else None


def fused(model) -> None:
    """A language model that can leave its logits to the losses does so."""
    if hasattr(model, "fused"):
        model.fused = True


def language_data(spec: Spec, train: Tokens, teacher, device) -> tuple[Tokens, nn.Module | None]:
    """What a language model trains on, and who teaches: the corpus or what the teacher wrote, the teacher or its cache.

    What the teacher wrote, and caches, are kept in the data folder, under the checksum of all that made them.
    """
    if teacher is None or (spec.text != "teacher" and spec.kept is None):
        return train, teacher
    precision = spec.recipe.precision
    identity = checksum(state_of(teacher).items()), text_checksum(train)
    if spec.text == "teacher":
        own = spec.own_text
        path = folder() / "written" / f"{text_name(*identity, own)}.bin"
        how = {"prompt": own.prompt, "temperature": own.temperature, "device": device, "precision": precision}
        write = partial(teacher_text, path, teacher, train, **how)
        by_the_first(lambda: len(write()))  # the others wait for it
        train = write()
    if spec.kept is None:
        return train, teacher
    kind, entries = spec.kept
    path = folder() / "caches" / text_name(*identity, spec.text, spec.own_text, kind, entries)
    how = {"kind": kind, "entries": entries, "device": device, "precision": precision}
    by_the_first(lambda: path.exists() or write_cache(path, teacher, train, **how))
    return train, TeacherCache(path, train, teacher)


def measured_images(ended, data: ImageData, teacher, how) -> Iterator[tuple[Tensor, dict]]:
    """Test logits and the measures of a record, of each student whose training came to its end.

    ``fitted`` is what is measured once more after the logits are divided by the one temperature that fits the validation
    split best, where that was held out.
    """
    labels, superclass = data.test.labels, torch.tensor(data.superclass_of)
    teacher_logits = None if teacher is None else predict(teacher, data.test, **how)
    for spec, student in ended:
        logits = predict(student, data.test, **how)
        wrong = logits.argmax(-1) != labels
        within = superclass[logits.argmax(-1)[wrong]] == superclass[labels[wrong]]
        found = {
            **measure(logits, labels, teacher_logits),
            "errors_within_superclass": within.float().mean().item() if len(within) else 0.0,
        }
        if spec.hold_out:
            temperature = fitted_temperature(predict(student, data.validation, **how), data.validation.labels)
            refitted = measure(logits / temperature, labels, teacher_logits)
            kept = ("cross_entropy", "calibration_error", "kl_to_teacher")
            found["fitted"] = {"temperature": temperature, **{k: refitted[k] for k in kept if k in refitted}}
        if spec.omit:
            found["omitted"] = measured_omission(spec, student, logits, data, how["device"])
        yield logits, found


def measured_texts(ended, data: TextData, teacher, how) -> Iterator[tuple[None, dict]]:
    """The same of language models, with a sample of what each writes, and how a draft fares."""
    students = [student for _, student in ended]
    if students and hasattr(students[0], "depth"):
        ahead = models.Ahead(teacher, students[0].depth)
        test = Interruptible(replace(data.test.split, ahead=ahead.depth), data.test.stop)
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
            verifier = getattr(student, "trunk", teacher)
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
    blocks = Interruptible(data.test.spread(OWN_TEXTS), getattr(data.test, "stop", None))
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
    blocks = Interruptible(blocks, getattr(data.test, "stop", None))
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
    blocks = Interruptible(data.test.spread(drafting.prompts), data.test.stop)
    return try_draft(verifier, student, (block.to(device) for block, _, _ in blocks.batches(1)), drafting)


def measured_omission(spec: Spec, student, logits: Tensor, data: ImageData, device) -> dict:
    """Accuracy on classes that the student was never shown: as it is, among these classes alone, and with their bias raised.

    A class that no example has gets too low a bias (Hinton et al. 2015, section 3). ``among_omitted`` needs none: of the omitted
    classes, which has the largest logit. ``accuracy_with_bias`` adds to the logits of all omitted classes the one number that is
    best for all validation images.
    """
    omitted = torch.tensor(spec.omit)
    unseen = torch.isin(data.test.labels, omitted)
    validated = predict(student, data.validation, device=device, precision=spec.recipe.precision)
    raised = torch.zeros(logits.shape[-1]).index_fill(0, omitted, 1.0)
    choices = [b / 4 for b in range(61)]
    best = max(choices, key=lambda b: accuracy(validated + b * raised, data.validation.labels))
    moved = logits + best * raised
    return {
        "accuracy": accuracy(logits[unseen], data.test.labels[unseen]),
        "among_omitted": accuracy(logits[unseen][:, omitted], torch.searchsorted(omitted, data.test.labels[unseen])),
        "bias": best,
        "accuracy_with_bias": accuracy(moved[unseen], data.test.labels[unseen]),
        "accuracy_of_all_with_bias": accuracy(moved, data.test.labels),
    }


def peak_memory(device) -> int:
    """The most that was in use, in bytes: of the device, or of this process where that is a CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

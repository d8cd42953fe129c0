"""Acceptance: whether training on this CUDA device is what it is said to be, on synthetic data, in a minute or two.

Each check returns what is wrong, in sentences: none, if all is well. ``kdlab gpu`` runs them all, and tests run each. On a CPU they
hold as well: there is nothing to capture there.
"""

import json
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from itertools import pairwise, product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ..data import Split, Tokens
from ..files import atomic_write
from ..language import decoding as language_decoding
from ..language import generate, speculate
from ..models import GPT, MultiToken
from ..objectives import (
    CRD,
    DIST,
    ActivationAttention,
    CrossEntropy,
    DecoupledKD,
    ForwardKL,
    GeneralisedJSD,
    HiddenMSE,
    InfoNCE,
    NegativeLogAcceptance,
    Objective,
    PermutedSoftTargets,
    Projector,
    ReverseKL,
    RKDAngle,
    RKDDistance,
    SimilarityPreserving,
    SkewedForwardKL,
    SmoothedLabels,
    SoftTargets,
    SpreadSoftTargets,
    Term,
    TotalVariation,
)
from ..objectives.schedules import Linear
from ..study.records import provenance
from ..training import Learner, LogitsOfViews, Recipe, Stopped, fit_together
from ..training import group as training_group
from ..training.graphs import WARM_UP, GraphedStep
from ..training.mixup import mixed

#: Of the synthetic data: classes, words, and examples.
CLASSES, WORDS, EXAMPLES = 10, 48, 48


class Small(nn.Module):
    """The smallest network with the layers that the plans' objectives look at: ``layer1`` to ``layer3``, and ``fc``."""

    def __init__(self, width: int = 4):
        super().__init__()
        widths = 3, width, 2 * width, 2 * width
        for number, (before, after) in enumerate(pairwise(widths), 1):
            convolution = nn.Conv2d(before, after, 3, stride=2 if number == 1 else 1, padding=1, bias=False)
            setattr(self, f"layer{number}", nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU()))
        self.fc = nn.Linear(2 * width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.layer3(self.layer2(self.layer1(images))).mean((2, 3)))


class Waiting(Term):
    """A term that makes the host wait for the device, as a careless one does."""

    needs_teacher = False

    def forward(self, *, student_logits, labels, **_):
        loss = F.cross_entropy(student_logits.float(), labels)
        return loss * (1.0 if loss.item() > 0 else 0.0)


def kd() -> Objective:
    return 0.1 * CrossEntropy() + 0.9 * SoftTargets(4.0)


#: What the plans train images with. The last ones change in the course of training or draw random numbers, and are not captured.
IMAGES: dict[str, Callable[[], Objective]] = {
    "alone": lambda: 1.0 * CrossEntropy(),
    "kd": kd,
    "smoothed": lambda: 1.0 * SmoothedLabels(0.1),
    "spread": lambda: 0.1 * CrossEntropy() + 0.9 * SpreadSoftTargets(4.0),
    "standardised": lambda: 0.1 * CrossEntropy() + 9 * SoftTargets(2.0, standardised=True),
    "dkd": lambda: CrossEntropy() + 1.0 * DecoupledKD(1.0, 6.0, temperature=4),
    "dist": lambda: CrossEntropy() + 1.0 * DIST(2.0, 2.0, temperature=4),
    "at": lambda: CrossEntropy() + 1000 * ActivationAttention("layer1", "layer2", "layer3"),
    "rkd": lambda: CrossEntropy() + 25 * RKDDistance("input:fc") + 50 * RKDAngle("input:fc"),
    "sp": lambda: CrossEntropy() + 3000 * SimilarityPreserving("layer3"),
    "fitnet": lambda: CrossEntropy() + 100 * HiddenMSE("layer2", projector=Projector("conv", 8, 12)),
    "infonce": lambda: CrossEntropy() + InfoNCE("input:fc", projector=Projector("linear", 8, 12), same_class=False),
    "scheduled": lambda: CrossEntropy() + Linear(0.0, 1.0) * SoftTargets(4.0),
    "permuted": lambda: 0.1 * CrossEntropy() + 0.9 * PermutedSoftTargets(4.0),
    "crd": lambda: (
        CrossEntropy()
        + 0.8 * CRD("input:fc", student_width=8, teacher_width=12, examples=EXAMPLES, negatives=16, width=8)
    ),
}
EAGER = {"scheduled", "permuted", "crd"}

#: What the plans train language models with, from hidden states.
TEXTS: dict[str, Callable[[], Objective]] = {
    "alone": lambda: 1.0 * CrossEntropy(),
    "kd": lambda: 0.1 * CrossEntropy() + 0.9 * ForwardKL(),
    "reverse": lambda: 1.0 * ReverseKL(),
    "skewed": lambda: 1.0 * SkewedForwardKL(0.1),
    "jsd": lambda: 1.0 * GeneralisedJSD(0.5, scaled=True),
    "tv": lambda: 1.0 * TotalVariation(),
    "acceptance": lambda: 1.0 * NegativeLogAcceptance(),
    "standardised": lambda: 1.0 * SoftTargets(2.0, standardised=True),
    "hidden": lambda: (
        1.0 * ForwardKL() + 1.0 * HiddenMSE(("blocks.0", "blocks.0"), projector=Projector("linear", 16, 24))
    ),
}


def images() -> Split:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (EXAMPLES, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Split(pictures, torch.randint(0, CLASSES, (EXAMPLES,), generator=generator), (0.5,) * 3, (0.29,) * 3)


def text(context: int = 8) -> Tokens:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, WORDS, (EXAMPLES * context + 1,), generator=generator).to(torch.int16)
    return Tokens(ids, context, torch.ones(WORDS, dtype=torch.long))


def gpt(seed: int, width: int = 16) -> GPT:
    torch.manual_seed(seed)
    return GPT(WORDS, width=width, layers=1, heads=2, context=24)


def small(seed: int, width: int = 4) -> Small:
    torch.manual_seed(seed)
    return Small(width)


class Trained:
    """Students trained beside each other.

    Attributes:
        weights: of each, float64, on the CPU.
        steps: of each captured step how often it was taken, whether there was a capture, and which students were left out of it.
        said: the warnings.
    """

    def __init__(
        self,
        device,
        objectives,
        *,
        seeds=None,
        of_texts=False,
        strict=False,
        graphs=True,
        folder=None,
        steps=None,
        views=None,
        kept=False,
        **recipe,
    ):
        seeds = [0] * len(objectives) if seeds is None else seeds
        make, train = (gpt, text()) if of_texts else (small, images())
        teacher = make(99, 24 if of_texts else 6).to(device)
        if views is not None:
            train = train.with_views(views)
        if kept:
            teacher = LogitsOfViews(teacher, train, device=device)
        how = {
            "epochs": 1,
            "batch_size": 8,
            "learning_rate": 0.01,
            "schedule": "cosine",
            "augment": not of_texts,
        } | recipe
        learners = []
        for number, (objective, seed) in enumerate(zip(objectives, seeds, strict=True)):
            student = make(seed)
            path = None if folder is None else Path(folder) / f"{number}.safetensors"
            learners.append(Learner(student, objective().fresh(), Recipe(seed=seed, **how), path))
        for model in [teacher, *(x.student for x in learners)] if of_texts else []:
            model.fused = True
        taken = [0]

        def stop():
            taken[0] += 1
            return steps is not None and taken[0] > steps

        with remembered(strict) as made, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with stopped_is_fine() if steps else nullcontext():
                outcomes = fit_together(
                    learners, train=train, teacher=teacher, device=device, graphs=graphs, stop=stop,
                    checkpoint_seconds=None if folder is None else 1e9,
                )  # fmt: skip
                if errors := [x for x in outcomes if isinstance(x, Exception)]:
                    raise errors[0]
        self.steps = [
            (step.taken, step.graph is not None, {step.students.index(s) for s in step.eager}) for step in made
        ]
        made.clear()  # else its memory would stay
        self.said = [str(warning.message) for warning in said]
        self.weights = [
            torch.cat([value.detach().cpu().double().flatten() for value in x.student.state_dict().values()])
            for x in learners
        ]


@contextmanager
def stopped_is_fine():
    try:
        yield
    except Stopped:
        pass


@contextmanager
def remembered(strict: bool):
    """The captured steps of the trainings within; ``strict``: a replay that waits for the device is an error."""
    made = []

    class Step(GraphedStep):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

        def __call__(self, batches, views):
            if not (strict and self.taken > WARM_UP):
                return super().__call__(batches, views)
            torch.cuda.set_sync_debug_mode("error")
            try:
                return super().__call__(batches, views)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    before, training_group.GraphedStep = training_group.GraphedStep, Step
    try:
        yield made
    finally:
        training_group.GraphedStep = before


def apart(found: list[Tensor], other: list[Tensor], what: list[str], sentence: str, most: float = 0.0) -> list[str]:
    """For each pair that differs by more than ``most`` of its length a sentence."""
    distances = [((a - b).norm() / a.norm()).item() for a, b in zip(found, other, strict=True)]
    return [
        f"{name}: {sentence} (by {d:.2g} of the weights)"
        for name, d in zip(what, distances, strict=True)
        if not d <= most
    ]


def on_cuda(device) -> bool:
    return torch.device(device).type == "cuda"


# The checks -------------------------------------------------------------------------------------------------------------


def resume(device) -> list[str]:
    """A run that was stopped and resumed ends where the whole one does, bit for bit."""
    wrong = []
    for name in ("sgd", "adam", "adamw", "gpt"):
        of_texts, optimizer = name == "gpt", "adamw" if name == "gpt" else name
        objectives, seeds = ([TEXTS["kd"]], [0]) if of_texts else ([kd, kd], [0, 1]) if name == "sgd" else ([kd], [0])
        how = {"of_texts": of_texts, "optimizer": optimizer, "seeds": seeds}
        whole = Trained(device, objectives, **how)
        with tempfile.TemporaryDirectory() as folder:
            Trained(device, objectives, folder=folder, steps=5, **how)
            resumed = Trained(device, objectives, folder=folder, **how)
        wrong += apart(
            whole.weights, resumed.weights, [f"{name}, seed {seed}" for seed in seeds], "resumed is not the whole"
        )
    return wrong


def image_objectives(device) -> list[str]:
    """Every objective of the image plans is captured, but for those that cannot be, and gives what it gives eagerly."""
    return _objectives(device, IMAGES, EAGER, of_texts=False)


def text_objectives(device) -> list[str]:
    """The same of language models, from hidden states, under bfloat16."""
    return _objectives(device, TEXTS, set(), of_texts=True, optimizer="adamw", precision="bfloat16")


def _objectives(device, cases, eager, **how) -> list[str]:
    names = list(cases)
    graphed = Trained(device, cases.values(), **how)
    plain = Trained(device, cases.values(), graphs=False, **how)
    wrong = apart(plain.weights, graphed.weights, names, "the graph gives other weights than its steps")
    if on_cuda(device):
        (_, captured, left_out) = graphed.steps[0] if graphed.steps else (0, False, set())
        if not captured:
            return [*wrong, "nothing was captured"]
        found = {names[number] for number in left_out}
        wrong += [f"{name}: not captured; {' '.join(graphed.said)}" for name in sorted(found - eager)]
        wrong += [f"{name}: captured, though it draws or changes" for name in sorted(eager - found)]
    return wrong


def draws(device) -> list[str]:
    """What draws random numbers depends neither on who trains beside it nor on where it was stopped."""
    wrong, names = [], ["permuted", "crd"]
    for name in names:
        alone = Trained(device, [IMAGES[name]]).weights
        beside = Trained(device, [IMAGES[other] for other in (*names, "kd")]).weights[names.index(name)]
        wrong += apart(alone, [beside], [name], "beside others is not what it is alone")
        with tempfile.TemporaryDirectory() as folder:
            Trained(device, [IMAGES[name]], folder=folder, steps=5)
            resumed = Trained(device, [IMAGES[name]], folder=folder).weights
        wrong += apart(alone, resumed, [name], "resumed is not the whole")
    return wrong


def mixtures(device) -> list[str]:
    """Of mixed examples, too, the graph gives what its steps give, and a run that was stopped and resumed the whole one."""
    wrong, objectives, names = [], [lambda: 1.0 * SoftTargets(4.0)], ["of mixtures"]
    graphed, plain = (Trained(device, objectives, mixup=True, graphs=graphs) for graphs in (True, False))
    wrong += apart(plain.weights, graphed.weights, names, "the graph gives other weights than its steps")
    with tempfile.TemporaryDirectory() as folder:
        Trained(device, objectives, mixup=True, folder=folder, steps=5)
        resumed = Trained(device, objectives, mixup=True, folder=folder)
    wrong += apart(plain.weights, resumed.weights, names, "resumed is not the whole")
    return wrong if not on_cuda(device) or graphed.steps[0][1] else [*wrong, "nothing was captured"]


def waiting(device) -> list[str]:
    """A term that waits for the device is reported, leaves those beside it captured, and harms nothing that comes after."""
    beside = Trained(device, [lambda: 1.0 * Waiting(), kd])
    after = Trained(device, [kd])
    plain = Trained(device, [kd], graphs=False)
    wrong = apart(plain.weights, beside.weights[1:], ["kd"], "beside it, other weights")
    wrong += apart(plain.weights, after.weights, ["kd"], "after it, other weights")
    if on_cuda(device):
        wrong += [] if beside.steps[0][1:] == (True, {0}) else [f"of two, {beside.steps[0][2]} were not captured"]
        wrong += (
            []
            if any("Waiting" in said and "waits for the device" in said for said in beside.said)
            else ["nobody was told"]
        )
        wrong += [] if after.steps[0][1:] == (True, set()) else ["after it nothing is captured"]
    return wrong


def replays(device) -> list[str]:
    """Twenty replays, and the batches of an epoch, of which none waits for the device."""
    if not on_cuda(device):
        return []
    steps = Trained(device, [kd, IMAGES["dkd"]], seeds=[0, 1], epochs=5, strict=True).steps
    for split, mixup in ((images(), False), (images(), True), (text(), False)):
        augment = isinstance(split, Split)
        batches = split.to(device).batches(8, generator=torch.Generator().manual_seed(0), augment=augment)
        batches = mixed(batches, seed=0, epoch=0) if mixup else batches
        next(batches)  # an epoch's indices and augmentation are copied to the device
        torch.cuda.set_sync_debug_mode("error")
        try:
            list(batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [] if steps and steps[0][1] and steps[0][0] >= WARM_UP + 20 else ["there were no twenty replays"]


def memory(device) -> list[str]:
    """Groups that are trained one after another leave nothing behind."""
    if not on_cuda(device):
        return []
    held = []
    for _ in range(6):
        Trained(device, [kd])
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated(device))
    return [f"six groups leave {held} bytes"] if held[-1] > held[1] * 1.01 else []


def training_mode_teacher(device) -> list[str]:
    """A teacher in training mode normalises each batch by itself, whoever else is taught."""
    how = {"teacher_mode": "train"}
    alone = Trained(device, [kd], seeds=[0], **how).weights
    beside = Trained(device, [kd, kd], seeds=[0, 1], **how).weights[:1]
    return apart(alone, beside, ["seed 0"], "beside another seed is not what it is alone")


class Products(TorchDispatchMode):
    """Counts products of float32, and those of less."""

    def __init__(self):
        super().__init__()
        self.full, self.lower = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if str(function).startswith(("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten.convolution")):
            kinds = {x.dtype for x in tree_flatten(args)[0] if isinstance(x, Tensor)}
            self.full += torch.float32 in kinds and torch.bfloat16 not in kinds
            self.lower += torch.bfloat16 in kinds
        return function(*args, **(kwargs or {}))


def kept_views(device) -> list[str]:
    """A teacher's kept logits of all views teach what the teacher does, whose step is captured as well."""
    cases, how = [kd, IMAGES["dkd"]], {"seeds": [0, 1], "views": 5}
    live, kept = Trained(device, cases, **how), Trained(device, cases, kept=True, **how)
    wrong = apart(live.weights, kept.weights, ["kd", "dkd"], "kept logits teach something else", 1e-4)
    return wrong + (["nothing was captured"] if on_cuda(device) and kept.steps[0][1:] != (True, set()) else [])


def products(device) -> list[str]:
    """In a step under bfloat16 no product is made in float32, those with the head of a vocabulary included."""
    wrong = []
    for what, objective, of_texts in (("images", kd, False), ("texts", TEXTS["kd"], True)):
        with Products() as seen:
            Trained(device, [objective], of_texts=of_texts, graphs=False, precision="bfloat16")
        if not seen.lower or (seen.full and on_cuda(device)):  # a CPU's heads stay in float32, as in the records
            wrong.append(f"{what}: {seen.full} products in float32 and {seen.lower} in bfloat16")
    return wrong


def speculation(device) -> list[str]:
    """Greedy speculation writes what greedy generation writes."""
    verifier, draft = gpt(1, 24).to(device), gpt(2).to(device)
    prompts = torch.arange(12, device=device).view(3, 4)
    plain = generate(verifier, prompts, tokens=8, temperature=0)
    drafted = speculate(verifier, draft, prompts, tokens=8, draft_length=3, temperature=0).text
    return [] if torch.equal(plain.cpu(), drafted.cpu()) else ["speculation writes another text"]


def decoding(device) -> list[str]:
    """Captured steps of decoding write, token for token, what the steps do: plain and speculative, likeliest and drawn."""
    verifier, draft = gpt(1, 24).to(device), gpt(2).to(device)
    modules, in_a_row = (MultiToken(gpt(1, 24), 3, in_a_row=how).to(device) for how in (False, True))
    prompts, lengths = torch.arange(12, device=device).view(3, 4), torch.tensor([4, 2, 3], device=device)
    how = {"tokens": 18, "lengths": lengths, "stop": (7, 9)}
    ways = {
        "generation": lambda **options: generate(verifier, prompts, **how, **options),
        "speculation": lambda **options: speculate(verifier, draft, prompts, **how, **options).text,
        "its own modules": lambda **options: speculate(modules.trunk, modules, prompts, **how, **options).text,
        "modules in a row": lambda **options: speculate(in_a_row.trunk, in_a_row, prompts, **how, **options).text,
    }
    wrong = []
    for (name, write), temperature in product(ways.items(), (0.0, 1.0)):
        texts = []
        with captures() as made:
            for graphs in (True, False):
                generator = torch.Generator(device).manual_seed(0)
                texts.append(write(temperature=temperature, generator=generator, graphs=graphs).cpu())
        wrong += [] if torch.equal(*texts) else [f"{name}, temperature {temperature:g}: the graph writes another text"]
        wrong += [f"{name}: nothing was captured"] if on_cuda(device) and not made else []
    return wrong


@contextmanager
def captures():
    """The graphs of decoding within."""
    made, before = [], language_decoding.capture
    language_decoding.capture = lambda *how: made.append(before(*how)) or made[-1]
    try:
        yield made
    finally:
        language_decoding.capture = before


def other_device(device) -> list[str]:
    """A device that is not the first trains as well, its captured steps too."""
    if not on_cuda(device) or torch.cuda.device_count() < 2:
        return []
    last = f"cuda:{torch.cuda.device_count() - 1}"
    return apart(
        Trained("cuda:0", [kd]).weights, Trained(last, [kd]).weights, ["kd"], f"{last} gives other weights", 1e-3
    )


#: By name, what is checked.
CHECKS: dict[str, Callable[[str], list[str]]] = {
    check.__name__.replace("_", " "): check
    for check in (
        resume, image_objectives, text_objectives, draws, mixtures, waiting, replays, memory, training_mode_teacher, kept_views, products,
        speculation, decoding, other_device,
    )
}  # fmt: skip


def accept(device: str, seconds: float, out: Path) -> dict:
    """Run the checks and write what they found to ``out``, after each of them, so that what is known stays known.

    No check begins after ``seconds``. An error of one is what that one found.
    """
    until = time.monotonic() + seconds
    result = {"part": "acceptance", "provenance": provenance(device), "checks": []}
    for name, check in CHECKS.items():
        began = time.monotonic()
        found = {"name": name, "what": check.__doc__.splitlines()[0], "wrong": None, "seconds": 0.0}
        if began < until:
            try:
                found["wrong"] = check(device)
            except Exception as error:
                found["wrong"] = [f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"]
            found["seconds"] = time.monotonic() - began
        result["checks"].append(found)
        with atomic_write(out) as part:
            part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result

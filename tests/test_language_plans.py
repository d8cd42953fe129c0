"""The plans of language models: every arm alike but for what it asks, named once, and run beside what it can be."""

import json
from dataclasses import replace

import pytest
import torch

from kdlab import models
from kdlab.language import Drafting, OwnText, parse
from kdlab.language.caches import KINDS
from kdlab.objectives import CrossEntropy, ForwardKL
from kdlab.study import Spec
from kdlab.study.plans import PLANS
from kdlab.study.runner import beside, every_spec
from kdlab.training import Recipe

SPEC = Spec("tests", "kd", "books-4096-256", "gpt_64x2", 1.0 * ForwardKL(), Recipe())
TAUGHT = replace(SPEC, teacher=SPEC)
OTHERS = [
    replace(TAUGHT, kept=("sampled", 12)),
    replace(TAUGHT, kept=("sampled", 13)),
    replace(TAUGHT, kept=("top-k", 12)),
    replace(TAUGHT, drafting=Drafting()),
    replace(TAUGHT, drafting=Drafting(tokens=33)),
    replace(TAUGHT, text="teacher", own_text=OwnText(32)),
    replace(TAUGHT, text="student", own_text=OwnText(32)),
    replace(TAUGHT, text="student", own_text=OwnText(32, probability=0.5)),
    replace(TAUGHT, text="student", own_text=OwnText(32, after=0.5)),
    replace(TAUGHT, text="student", own_text=OwnText(32, temperature=0.7)),
    replace(TAUGHT, text="student", own_text=OwnText(31)),
]

every_plan = pytest.mark.parametrize("name", ["language-small", "language"])


def arms(name):
    found = {}
    for spec in PLANS[name]():
        if spec.study != "teacher":
            found.setdefault(spec.arm, []).append(spec)
    return found


@every_plan
def test_every_arm_has_three_seeds_or_more_and_one_difference(name):
    for specs in arms(name).values():
        assert [spec.recipe.seed for spec in specs] == list(range(len(specs))) and len(specs) >= 3
        first = specs[0].describe()
        for spec in specs[1:]:
            other = spec.describe()
            teacher = {"teacher": None} if spec.arm.endswith("-assisted") else {}  # each its own
            assert {**other, "recipe": {**other["recipe"], "seed": None}, **teacher} == {
                **first, "recipe": {**first["recipe"], "seed": None}, **teacher,
            }  # fmt: skip


@every_plan
def test_all_students_read_as_many_tokens_and_have_one_teacher(name):
    teacher, *specs = PLANS[name]()
    distilled = {spec.recipe.seed: spec.hash for spec in specs if spec.arm == "kd"}
    assert teacher.teacher is None
    for spec in specs:
        assisted = spec.arm.endswith("-assisted")
        assert spec.teacher.hash == (distilled[spec.recipe.seed] if assisted else teacher.hash)
    assert {spec.data for spec in specs} == {teacher.data}
    recipe, read = specs[0].recipe, specs[0].recipe.epochs * specs[0].recipe.epoch_examples
    for spec in specs:
        longer = spec.arm.endswith("equal-compute")
        assert replace(spec.recipe, seed=0, epochs=recipe.epochs) == replace(recipe, seed=0)
        assert spec.recipe.epochs > recipe.epochs if longer else spec.recipe.epochs == recipe.epochs
    assert read < teacher.recipe.epochs * teacher.recipe.epoch_examples
    assert recipe.epoch_examples % recipe.batch_size == 0


def multiply_adds(name, data):
    """Of one look at one token, on average over a context: each matrix's entries, and attention's two products."""
    _, vocabulary, context = parse(data)
    with torch.device("meta"):
        model = getattr(models, name)(vocabulary)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    return matrices + len(model.blocks) * 2 * model.embedding.weight.shape[1] * (context + 1) / 2


@every_plan
@pytest.mark.parametrize("prefix", ["", "second-"])
def test_at_equal_compute_a_student_alone_spends_what_the_teacher_s_looks_cost(name, prefix):
    found = arms(name)
    second = next(arm for arm in found if arm.endswith("-alone")).removesuffix("alone")
    prefix = second if prefix else ""
    (alone, *_), (distilled, *_) = (found[f"{prefix}{arm}"] for arm in ("alone-equal-compute", "kd"))
    assert alone.student == distilled.student
    student, teacher = (multiply_adds(model, alone.data) for model in (alone.student, alone.teacher.student))
    spent = 3 * student * alone.recipe.epochs, (3 * student + teacher) * distilled.recipe.epochs
    assert spent[0] == pytest.approx(spent[1], rel=0.02)


@every_plan
def test_caches_and_texts_are_of_the_blocks_with_which_they_are_compared(name):
    found = arms(name)
    examples = {spec.train_examples for arm in ("kd-same-text", "teacher-text") for spec in found[arm]}
    for kind in KINDS:
        examples |= {spec.train_examples for spec in found[f"{kind}-12"]}
        assert all(spec.kept == (kind, 12) for spec in found[f"{kind}-12"])
    ((blocks,),) = [examples]
    assert blocks >= found["kd"][0].recipe.epoch_examples
    for arm, specs in found.items():
        assert all((spec.train_examples is None) == (arm not in ("kd-same-text", "teacher-text") and not spec.kept)
                   for spec in specs)  # fmt: skip


@every_plan
def test_models_take_what_the_data_are(name):
    specs = PLANS[name]()
    contexts = {student: getattr(models, student)(300).context for student in {spec.student for spec in specs}}
    for spec in specs:
        _, vocabulary, context = parse(spec.data)
        assert contexts[spec.student] >= context
        assert spec.own_text is None or spec.own_text.prompt < context
        if spec.arm == "timesN":
            assert spec.objective.weights == (float(vocabulary),)
        if spec.text == "teacher":
            assert not spec.objective.needs_teacher and spec.kept is None


@every_plan
def test_the_weights_of_labels_and_teacher_sum_to_one(name):
    """But for N times the loss, and what looks at layers too."""
    for arm, specs in arms(name).items():
        weights = specs[0].objective.weights
        if arm == "soft-falling":
            assert all(weights[0](done) + weights[1](done) == pytest.approx(1) for done in (0.0, 0.3, 1.0))
        elif arm != "timesN":
            assert sum(weights[:2]) == pytest.approx(1)


@pytest.mark.parametrize("name", ["modules-small", "modules"])
def test_modules_differ_in_kind_and_in_what_they_learn_from(name):
    model, *specs = PLANS[name]()
    found = arms(name)
    assert {len(of_arm) for of_arm in found.values()} == {3} and len(found) == 6
    assert len({replace(spec.recipe, seed=0) for spec in specs}) == 1
    for arm, (first, *_) in found.items():
        assert first.teacher.hash == model.hash and first.data == model.data
        assert first.objective.needs_teacher == ("distilled" in arm)
        with torch.device("meta"):
            student, trunk = (getattr(models, which)(300) for which in (first.student, model.student))
        assert student.in_a_row == arm.startswith("row-") and max(g for g, _ in first.drafting.rounds) == student.depth
        assert {n: v.shape for n, v in student.trunk.state_dict().items()} == {
            n: v.shape for n, v in trunk.state_dict().items()
        }


@pytest.mark.parametrize("name", ["drafts-small", "drafts"])
def test_drafts_differ_in_what_they_learn_from_alone(name):
    verifier, *specs = PLANS[name]()
    _, vocabulary, context = parse(verifier.data)
    assert all(spec.teacher.hash == verifier.hash and spec.data == verifier.data for spec in specs)
    assert len({replace(spec.recipe, seed=0) for spec in specs}) == 1
    assert {len(of_arm) for of_arm in arms(name).values()} == {3}
    ((student, drafting),) = {(spec.student, spec.drafting) for spec in specs}
    assert drafting.prompts >= 200
    longest = drafting.prompt + drafting.tokens + max(length for length, _ in drafting.rounds)
    for which in (student, verifier.student):
        assert getattr(models, which)(300).context >= longest
    with torch.device("meta"):
        sizes = [models.count_parameters(getattr(models, which)(vocabulary)) for which in (student, verifier.student)]
    assert 5 * sizes[0] < sizes[1]
    beside_each_other = beside(specs[0], specs, device="cpu")
    assert {spec.arm for spec in beside_each_other} == set(arms(name))


# Identity


def test_what_is_left_at_its_default_is_not_in_the_identity():
    """So that records from before there were language models keep their names."""
    plain = {"study", "arm", "data", "student", "objective", "recipe", "teacher", "train_examples"}
    assert set(SPEC.describe()) == plain
    assert replace(TAUGHT, text="corpus", own_text=None, kept=None).hash == TAUGHT.hash
    images = [spec for spec in every_spec() if spec.data == "cifar100" and not spec.from_teacher]
    assert all(set(spec.describe()) <= plain | {"omit", "hold_out"} for spec in images) and len(images) > 50


def test_where_the_text_comes_from_and_what_is_kept_are():
    described = [spec.describe() for spec in (TAUGHT, *OTHERS)]
    assert [json.loads(json.dumps(each)) for each in described] == described
    assert len({spec.hash for spec in (TAUGHT, *OTHERS)}) == len(OTHERS) + 1
    assert described[1]["kept"] == ["sampled", 12] and described[6]["text"] == "teacher"
    assert described[6]["own_text"]["prompt"] == 32


# Beside each other


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_students_of_other_examples_are_not_run_beside_each_other(device):
    specs = [TAUGHT, *OTHERS]
    alone = {spec.arm for spec in specs}
    assert alone == {"kd"}
    found = [len(beside(spec, specs, device=device)) for spec in specs]
    # The corpus and the students that write for themselves are one group; each cache and the teacher's text are alone.
    assert found == [8, 1, 1, 1, 8, 8, 1, 8, 8, 8, 8, 8]


@every_plan
def test_groups_of_a_plan_share_what_they_learn_from(name):
    specs = PLANS[name]()
    left = list(specs)
    while left:
        group = beside(left[0], left, device="cuda")
        assert len({spec.examples for spec in group}) == len({spec.kept for spec in group}) == 1
        assert len({spec.text == "teacher" for spec in group}) == 1
        left = [spec for spec in left if spec not in group]
    cached = [spec for spec in specs if spec.kept]
    assert len(beside(cached[0], specs, device="cuda")) == 3  # its seeds


def test_an_objective_of_labels_alone_may_be_compared_with_the_teacher():
    alone = replace(TAUGHT, objective=1.0 * CrossEntropy())
    assert beside(TAUGHT, [TAUGHT, alone], device="cpu") == [TAUGHT, alone]

"""Students that begin with their teacher's weights, and the plans that ask what that is worth."""

from dataclasses import replace

import pytest
import torch

from kdlab.models import GPT, begin_from, resnet8
from kdlab.study.spec import Spec
from kdlab.study.surprises import KEPT, PATIENCE, SHARES, SHOWN, cut, fidelity, fidelity_teacher, patient


def gpt(layers, seed):
    torch.manual_seed(seed)
    return GPT(11, width=8, layers=layers, heads=2).double()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_weights_and_running_statistics(share):
    torch.manual_seed(0)
    student, teacher = resnet8(5).double(), resnet8(5).double()
    teacher(torch.randn(4, 3, 32, 32, dtype=torch.double))  # running statistics move
    before, theirs = ({k: v.clone() for k, v in net.state_dict().items()} for net in (student, teacher))
    begin_from(student, teacher, share)
    for name, value in student.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, share * theirs[name] + (1 - share) * before[name])
        assert torch.equal(teacher.state_dict()[name], theirs[name])


def test_all_blocks_in_their_order_are_the_teacher():
    teacher, tokens = gpt(3, 0), torch.randint(11, (2, 5))
    begin_from(student := gpt(3, 1), teacher, blocks=(0, 1, 2))
    assert torch.equal(student(tokens), teacher(tokens))


def test_kept_blocks_are_those_that_were_named():
    teacher = gpt(4, 0)
    begin_from(student := gpt(2, 1), teacher, blocks=(0, 3))
    for kept, source in zip(student.blocks, (teacher.blocks[0], teacher.blocks[3]), strict=True):
        assert all(torch.equal(kept.state_dict()[name], value) for name, value in source.state_dict().items())
    assert all(
        torch.equal(student.state_dict()[name], value)
        for name, value in teacher.state_dict().items()
        if not name.startswith("blocks.")
    )


@pytest.mark.parametrize(
    ("blocks", "share", "sentence"),
    [
        ((0,), 1.0, "has 2 blocks and the teacher 4"),
        ((0, 4), 1.0, "has 2 blocks and the teacher 4"),
        ((), 1.0, "differ in the names or shapes"),
        ((0, 1), 1.5, "from 0 to 1, not 1.5"),
    ],
)
def test_what_does_not_fit_changes_nothing(blocks, share, sentence):
    student = gpt(2, 1)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(ValueError, match=sentence):
        begin_from(student, gpt(4, 0), share, blocks=blocks)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_arms_of_a_plan_differ_in_their_beginning_alone():
    """Or, of *patient*, in what is shown and for how long; the rate of the long trainings is that of the middle ones."""
    found = {}
    for plan, arms in ((fidelity, len(SHARES)), (cut, 2 * len(KEPT)), (patient, len(SHOWN) * len(PATIENCE))):
        look = lambda spec: found.get(spec.hash)  # noqa: E731
        tries = plan(look)
        for spec in tries:
            found[spec.hash] = {
                "test": {},
                "epochs": {"validation.accuracy": [0.1], "validation.bits_per_byte": [2.0]},
            }
        while len(more := plan(look)) > len(tries):
            tries = more
            for spec in tries:
                found.setdefault(
                    spec.hash, {"test": {}, "epochs": {"validation.accuracy": [0.0], "validation.bits_per_byte": [3.0]}}
                )
        asked = [spec for spec in tries if spec.study == plan.__name__ and not spec.arm.startswith("tune-")]
        assert len(asked) == 3 * arms and len({spec.arm for spec in asked}) == arms
        shown = {"learning_rate": 1.0, "seed": 0, "teacher_view": "same", "mixup": False}
        alike = {
            replace(s, arm="x", from_teacher=False, blocks=(), recipe=replace(s.recipe, **shown)).hash for s in asked
        }
        # cut: labels alone, and beside the teacher; patient: its lengths
        assert len(alike) == {fidelity: 1, cut: 2, patient: len(PATIENCE)}[plan]
        if plan is patient:
            *_, middle, long = (
                {s.arm.rsplit("-", 1)[0]: s.recipe.learning_rate for s in asked if s.recipe.epochs == epochs}
                for epochs in PATIENCE
            )
            assert middle == long and middle.keys() == SHOWN.keys()


def test_a_spec_says_what_it_begins_with():
    source = fidelity_teacher()
    spec = Spec("s", "a", "cifar100", "resnet8", source.objective, source.recipe, source)
    assert "from_teacher" not in spec.describe() and replace(spec, from_teacher=0.5).describe()["from_teacher"] == 0.5
    assert replace(spec, from_teacher=True).describe()["from_teacher"] is True
    for options, sentence in (
        ({"from_teacher": 2.0}, "from 0 to 1, not 2.0"),
        ({"blocks": (0,)}, "need from_teacher"),
        ({"from_teacher": True, "student": "resnet20"}, "a copy of resnet8 is no resnet20"),
    ):
        with pytest.raises(ValueError, match=sentence):
            replace(spec, **options)


def test_a_share_of_nothing_changes_no_counter():
    student, teacher = (torch.nn.BatchNorm1d(2) for _ in range(2))
    teacher(torch.randn(4, 2))
    begin_from(student, teacher, 0.0)
    assert student.num_batches_tracked == 0 and not student.running_mean.any()

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kdlab.objectives import rkd_angle, rkd_distance, similarity_preserving

every_loss = pytest.mark.parametrize("loss", [rkd_distance, rkd_angle, similarity_preserving])
rkd = pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
seeds = st.integers(0, 1000)


def batch(examples, *widths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(examples, width, generator=generator, dtype=torch.float64) for width in widths]


def gradient(loss, s, t):
    s = s.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(s, t), s)[0]


def rotation(width, seed=0):
    return torch.linalg.qr(batch(width, width, seed=seed)[0])[0]


# The published formulas, written out


def huber(x):
    return x**2 / 2 if abs(x) <= 1 else abs(x) - 0.5


def distance_loop(student, teacher):
    pairs = list(itertools.product(range(len(student)), repeat=2))

    def distances(x):
        mean = sum(math.dist(x[i], x[j]) for i, j in pairs if i != j) / (len(pairs) - len(x))
        return [math.dist(x[i], x[j]) / mean for i, j in pairs]

    return sum(huber(s - t) for s, t in zip(distances(student), distances(teacher), strict=True)) / len(pairs)


def angle_loop(student, teacher):
    triples = list(itertools.product(range(len(student)), repeat=3))

    def cosine(x, i, j, k):
        one, other = x[i] - x[j], x[k] - x[j]
        return 0.0 if j in (i, k) else (one @ other / one.norm() / other.norm()).item()

    return sum(huber(cosine(student, *ijk) - cosine(teacher, *ijk)) for ijk in triples) / len(triples)


def similarity_loop(student, teacher):
    def gram(x):
        rows = [[(a @ b).item() for b in x] for a in x]
        return [[entry / math.hypot(*row) for entry in row] for row in rows]

    squares = [
        (s - t) ** 2
        for row, other in zip(gram(student), gram(teacher), strict=True)
        for s, t in zip(row, other, strict=True)
    ]
    return sum(squares) / len(squares)


@pytest.mark.parametrize(
    ("loss", "loop"),
    [(rkd_distance, distance_loop), (rkd_angle, angle_loop), (similarity_preserving, similarity_loop)],
)
@given(st.integers(2, 5), st.integers(1, 4), st.integers(1, 4), seeds)
def test_losses_are_the_published_formulas(loss, loop, examples, width, teacher_width, seed):
    student, teacher = batch(examples, width, teacher_width, seed=seed)
    assert loss(student, teacher).item() == pytest.approx(loop(student, teacher), rel=1e-10, abs=1e-13)


def test_losses_are_the_released_code():
    student, teacher = batch(6, 4, 7)

    def distances(x):
        d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        return d / d[d > 0].mean()

    def angles(x):
        difference = F.normalize(x.unsqueeze(0) - x.unsqueeze(1), p=2, dim=2)
        return torch.bmm(difference, difference.transpose(1, 2)).view(-1)

    def similarities(x):
        return F.normalize(x @ x.T)

    torch.testing.assert_close(rkd_distance(student, teacher), F.smooth_l1_loss(distances(student), distances(teacher)))
    torch.testing.assert_close(rkd_angle(student, teacher), F.smooth_l1_loss(angles(student), angles(teacher)))
    expected = (similarities(teacher) - similarities(student)).pow(2).sum() / 6**2
    torch.testing.assert_close(similarity_preserving(student, teacher), expected)


# Invariants


@every_loss
@given(seeds)
def test_a_rotation_of_either_space_changes_nothing(loss, seed):
    student, teacher = batch(5, 3, 4, seed=seed)
    turned = loss(student @ rotation(3, seed), teacher @ rotation(4, seed))
    torch.testing.assert_close(turned, loss(student, teacher), rtol=1e-9, atol=1e-12)


@every_loss
@given(seeds, st.floats(0.01, 100))
def test_the_scale_of_either_space_changes_nothing(loss, seed, scale):
    student, teacher = batch(5, 3, 4, seed=seed)
    torch.testing.assert_close(loss(scale * student, teacher / scale), loss(student, teacher), rtol=1e-9, atol=1e-12)


@rkd
@given(seeds)
def test_where_the_batch_lies_changes_nothing(loss, seed):
    student, teacher, shift = batch(5, 3, 3, 3, seed=seed)
    moved = loss(student + shift[0], teacher - shift[1])
    torch.testing.assert_close(moved, loss(student, teacher), rtol=1e-9, atol=1e-12)


def test_similarities_depend_on_the_origin():
    student, teacher = batch(5, 3, 3)
    assert not torch.isclose(similarity_preserving(student + 1, teacher), similarity_preserving(student, teacher))


@every_loss
@given(seeds)
def test_the_order_of_examples_does_not_matter(loss, seed):
    student, teacher = batch(6, 3, 4, seed=seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher), rtol=1e-11, atol=1e-14)
    assert loss(student[order], teacher) != loss(student, teacher) or torch.equal(order, order.sort().values)


@every_loss
def test_a_similar_space_costs_nothing(loss):
    (student,) = batch(6, 3)
    teacher = torch.cat([student @ rotation(3), torch.zeros(6, 2).double()], 1) * 7
    slope = gradient(loss, student, teacher)
    assert loss(student, teacher) < 1e-28
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-13)


@every_loss
def test_gradient_is_that_of_the_value(loss):
    student, teacher = batch(4, 3, 2)
    assert torch.autograd.gradcheck(loss, (student.requires_grad_(), teacher.requires_grad_()))


# Extremes


@every_loss
@pytest.mark.parametrize("identical", [[0, 0, 1, 2], [0, 0, 0, 0], [0, 1, 0, 1]])
def test_identical_examples_have_finite_gradients(loss, identical):
    student, teacher = batch(4, 3, 3)
    same = student[identical]
    for s, t in (
        (same, teacher),
        (student, teacher[identical]),
        (same, teacher[identical]),
        (0 * same, teacher),
    ):
        assert loss(s, t).isfinite()
        assert gradient(loss, s, t).isfinite().all()


@rkd
def test_identical_examples_are_pulled_nowhere_by_each_other(loss):
    student, teacher = batch(2, 3, 3)
    assert not gradient(loss, student[[0, 0]], teacher).any()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_the_float64_oracle(loss, dtype):
    student, teacher = (x.to(dtype) for x in batch(16, 32, 64))
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), loss(student.double(), teacher.double()), rtol=1e-5, atol=0)


@every_loss
def test_features_of_any_shape_are_flattened(loss):
    student, teacher = torch.randn(4, 3, 2, 2), torch.randn(4, 5, 7)
    assert torch.equal(loss(student, teacher), loss(student.flatten(1), teacher.flatten(1)))


# Transforms of torch


@every_loss
def test_compiles_without_a_graph_break(loss):
    torch._dynamo.reset()
    student, teacher = batch(4, 3, 2)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(student, teacher), loss(student, teacher))


@every_loss
def test_vmap_and_grad(loss):
    students, teachers = torch.randn(3, 4, 5), torch.randn(3, 4, 2)
    pairs = list(zip(students, teachers, strict=True))
    torch.testing.assert_close(torch.func.vmap(loss)(students, teachers), torch.stack([loss(*p) for p in pairs]))
    slopes = torch.func.vmap(torch.func.grad(loss))(students, teachers)
    torch.testing.assert_close(slopes, torch.stack([gradient(loss, *p) for p in pairs]))


@every_loss
def test_batches_without_relations_are_refused(loss):
    for student, teacher in (
        (torch.zeros(1, 3), torch.zeros(1, 3)),
        (torch.zeros(3), torch.zeros(3, 2)),
        (torch.zeros(3, 2), torch.zeros(3)),
    ):
        with pytest.raises(ValueError, match=r"relations need at least two examples of shape \(B, ...\), not shapes"):
            loss(student, teacher)
    with pytest.raises(ValueError, match="do not belong to the same examples"):
        loss(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(TypeError, match="teacher features must be floating point"):
        loss(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64))

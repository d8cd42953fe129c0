import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from kdlab import objectives
from kdlab.objectives import Projector, hidden_cosine, hidden_mse, match_layers
from kdlab.objectives.features import channels_last, same_size, unit

every_loss = pytest.mark.parametrize("loss", [hidden_mse, hidden_cosine])
every_kind = pytest.mark.parametrize("kind", Projector.KINDS)
both_halves = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])

pairs = arrays(
    np.float64,
    st.tuples(st.just(2), st.integers(1, 3), st.integers(1, 4), st.integers(1, 6)),
    elements=st.integers(-1000, 1000).map(lambda i: i / 100),
).map(torch.from_numpy)


def hidden(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(2, *shape, generator=generator, dtype=torch.float64)


def gradient(loss, s, *arguments, **options):
    s = s.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(s, *arguments, **options), s)[0]


# Values and gradients


@given(pairs)
def test_mean_squared_error_is_that_of_torch(features):
    s, t = features
    torch.testing.assert_close(hidden_mse(s, t), nn.MSELoss()(s, t), rtol=1e-13, atol=1e-14)
    closed = 2 * (s - t) / s.shape[-1]
    torch.testing.assert_close(gradient(hidden_mse, s, t, reduction="sum"), closed, rtol=1e-13, atol=1e-14)


@given(pairs)
def test_cosine_is_that_of_torch(features):
    s, t = features
    expected = 1 - nn.functional.cosine_similarity(s, t, -1, eps=0)
    expected = expected.where(s.any(-1) & t.any(-1), 1.0)
    torch.testing.assert_close(hidden_cosine(s, t, reduction="none"), expected, rtol=1e-12, atol=1e-13)


@every_loss
@pytest.mark.parametrize("reduction", ["batchmean", "sum", "none"])
def test_gradient_is_that_of_the_value(loss, reduction):
    s, t = hidden(2, 3, 4).requires_grad_()
    mask = torch.tensor([[True, False, True], [True, True, False]])
    assert torch.autograd.gradcheck(lambda s, t: loss(s, t, mask=mask, reduction=reduction), (s, t))


@every_loss
@given(pairs)
def test_losses_are_never_negative_and_zero_at_equality(loss, features):
    for dtype in (torch.float64, torch.float32):
        s, t = features.to(dtype)
        s = s + s.eq(0)  # no zero vector
        assert (loss(s, t, reduction="none") >= 0).all()
        assert (loss(s, s.clone(), reduction="none") == 0).all()
        assert (gradient(loss, s, s.clone()) == 0).all()


@given(pairs, st.floats(0.01, 100), st.floats(0.01, 100))
def test_cosine_ignores_lengths(features, a, b):
    s, t = features
    torch.testing.assert_close(hidden_cosine(a * s, b * t), hidden_cosine(s, t), rtol=1e-12, atol=1e-13)
    along = (gradient(hidden_cosine, s, t) * s).sum(-1)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-13)


def test_cosines_known_by_hand():
    s, t = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0], [-4.0, 0.0], [1.0, 1.0]])
    losses = hidden_cosine(s.expand(4, 2), t, reduction="none")
    torch.testing.assert_close(losses, torch.tensor([0, 1, 2, 1 - math.sqrt(0.5)]))


def test_a_zero_vector_has_cosine_zero_and_no_gradient():
    zero, other = torch.zeros(1, 3), torch.tensor([[1.0, 2.0, 3.0]])
    for s, t in ((zero, other), (other, zero), (zero, zero)):
        assert hidden_cosine(s, t).item() == 1
        assert not gradient(hidden_cosine, s, t).any()


def test_a_small_angle_is_not_lost_in_rounding():
    s = torch.tensor([[1.0, 1e-5]])
    assert hidden_cosine(s, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(5e-11, rel=1e-4)


# Masks


@every_loss
@given(seed=st.integers(0, 1000), other=st.sampled_from([-1e4, 0.0, 7.0]))
def test_what_is_masked_does_not_matter(loss, seed, other):
    s, t = hidden(3, 4, 5, seed=seed)
    mask = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[0, 0] = True
    s2, t2 = s.clone(), t.clone()
    s2[~mask], t2[~mask] = other, 2.0
    for reduction in ("batchmean", "sum", "none"):
        options = {"mask": mask, "reduction": reduction}
        assert torch.equal(loss(s, t, **options), loss(s2, t2, **options))
    slope = gradient(loss, s, t, mask=mask)
    assert torch.equal(slope, gradient(loss, s2, t2, mask=mask)) and not slope[~mask].any()
    torch.testing.assert_close(loss(s, t, mask=mask), loss(s[mask], t[mask]), rtol=1e-12, atol=1e-14)


@every_loss
@given(cut=st.integers(1, 5))
def test_accumulated_pieces_make_the_whole(loss, cut):
    s, t = hidden(6, 4, 5)
    mask = torch.rand(6, 4) < 0.6
    mask[:, 0] = True
    parts = [(s[:cut], t[:cut], mask[:cut]), (s[cut:], t[cut:], mask[cut:])]
    pieces = sum(loss(s, t, mask=mask_, count=mask.sum()) for s, t, mask_ in parts)
    torch.testing.assert_close(pieces, loss(s, t, mask=mask), rtol=1e-13, atol=0)
    slopes = [gradient(loss, s, t, mask=mask_, count=mask.sum()) for s, t, mask_ in parts]
    torch.testing.assert_close(torch.cat(slopes), gradient(loss, s, t, mask=mask), rtol=1e-13, atol=0)


# Numbers


@every_loss
@both_halves
def test_half_precision_is_near_the_float64_oracle(loss, dtype):
    s, t = hidden(64, 32).to(dtype)
    value = loss(s, t, reduction="none")
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), loss(s.double(), t.double(), reduction="none"), rtol=3e-6, atol=0)
    slope, oracle = gradient(loss, s, t), gradient(loss, s.double(), t.double())
    assert slope.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(slope.double(), oracle, rtol=eps, atol=eps * oracle.abs().max().item())


@both_halves
def test_squares_that_half_precision_cannot_hold(dtype):
    s, t = torch.tensor([[6e4, -6e4]]).to(dtype), torch.tensor([[-6e4, 0.0]]).to(dtype)
    expected = (s.double() - t.double()).square().mean().item()
    assert hidden_mse(s, t).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1e-20, 1e20, 1e30, 3e38])
def test_directions_of_any_magnitude(size):
    s = torch.tensor([[3.0, 4.0], [-4.0, 3.0]]) / 4
    t = torch.tensor([[4.0, 3.0], [4.0, -3.0]])
    torch.testing.assert_close(
        hidden_cosine(size * s, t, reduction="none"), hidden_cosine(s, t, reduction="none"), rtol=1e-4, atol=0
    )
    if size >= 1e-30:  # below, the gradient is larger than float32
        torch.testing.assert_close(
            size * gradient(hidden_cosine, size * s, t), gradient(hidden_cosine, s, t), rtol=1e-5, atol=1e-6
        )


# Transforms of torch


@every_loss
def test_compiles_without_a_graph_break(loss):
    s, t = hidden(4, 5)
    mask = torch.tensor([True, True, False, True])
    torch._dynamo.reset()
    compiled = torch.compile(lambda s, t, mask: loss(s, t, mask=mask), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(s, t, mask), loss(s, t, mask=mask))


@every_loss
def test_vmap_and_grad(loss):
    s, t = hidden(4, 5)
    torch.testing.assert_close(torch.func.vmap(loss)(s, t), loss(s, t, reduction="none"))
    one_by_one = torch.func.vmap(torch.func.grad(loss))(s, t)
    torch.testing.assert_close(one_by_one, gradient(loss, s, t, reduction="sum"))


# What is refused


@every_loss
def test_features_that_do_not_fit_are_refused(loss):
    s = torch.zeros(2, 3)
    for error, sentence, *arguments in (
        (TypeError, "student features must be a torch.Tensor, not list", [[0.0]], s),
        (TypeError, "teacher features must be floating point, not torch.int64", s, s.long()),
        (ValueError, "student features have entries that are NaN or infinite", s + math.nan, s),
        (ValueError, r"\(2, 3\) and teacher features of shape \(2, 4\) differ in size: give a projector", s, torch.zeros(2, 4)),
        (ValueError, r"\(2, 3\) and teacher features of shape \(5, 3\) do not belong to the same", s, torch.zeros(5, 3)),
        (ValueError, "do not belong to the same", torch.tensor(1.0), torch.tensor(1.0)),
    ):  # fmt: skip
        with pytest.raises(error, match=sentence):
            loss(*arguments)
    with pytest.raises(ValueError, match=r"mask of shape \(3,\) does not fit losses of shape \(2,\)"):
        loss(s, s, mask=torch.ones(3, dtype=torch.bool))


# Projectors


@pytest.mark.parametrize(
    ("kind", "shape", "projected"),
    [(kind, (5, 6), (5, 9)) for kind in ("linear", "mlp", "orthogonal")]
    + [(kind, (5, 7, 6), (5, 7, 9)) for kind in ("linear", "mlp", "orthogonal")]
    + [(kind, (5, 6, 3, 4), (5, 9, 3, 4)) for kind in Projector.KINDS],
)
def test_projectors_change_the_width_alone(kind, shape, projected):
    projector = Projector(kind, 6, 9)
    features = torch.randn(shape)
    assert projector(features).shape == projected
    assert projector(features.half()).dtype == torch.float32


def test_the_regressor_of_the_published_table():
    """RepDistiller's ConvReg for maps of one size: convolution with bias, batch norm, ReLU."""
    projector, features = Projector("regressor", 6, 9), torch.randn(8, 6, 4, 4)
    convolved = torch.einsum("oi,bihw->bohw", projector.map[0].weight[:, :, 0, 0], features)
    convolved = convolved + projector.map[0].bias[:, None, None]
    mean, var = convolved.mean((0, 2, 3), keepdim=True), convolved.var((0, 2, 3), keepdim=True, correction=0)
    expected = ((convolved - mean) / (var + 1e-5).sqrt()).relu()
    torch.testing.assert_close(projector(features), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="takes maps"):
        projector(features[:, :, 0, 0])


@pytest.mark.parametrize("kind", ["linear", "mlp", "orthogonal"])
def test_every_place_of_a_map_is_projected_alike(kind):
    projector, features = Projector(kind, 6, 9), torch.randn(2, 6, 3, 4)
    expected = projector(features.movedim(1, -1).reshape(-1, 6)).view(2, 3, 4, 9).movedim(-1, 1)
    torch.testing.assert_close(projector(features), expected)


def test_a_convolution_is_the_hint_of_fitnets():
    projector, features = Projector("conv", 6, 9), 5 + torch.randn(8, 6, 4, 4)
    projected = projector(features)
    torch.testing.assert_close(projected.mean((0, 2, 3)), torch.zeros(9), rtol=0, atol=1e-5)
    torch.testing.assert_close(projected.var((0, 2, 3), correction=0), torch.ones(9), rtol=1e-3, atol=0)
    assert {name for name, _ in projector.named_parameters()} == {
        "map.0.weight",
        "map.1.weight",
        "map.1.bias",
    }


@every_kind
def test_projectors_learn(kind):
    projector, features, target = Projector(kind, 4, 4), torch.randn(16, 4, 2, 2), torch.randn(16, 4, 2, 2)
    optimizer = torch.optim.SGD(projector.parameters(), 0.1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append((projector(features) - target).square().mean())
        losses[-1].backward()
        assert all(p.grad.isfinite().all() for p in projector.parameters())
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 8), (8, 5), (6, 6), (1, 4), (4, 1)])
@pytest.mark.parametrize("weight_decay", [0, 0.1])
def test_orthogonal_stays_orthonormal_and_comes_back(inputs, outputs, weight_decay):
    projector = Projector("orthogonal", inputs, outputs)
    before = projector.map.weight.detach().clone()
    optimizer = torch.optim.SGD(projector.parameters(), 0.5, momentum=0.9, weight_decay=weight_decay)
    features, target = torch.randn(32, inputs), torch.randn(32, outputs)

    def off():
        W = projector.map.weight
        gram = W.T @ W if outputs >= inputs else W @ W.T
        return (gram - torch.eye(len(gram))).abs().max().item()

    assert off() < 1e-5
    for _ in range(20):
        optimizer.zero_grad()
        (projector(features) - target).square().mean().backward()
        optimizer.step()
        assert off() < 1e-5
    if min(inputs, outputs) > 1:
        assert (projector.map.weight - before).abs().max() > 0.01
    if outputs >= inputs:
        torch.testing.assert_close(projector(features).norm(dim=1), features.norm(dim=1))
    again = Projector("orthogonal", inputs, outputs)
    again.load_state_dict(projector.state_dict())
    assert torch.equal(again(features), projector(features))


@every_kind
def test_new_weights_are_drawn_where_the_old_ones_are(kind):
    projector, features = Projector(kind, 4, 6).to("meta"), torch.randn(8, 4, 2, 2)
    projector.reset_parameters()
    assert all(p.is_meta for p in projector.state_dict().values())
    torch.manual_seed(3)
    projector = Projector(kind, 4, 6)
    first = projector(features)
    projector.reset_parameters()
    assert not torch.allclose(projector(features), first)
    torch.manual_seed(3)
    projector.reset_parameters()
    torch.testing.assert_close(projector(features), first)


@every_kind
def test_projectors_evaluate_from_their_repr(kind):
    projector = Projector(kind, 4, 6)
    assert repr(eval(repr(projector), vars(objectives))) == repr(projector) == f"Projector({kind!r}, 4, 6)"


def test_projectors_say_what_they_take():
    with pytest.raises(ValueError, match="a projector is one of linear, conv, regressor, mlp, orthogonal, not 'dense'"):
        Projector("dense", 4, 6)
    for kind, shape in (
        ("linear", (2, 5)),
        ("mlp", (2, 4, 5)),
        ("orthogonal", (2, 5, 4, 4)),
        ("conv", (2, 5, 4, 4)),
    ):
        with pytest.raises(
            ValueError, match=rf"Projector\({kind!r}, 4, 6\) takes features of width 4, but these have shape"
        ):
            Projector(kind, 4, 6)(torch.zeros(shape))  # fmt: skip
    with pytest.raises(ValueError, match=r"takes maps \(batch, channels, height, width\), not shape \(2, 3, 4\)"):
        Projector("conv", 4, 6)(torch.zeros(2, 3, 4))


# Which layer with which


@given(st.integers(1, 24), st.integers(0, 24), st.sampled_from(["uniform", "last", "skip"]))
def test_layers_are_matched_in_order_of_depth(n, more, how):
    m = n + more
    pairs = match_layers([f"s{i}" for i in range(n)], [f"t{i}" for i in range(m)], how)
    assert [student for student, _ in pairs] == [f"s{i}" for i in range(n)]
    chosen = [int(teacher[1:]) for _, teacher in pairs]
    assert chosen == sorted(set(chosen)) and set(chosen) <= set(range(m))
    if how == "uniform":
        assert all(abs(t + 1 - i * m / n) <= 0.5 for i, t in enumerate(chosen, start=1))
    if how != "skip" or m % n == 0:
        assert chosen[-1] == m - 1
    steps = {b - a for a, b in zip([-1, *chosen], chosen, strict=False)}
    assert {
        "uniform": max(steps) - min(steps) <= 1,
        "last": steps <= {1, m - n + 1},
        "skip": steps == {m // n},
    }[how]


def test_published_matchings():
    student, teacher = list("abcdef"), [str(i) for i in range(1, 13)]
    assert [t for _, t in match_layers(student, teacher, "skip")] == ["2", "4", "6", "8", "10", "12"]
    assert [t for _, t in match_layers(student, teacher, "last")] == ["7", "8", "9", "10", "11", "12"]
    assert [t for _, t in match_layers(list("abcd"), teacher)] == ["3", "6", "9", "12"]


def test_layers_that_cannot_be_matched_are_refused():
    with pytest.raises(ValueError, match="3 student layers cannot be spread over 2 teacher layers"):
        match_layers(["a", "b", "c"], ["1", "2"])
    with pytest.raises(ValueError, match="0 student layers"):
        match_layers([], ["1"])
    with pytest.raises(ValueError, match="layers are matched by uniform, last, skip, not 'first'"):
        match_layers(["a"], ["1"], "first")


# Maps


def test_maps_meet_at_the_smaller_size():
    small, large = torch.randn(2, 3, 4, 6), torch.randn(2, 5, 8, 6)
    halved = nn.functional.avg_pool2d(large, (2, 1))
    for student, teacher in (same_size(small, large), same_size(large, small)[::-1]):
        assert torch.equal(student, small)
        torch.testing.assert_close(teacher, halved)
    tall, wide = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 4, 8)
    assert [x.shape[2:] for x in same_size(tall, wide)] == [(4, 4), (4, 4)]


def test_what_is_no_map_is_left_alone():
    vectors, sequences, maps = torch.randn(2, 3), torch.randn(2, 3, 4), torch.randn(2, 3, 4, 5)
    for x in (vectors, sequences):
        assert channels_last(x) is x
        assert all(a is b for a, b in zip(same_size(x, maps), (x, maps), strict=True))
    assert channels_last(maps).shape == (2, 4, 5, 3)


@given(pairs)
def test_unit_vectors_have_length_one(features):
    lengths, slope = unit(features, 1).norm(dim=1), gradient(lambda x: unit(x, 1).sum(), features)
    torch.testing.assert_close(lengths, features.any(1).to(lengths.dtype), rtol=1e-13, atol=0)
    assert not slope.movedim(1, -1)[~features.any(1)].any()  # a zero vector stays zero, without a gradient
    torch.testing.assert_close((slope * features).sum(1), torch.zeros_like(lengths), rtol=0, atol=1e-12)

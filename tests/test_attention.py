import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kdlab.objectives import activation_attention, attention_from_qk, attention_map_mse

every_form = pytest.mark.parametrize("form", ["released", "paper"])
every_norm = pytest.mark.parametrize("normalise", ["none", "queries", "entries"])
shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps(*shape, seed=0):
    return torch.softmax(2 * randn(2, *shape, seed=seed), -1)


def gradient(loss, s, *arguments, **options):
    s = s.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(s, *arguments, **options), s)[0]


# Maps of transformers


@given(shapes)
def test_distance_of_maps_is_a_plain_loop_over_heads(shape):
    student, teacher = maps(*shape)
    batch, heads, queries, keys = shape
    distances = [
        sum(torch.linalg.matrix_norm(s - t) ** 2 for s, t in zip(*example, strict=True)) / heads
        for example in zip(student, teacher, strict=True)
    ]
    for normalise, size in (("none", 1), ("queries", queries), ("entries", queries * keys)):
        values = attention_map_mse(student, teacher, normalise=normalise, reduction="none")
        torch.testing.assert_close(values, torch.stack(distances) / size, rtol=1e-12, atol=1e-15)
        value = attention_map_mse(student, teacher, normalise=normalise)
        torch.testing.assert_close(value, sum(distances) / size / batch, rtol=1e-12, atol=1e-15)
    assert attention_map_mse(teacher, teacher).item() == 0


def test_entries_are_the_mean_squared_error_of_torch():
    student, teacher = maps(3, 2, 4, 5)
    value = attention_map_mse(student, teacher, normalise="entries")
    torch.testing.assert_close(value, F.mse_loss(student, teacher))


@every_norm
def test_gradient_of_maps_is_that_of_the_value(normalise):
    student, teacher = maps(2, 2, 3, 3).requires_grad_()
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert torch.autograd.gradcheck(
        lambda s, t: attention_map_mse(s, t, normalise=normalise, mask=mask), (student, teacher)
    )


def test_heads_are_averaged_or_grouped():
    student, teacher = maps(2, 2, 4, 4)[0], maps(2, 6, 4, 4)[1]
    mean = attention_map_mse(student.mean(1, keepdim=True), teacher.mean(1, keepdim=True))
    assert torch.equal(attention_map_mse(student, teacher, heads="mean"), mean)
    groups = torch.stack([teacher[:, :3].mean(1), teacher[:, 3:].mean(1)], 1)
    torch.testing.assert_close(attention_map_mse(student, teacher, heads="group"), attention_map_mse(student, groups))
    for heads in ("match", "group"):
        same = attention_map_mse(student, teacher[:, :2], heads=heads)
        torch.testing.assert_close(same, attention_map_mse(student, teacher[:, :2]))


@every_norm
@pytest.mark.parametrize("heads", ["match", "mean"])
@given(seed=st.integers(0, 1000))
def test_what_is_masked_in_maps_does_not_matter(normalise, heads, seed):
    student, teacher = maps(3, 2, 4, 4, seed=seed)
    mask = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[0, 0] = True
    entries = mask[:, None, :, None] & mask[:, None, None, :]
    student2, teacher2 = student.where(entries, 7.0), teacher.where(entries, 0.3)
    options = {"normalise": normalise, "heads": heads, "mask": mask}
    value = attention_map_mse(student, teacher, **options)
    assert torch.equal(value, attention_map_mse(student2, teacher2, **options))
    slope = gradient(attention_map_mse, student, teacher, **options)
    assert torch.equal(slope, gradient(attention_map_mse, student2, teacher2, **options))
    assert not slope[~entries.expand_as(slope)].any()
    options["mask"] = entries.squeeze(1)
    torch.testing.assert_close(attention_map_mse(student, teacher, **options), value)


@pytest.mark.parametrize("normalise", ["queries", "entries", "none"])
@given(padding=st.integers(0, 4), seed=st.integers(0, 100))
def test_padding_changes_nothing(normalise, padding, seed):
    scores = randn(2, 2, 2, 4, 4, seed=seed)
    lengths = torch.tensor([3, 4])
    whole = [
        attention_map_mse(*torch.softmax(scores[:, b : b + 1, :, :n, :n], -1), normalise=normalise)
        for b, n in enumerate(lengths.tolist())
    ]
    scores = F.pad(scores, (0, padding, 0, padding), value=5.0)
    mask = torch.arange(4 + padding) < lengths[:, None]
    student, teacher = torch.softmax(scores.masked_fill(~mask[None, :, None, None], -math.inf), -1)
    value = attention_map_mse(student, teacher, normalise=normalise, mask=mask)
    torch.testing.assert_close(value, sum(whole) / 2, rtol=1e-12, atol=0)


def test_a_mask_of_queries_alone_where_keys_are_others():
    student, teacher = maps(2, 2, 4, 3)
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    losses = attention_map_mse(student, teacher, normalise="entries", mask=mask, reduction="none")
    expected = [
        F.mse_loss(student[0, :, :3], teacher[0, :, :3]),
        F.mse_loss(student[1, :, :1], teacher[1, :, :1]),
    ]
    torch.testing.assert_close(losses, torch.stack(expected))


def test_a_mask_that_leaves_nothing_adds_nothing_to_the_whole():
    student, teacher = maps(2, 2, 3, 3)
    for nothing in (torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3, 3, dtype=torch.bool)):
        assert attention_map_mse(student, teacher, mask=nothing, count=4) == 0


def test_causal_maps_need_no_causal_mask():
    q = randn(2, 2, 2, 5, 4)
    student, teacher = (attention_from_qk(x, x, causal=True) for x in q)
    causal = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 5, 5)
    torch.testing.assert_close(attention_map_mse(student, teacher), attention_map_mse(student, teacher, mask=causal))


def test_micro_batches_of_maps_make_the_whole():
    student, teacher = maps(4, 2, 3, 3)
    pieces = sum(attention_map_mse(student[i : i + 2], teacher[i : i + 2], count=4) for i in (0, 2))
    torch.testing.assert_close(pieces, attention_map_mse(student, teacher))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_in_half_precision_are_near_the_float64_oracle(dtype):
    student, teacher = maps(3, 2, 16, 16).to(dtype)
    value = attention_map_mse(student, teacher)
    assert value.dtype == torch.float32
    oracle = attention_map_mse(student.double(), teacher.double())
    torch.testing.assert_close(value.double(), oracle, rtol=1e-6, atol=0)
    q, k = randn(2, 3, 2, 16, 8).to(dtype)
    found = attention_from_qk(q, k)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), attention_from_qk(q.double(), k.double()), rtol=1e-5, atol=1e-8)


def test_maps_that_do_not_fit_are_refused():
    s = torch.full((2, 4, 3, 3), 1 / 3)
    for error, sentence, arguments, options in (
        (TypeError, "teacher maps must be a torch.Tensor, not NoneType", (s, None), {}),
        (ValueError, r"have shape \(batch, heads, queries, keys\) and one length, but these have \(2, 4, 3, 3\) and \(2, 4, 2, 2\)", (s, s[:, :, :2, :2]), {}),
        (ValueError, "and one length", (s[:, 0], s[:, 0]), {}),
        (ValueError, "do not belong to the same examples", (s, s[:1]), {}),
        (ValueError, 'the student has 4 heads and the teacher 2: choose heads="mean" or heads="group"', (s, s[:, :2]), {}),
        (ValueError, 'heads="group" needs a multiple of the 4 student heads, not 2 teacher heads', (s, s[:, :2]), {"heads": "group"}),
        (ValueError, 'heads must be "match", "mean" or "group", not \'first\'', (s, s), {"heads": "first"}),
        (ValueError, 'normalise must be "none", "queries" or "entries", not \'keys\'', (s, s), {"normalise": "keys"}),
        (TypeError, "mask must be a boolean torch.Tensor, not list", (s, s), {"mask": [[True]]}),
        (ValueError, r"mask of shape \(2, 2\) does not fit", (s, s), {"mask": torch.ones(2, 2, dtype=torch.bool)}),
        (ValueError, r"mask of shape \(2, 2, 3\) does not fit", (s, s), {"mask": torch.ones(2, 2, 3, dtype=torch.bool)}),
        (ValueError, "mask leaves no position", (s, s), {"mask": torch.zeros(2, 3, dtype=torch.bool)}),
    ):  # fmt: skip
        with pytest.raises(error, match=sentence):
            attention_map_mse(*arguments, **options)


# Maps from queries and keys


def torchs_maps(q, k, **options):
    """What fused attention does to the identity is its map."""
    values = torch.eye(k.shape[2], dtype=q.dtype).expand(*k.shape[:3], -1)
    return F.scaled_dot_product_attention(q, k, values, **options)


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("masked", ["none", "causal", "boolean", "additive", "additive with minus infinity"])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("length", [5, 7])
def test_maps_are_those_of_fused_attention(key_heads, masked, scale, length):
    q, k = randn(2, 4, length, 8), randn(2, key_heads, 5, 8, seed=1)
    seen = randn(2, 1, length, 5, seed=2) < 0.8
    seen[..., 0] = True
    mask = {
        "boolean": seen,
        "additive": randn(1, 1, length, 5, seed=3),
        "additive with minus infinity": torch.zeros(2, 1, length, 5).double().masked_fill(~seen, -math.inf),
    }.get(masked)
    causal = masked == "causal"
    expected = torchs_maps(q, k, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=key_heads < 4)
    found = attention_from_qk(q, k, causal=causal, mask=mask, scale=scale)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 4, length).double())


def test_one_head_needs_no_axis():
    q, k = randn(2, 3, 4, 8)
    assert torch.equal(attention_from_qk(q, k), attention_from_qk(q[:, None], k[:, None])[:, 0])


@pytest.mark.parametrize("additive", [False, True])
def test_a_query_that_sees_nothing_has_zeros_and_no_gradient(additive):
    q, k = randn(2, 1, 2, 3, 4)
    seen = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    mask = torch.zeros(3, 3).double().masked_fill(~seen, -math.inf) if additive else seen
    found = attention_from_qk(q, k, mask=mask)
    assert not found[:, :, 1].any() and not found[:, :, 0, 1].any()
    torch.testing.assert_close(found.sum(-1), torch.tensor([1.0, 0, 1]).double().expand(1, 2, 3))
    torch.testing.assert_close(found, torchs_maps(q, k, attn_mask=mask))
    weights = randn(1, 2, 3, 3, seed=5)
    for slope in (
        gradient(lambda q: (weights * attention_from_qk(q, k, mask=mask)).sum(), q),
        gradient(lambda k: (weights * attention_from_qk(q, k, mask=mask)).sum(), k),
    ):
        assert slope.isfinite().all() and slope.any()
    assert not gradient(lambda q: (weights * attention_from_qk(q, k, mask=mask)).sum(), q)[:, :, 1].any()


def test_gradient_of_recovered_maps_is_that_of_the_value():
    q, k = randn(1, 4, 3, 2).requires_grad_(), randn(1, 2, 3, 2, seed=1).requires_grad_()
    mask = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
    assert torch.autograd.gradcheck(lambda q, k: attention_from_qk(q, k, mask=mask), (q, k))
    assert torch.autograd.gradcheck(lambda q, k: attention_from_qk(q, k, causal=True), (q, k))


@given(st.sampled_from([1.0, 1e2, 1e4]), st.integers(0, 100))
def test_large_scores_are_finite(size, seed):
    q, k = size * randn(2, 1, 1, 3, 4, seed=seed).float()
    found = attention_from_qk(q, k)
    torch.testing.assert_close(found.sum(-1), torch.ones(1, 1, 3))
    assert gradient(lambda q: attention_from_qk(q, k)[..., 0].sum(), q).isfinite().all()


def test_queries_and_keys_that_do_not_fit_are_refused():
    q = torch.zeros(2, 4, 3, 8)
    for sentence, k in (
        (r"not \(2, 4, 3, 8\) and \(2, 4, 3, 6\)", q[..., :6]),
        ("queries and keys have shape", q[:, 0]),
        ("3 key heads do not divide 4 query heads", q[:, :3]),
        ("queries of shape .* and keys of shape .* do not belong to the same examples", q[:1]),
    ):
        with pytest.raises(ValueError, match=sentence):
            attention_from_qk(q, k)


# Maps of convolutional networks


def published(student, teacher):
    def at(x):
        return F.normalize(x.pow(2).mean(1).flatten(1))

    return at(student) - at(teacher)


@given(shapes, st.integers(1, 4))
def test_attention_transfer_is_the_published_formula(shape, channels):
    batch, _, height, width = shape
    student, teacher = randn(*shape), randn(batch, channels, height, width, seed=1)
    difference = published(student, teacher)
    paper, released = difference.norm(dim=1), difference.pow(2).mean(1)
    for form, expected in (("paper", paper), ("released", released)):
        each = activation_attention(student, teacher, form=form, reduction="none")
        torch.testing.assert_close(each, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            activation_attention(student, teacher, form=form), expected.mean(), rtol=1e-10, atol=1e-12
        )


@every_form
def test_maps_of_different_size_meet_at_the_smaller(form):
    student, teacher = randn(2, 3, 4, 4), randn(2, 5, 8, 8, seed=1)
    halved = F.avg_pool2d(teacher, 2)
    for one, other in ((student, teacher), (teacher, student)):
        torch.testing.assert_close(
            activation_attention(one, other, form=form), activation_attention(student, halved, form=form)
        )


@every_form
@given(st.floats(0.1, 10), st.integers(0, 100))
def test_size_sign_and_order_of_channels_do_not_matter(form, size, seed):
    student, teacher = randn(2, 3, 4, 2, 3, seed=seed)
    value = activation_attention(student, teacher, form=form)
    torch.testing.assert_close(activation_attention(-size * student[:, [2, 0, 3, 1]], teacher, form=form), value)


@every_form
def test_gradient_of_attention_transfer(form):
    student, teacher = randn(2, 2, 3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: activation_attention(s, t, form=form), (student, teacher))


@every_form
def test_zero_maps_and_equal_maps_have_finite_gradients(form):
    student, zero = randn(2, 3, 4, 4), torch.zeros(2, 3, 4, 4).double()
    for s, t in ((student, student.clone()), (zero, student), (student, zero), (zero, zero)):
        slope = gradient(activation_attention, s, t, form=form)
        assert slope.isfinite().all()
    assert activation_attention(student, student.clone(), form=form).item() == 0
    assert not gradient(activation_attention, student, student.clone(), form=form).any()
    assert not gradient(activation_attention, zero, student, form=form).any()


def test_no_activations_at_all_are_the_longest_distance():
    value = activation_attention(torch.zeros(1, 3, 4, 4), torch.ones(1, 2, 4, 4), form="paper")
    torch.testing.assert_close(value, torch.tensor(1.0))


@every_form
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_activations_are_near_the_float64_oracle(form, dtype):
    student, teacher = (1000 * randn(2, 4, 8, 6, 6)).to(dtype)
    value = activation_attention(student, teacher, form=form)
    oracle = activation_attention(student.double(), teacher.double(), form=form)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), oracle, rtol=1e-5, atol=0)


def test_activations_that_do_not_fit_are_refused():
    s = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"maps have shape \(batch, channels, height, width\), not \(2, 3, 4, 4\)"):
        activation_attention(s, s[:, 0])
    with pytest.raises(ValueError, match='form must be "released" or "paper", not \'published\''):
        activation_attention(s, s, form="published")
    with pytest.raises(ValueError, match="do not belong to the same examples"):
        activation_attention(s, s[:1])


# Transforms of torch


every_function = pytest.mark.parametrize(
    ("function", "pair"),
    [
        (attention_map_mse, maps(4, 2, 3, 3)),
        (attention_from_qk, randn(2, 4, 2, 3, 3)),
        (activation_attention, randn(2, 4, 3, 2, 2)),
    ],
)


@every_function
def test_compiles_without_a_graph_break(function, pair):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*pair), function(*pair))


def test_masked_maps_compile_without_a_graph_break():
    student, teacher = maps(2, 2, 3, 3)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    torch._dynamo.reset()

    def loss(s, t, mask):
        return attention_map_mse(attention_from_qk(s, s, causal=True), t, mask=mask, normalise="queries")

    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(student, teacher, mask), loss(student, teacher, mask))


@every_function
def test_vmap_and_grad(function, pair):
    pair = pair.unsqueeze(2)  # four batches of one

    def total(*arguments):
        return function(*arguments).sum()

    expected = torch.stack([total(*one) for one in zip(*pair, strict=True)])
    torch.testing.assert_close(torch.func.vmap(total)(*pair), expected)
    slopes = torch.stack([gradient(total, *one) for one in zip(*pair, strict=True)])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(total))(*pair), slopes)

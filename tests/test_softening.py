import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdlab.objectives import entropy, log_soften, soften
from kdlab.theory import reference

temperatures = st.floats(0.05, 100)
shapes = st.tuples(st.integers(1, 3), st.integers(2, 8))
rows = arrays(np.float64, shapes, elements=st.floats(-30, 30)).map(torch.from_numpy)


@given(rows, temperatures)
def test_rows_are_distributions(z, T):
    q = soften(z, T)
    assert (q >= 0).all()
    torch.testing.assert_close(q.sum(-1), torch.ones(len(z), dtype=z.dtype), rtol=0, atol=1e-12)


@given(rows)
def test_temperature_one_is_the_softmax(z):
    torch.testing.assert_close(soften(z, 1.0), torch.softmax(z, -1), rtol=1e-12, atol=0)


@given(rows, temperatures)
def test_equals_the_reference(z, T):
    expected = torch.from_numpy(reference.log_softmax(z.numpy(), T))
    torch.testing.assert_close(log_soften(z, T), expected, rtol=1e-12, atol=1e-12)


@given(rows, temperatures, st.floats(-100, 100))
def test_shifting_all_logits_changes_nothing(z, T, shift):
    torch.testing.assert_close(soften(z + shift, T), soften(z, T), rtol=1e-9, atol=1e-12)


@given(rows, temperatures)
def test_order_of_the_classes_is_kept(z, T):
    q = soften(z, T)
    smaller = z[:, :, None] < z[:, None, :]
    assert (q[:, :, None] <= q[:, None, :])[smaller].all()


@given(rows)
def test_infinite_temperature_is_uniform(z):
    torch.testing.assert_close(soften(z, 1e9), torch.full_like(z, 1 / z.shape[-1]), rtol=1e-6, atol=0)


@given(st.integers(2, 8), st.floats(0.01, 10), st.randoms(use_true_random=False))
def test_zero_temperature_is_the_argmax(classes, gap, random):
    order = list(range(classes))
    random.shuffle(order)
    z = gap * torch.tensor(order, dtype=torch.float64)
    expected = torch.nn.functional.one_hot(z.argmax(), classes).double()
    torch.testing.assert_close(soften(z, 1e-4), expected, rtol=0, atol=1e-12)


@given(rows, temperatures, temperatures)
def test_entropy_grows_with_temperature_between_zero_and_log_n(z, T1, T2):
    cold, hot = entropy(z, min(T1, T2)), entropy(z, max(T1, T2))
    assert (cold >= 0).all()
    assert (cold <= hot + 1e-12).all()
    assert (hot <= math.log(z.shape[-1]) + 1e-12).all()


@given(rows, temperatures)
def test_entropy_slope_is_variance_over_temperature_cubed(z, T):
    temperature = torch.tensor(T, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(entropy(z[0], temperature), temperature)
    assert slope.item() == pytest.approx(reference.entropy_slope(z[0].numpy(), T), rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("T", [0.5, 1.0, 4.0, 20.0])
def test_entropy_slope_by_finite_differences(T):
    z, step = torch.tensor([3.0, 1.0, -2.0, 0.5], dtype=torch.float64), 1e-5 * T
    slope = (entropy(z, T + step) - entropy(z, T - step)) / (2 * step)
    q = soften(z, T)
    variance = (q * z**2).sum() - (q * z).sum() ** 2
    assert slope.item() == pytest.approx(variance.item() / T**3, rel=1e-7)


def test_entropy_of_a_uniform_and_of_a_sure_distribution():
    assert entropy(torch.zeros(7)).item() == pytest.approx(math.log(7))
    assert entropy(torch.tensor([1e4, 0.0, -1e4]), 1e-2).item() == 0


def test_a_temperature_for_each_row():
    z, T = torch.randn(3, 5, dtype=torch.float64), torch.tensor([[0.5], [1.0], [4.0]], dtype=torch.float64)
    expected = torch.stack([soften(row, float(t)) for row, t in zip(z, T, strict=True)])
    torch.testing.assert_close(soften(z, T), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    z = torch.randn(4, 10).to(dtype)
    assert log_soften(z, 4.0).dtype == torch.float32
    assert torch.equal(log_soften(z, 4.0), log_soften(z.float(), 4.0))


def test_small_differences_of_large_logits_survive_a_small_temperature():
    z = torch.tensor([8192.0, 8192.0 - 2**-10])  # exact in float32
    expected = torch.from_numpy(reference.log_softmax(z.double().numpy(), 1e-2)).float()
    torch.testing.assert_close(log_soften(z, 1e-2), expected, rtol=1e-5, atol=0)
    divided_first = torch.log_softmax(z / 1e-2, -1)
    assert ((divided_first - expected) / expected).abs().max() > 1e-2


@pytest.mark.parametrize("T", [0, 0.0, -1, -4.0, math.nan, math.inf, "4", None])
def test_bad_temperature_is_refused(T):
    with pytest.raises(ValueError, match="temperature must be a positive, finite number, not"):
        soften(torch.zeros(3), T)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_bad_entry_of_a_temperature_tensor_is_refused(bad):
    with pytest.raises(ValueError, match="temperature must be positive and finite in every entry"):
        soften(torch.zeros(2, 3), torch.tensor([[1.0], [bad]]))


@pytest.mark.parametrize("function", [soften, log_soften, entropy])
def test_bad_logits_are_refused(function):
    with pytest.raises(TypeError, match="logits must be a torch.Tensor, not list"):
        function([1.0, 2.0])
    with pytest.raises(TypeError, match=r"must be floating point \(logits, not labels\), not torch.int64"):
        function(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="needs at least two classes in its last axis"):
        function(torch.zeros(4, 1))
    with pytest.raises(ValueError, match="needs at least two classes in its last axis"):
        function(torch.tensor(1.0))
    with pytest.raises(ValueError, match="logits has 2 of 6 entries that are NaN or infinite"):
        function(torch.tensor([[0.0, math.nan, 1.0], [0.0, math.inf, 1.0]]))

"""Large products by oneDNN: the same numbers but for the last bits, and nothing else changed."""

import pytest
import torch
from torch import nn

from kdlab.training import products
from kdlab.training.products import LARGE, by_onednn, left_idle, widest_products

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


@pytest.fixture
def idle(monkeypatch):
    """As on a processor of AMD with AVX-512."""
    monkeypatch.setattr(products, "left_idle", lambda: True)


def factors(m=200, k=300, n=400):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator)


def layouts(x):
    """The same numbers as rows, as columns and as every second row of something larger."""
    wide = x.new_zeros(2 * len(x), x.shape[1])
    wide[::2] = x
    return x, x.t().contiguous().t(), wide[::2]


def near(found, a, b):
    return torch.allclose(found.double(), a.double() @ b.double(), rtol=0, atol=2e-4)


def test_products_of_all_layouts_are_the_products():
    a, b = factors()
    total = torch.ones(200, 400)
    assert a.numel() * b.shape[1] >= LARGE
    with by_onednn():
        for x in layouts(a):
            for y in layouts(b):
                assert near(x @ y, a, b) and (x @ y).is_contiguous()
                assert near(torch.mm(x, y, out=torch.empty(200, 400)), a, b)
                assert near(torch.mm(x, y, out=torch.empty(0)), a, b)
                assert near(total.clone().addmm_(x, y) - 1, a, b)
                assert near((total.clone().addmm_(x, y, beta=3, alpha=2) - 3) / 2, a, b)


def test_it_is_onednn_that_multiplies():
    a, b = factors()
    with by_onednn(), torch.profiler.profile() as seen:
        a @ b
        a.t().contiguous().t() @ b
    assert sum(event.name == "mkldnn::_linear_pointwise" for event in seen.events()) == 2


@pytest.mark.parametrize(
    "multiply",
    [
        lambda a, b: a[:20] @ b[:, :20],  # small
        lambda a, b: a.double() @ b.double(),
        lambda a, b: a.bfloat16() @ b.bfloat16(),
        lambda a, b: a.to(torch.int32) @ b.to(torch.int32),
        lambda a, b: a[:0] @ b,
        lambda a, b: a[:, :0] @ b[:0],
        lambda a, b: torch.zeros(200, 400, dtype=torch.float64).addmm_(a.double(), b.double(), beta=0.5, alpha=2),
    ],
    ids=["small", "float64", "bfloat16", "int32", "no row", "no sum", "added in float64"],
)
def test_other_products_are_pytorchs(multiply):
    outside = multiply(*factors())
    with by_onednn():
        assert torch.equal(multiply(*factors()), outside)


@pytest.mark.parametrize(
    "multiply",
    [
        lambda a, b: a @ a,
        lambda a, b: a @ b.double(),
        lambda a, b: torch.zeros(3, 3).addmm_(a, b),
        lambda a, b: torch.mm(a, b, out=torch.empty(200, 400, dtype=torch.int32)),
    ],
    ids=["shapes", "dtypes", "sum", "out"],
)
def test_wrong_products_are_refused_within_as_outside(multiply):
    with pytest.raises(RuntimeError):
        multiply(*factors())
    with by_onednn(), pytest.raises(RuntimeError):
        multiply(*factors())


def test_what_is_not_finite_stays_so():
    a, b = factors()
    a[0, 0], a[1, 1] = torch.nan, torch.inf
    with by_onednn():
        found = a @ b
    assert found[0].isnan().all() and not found[1].isfinite().any() and found[2:].isfinite().all()


def test_gradients_are_the_same_up_to_rounding():
    model, (x, _) = nn.Linear(300, 400, bias=False), factors()

    def gradients():
        model.zero_grad()
        inputs = x.clone().requires_grad_()
        model(inputs).tanh().sum().backward()
        return inputs.grad, model.weight.grad

    outside = gradients()
    with by_onednn():
        for within, there in zip(gradients(), outside, strict=True):
            assert torch.allclose(within, there, rtol=1e-4, atol=1e-4)


def test_afterwards_all_is_as_before():
    a, b = factors()
    before = a @ b
    with by_onednn():
        with by_onednn():
            first = a @ b
        assert torch.equal(a @ b, first)
    assert torch.equal(a @ b, before)
    with pytest.raises(KeyError), by_onednn():
        raise KeyError
    assert torch.equal(a @ b, before) and not products._within


def test_on_other_devices_and_processors_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(products, "left_idle", lambda: False)
    with widest_products("cpu") as name:
        assert name is None and not products._within
    monkeypatch.setattr(products, "left_idle", lambda: True)
    with widest_products("cuda") as name:
        assert name is None and not products._within
    with widest_products() as name:
        assert name == "oneDNN" and products._within


@pytest.mark.parametrize(
    ("capability", "both", "said"), [("AVX512", True, True), ("AVX2", True, False), ("AVX512", False, False)]
)
def test_where_mkl_leaves_half_idle(monkeypatch, capability, both, said):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: both)
    monkeypatch.setattr(products.Path, "exists", lambda _: True)
    monkeypatch.setattr(products.Path, "read_text", lambda _: "vendor_id\t: AuthenticAMD")
    left_idle.cache_clear()
    try:
        assert left_idle() is said
    finally:
        left_idle.cache_clear()

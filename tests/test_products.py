"""Large products by oneDNN: the same numbers but for the last bits, and nothing else changed."""

import warnings

import pytest
import torch
from torch import nn

from kdlab.training import products
from kdlab.training.products import LARGE, by_onednn, left_idle, widest_products

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


SPACE = torch.zeros(200, 400)


def factors(m=200, k=300, n=400):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator)


def layouts(x):
    """The same numbers as rows, as columns, as every second row or column of something larger."""
    wide, apart = x.new_zeros(2 * len(x), x.shape[1]), x.new_zeros(len(x), 2 * x.shape[1])
    wide[::2], apart[:, ::2] = x, x
    return x, x.t().contiguous().t(), wide[::2], apart[:, ::2]


def near(found, a, b):
    return torch.allclose(found.double(), a.double() @ b.double(), rtol=0, atol=2e-4)


def test_products_of_all_layouts_are_the_products():
    a, b = factors()
    total = torch.ones(200, 400)
    assert a.numel() * b.shape[1] >= LARGE
    with by_onednn(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in layouts(a):
            for y in layouts(b):
                assert near(x @ y, a, b) and (x @ y).is_contiguous()
                assert near(torch.mm(x, y, out=torch.empty(200, 400)), a, b)
                assert near(torch.mm(x, y, out=torch.empty(0)), a, b)
                assert near(total.clone().addmm_(x, y) - 1, a, b)
                assert near((total.clone().addmm_(x, y, beta=3, alpha=2) - 3) / 2, a, b)


@pytest.mark.parametrize(
    "multiply", [torch.mm, lambda a, b: torch.mm(a, b, out=SPACE), lambda a, b: SPACE.addmm_(a, b)]
)
def test_it_is_onednn_that_multiplies(multiply):
    a, b = factors()
    with by_onednn(), torch.profiler.profile() as seen:
        multiply(a, b)
        multiply(a.t().contiguous().t(), b)
    assert sum(event.name == "mkldnn::_linear_pointwise" for event in seen.events()) == 2


def test_of_a_transpose_the_smaller_is_copied():
    z, h = torch.randn(256, 4096), torch.randn(256, 64)
    with by_onednn(), torch.profiler.profile(record_shapes=True) as seen:
        z.t() @ h
    (made,) = (event for event in seen.events() if event.name == "mkldnn::_linear_pointwise")
    assert made.input_shapes[0] == [64, 256]


@pytest.mark.parametrize("strides", [(1, 1), (2, 3), (1, 3), (0, 1), (1, 0)])
def test_what_onednn_cannot_describe_is_pytorchs(strides):
    x, w = torch.randn(3000).as_strided((300, 300), strides), factors(300, 300)[0]
    outside = x @ w, w @ x
    with by_onednn():
        assert torch.equal(x @ w, outside[0]) and torch.equal(w @ x, outside[1])


def test_a_refused_product_leaves_its_place_as_it_was():
    place = torch.ones(2, 2)
    with by_onednn(), pytest.raises(RuntimeError):
        torch.mm(torch.randn(4, 5), torch.randn(4, 5), out=place)
    assert place.shape == (2, 2)


def test_an_interrupted_beginning_changes_nothing(monkeypatch):
    a, b = factors()
    before, real, calls = a @ b, torch.library.Library.impl, []

    def interrupted(self, name, *rest):
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, name, *rest)

    monkeypatch.setattr(torch.library.Library, "impl", interrupted)
    with pytest.raises(KeyboardInterrupt), by_onednn():
        pass
    assert torch.equal(a @ b, before) and not products._within


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
        lambda a, b: torch.zeros(200, 400, dtype=torch.float64).addmm_(a, b),
        lambda a, b: torch.mm(a[0], b),
        lambda a, b: torch.mm(a[None], b),
        lambda a, b: torch.mm(a, b, out=torch.empty(200, 400, dtype=torch.float64)),
        lambda a, b: torch.mm(a, b, out=torch.empty(200, 400, dtype=torch.int32)),
    ],
    ids=["shapes", "dtypes", "sum", "sum's dtype", "one axis", "three axes", "out's dtype", "out of integers"],
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


@pytest.mark.parametrize(
    ("device", "there", "count"), [("cpu", True, 1), ("cpu", False, 0), ("cuda", True, 0)], ids=["idle", "busy", "cuda"]
)
def test_products_are_counted_where_they_are_made_otherwise(monkeypatch, device, there, count):
    monkeypatch.setattr(products, "left_idle", lambda: there)
    a, b = factors()
    with widest_products(device) as made:
        a @ b
        a[:20] @ b[:, :20]
    assert (made.by, made.count) == ("oneDNN", count) and not products._within


AMD, INTEL = "vendor_id\t: AuthenticAMD", "vendor_id\t: GenuineIntel"


@pytest.mark.parametrize(
    ("capability", "mkl", "onednn", "processor", "said"),
    [
        ("AVX512", True, True, AMD, True),
        ("AVX2", True, True, AMD, False),
        ("AVX512", False, True, AMD, False),
        ("AVX512", True, False, AMD, False),
        ("AVX512", True, True, INTEL, False),
        ("AVX512", True, True, None, False),
    ],
)
def test_where_mkl_leaves_half_idle(monkeypatch, tmp_path, capability, mkl, onednn, processor, said):
    cpuinfo = tmp_path / "cpuinfo"
    if processor is not None:
        cpuinfo.write_text(processor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    monkeypatch.setattr(products, "Path", lambda _: cpuinfo)
    left_idle.cache_clear()
    try:
        assert left_idle() is said
    finally:
        left_idle.cache_clear()

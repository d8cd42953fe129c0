"""Losses under torch's own transforms: compile, vmap, grad, autocast."""

import pytest
import torch
from losses import ALL, batch, correlation, decoupled, each, every_loss, gradient

from kdlab.objectives import (
    LearnedTemperature,
    Linear,
    SkewedForwardKL,
    SoftTargets,
    entropy,
    log_soften,
    next_token,
    permute_dark_knowledge,
    restrict_vocabulary,
    smooth_labels,
    soften,
    standardise,
)

#: Functions of z, t, y that are not losses.
OTHERS = {
    "log_soften": lambda z, t, y: log_soften(z, 3.0),
    "soften": lambda z, t, y: soften(z, 3.0),
    "entropy": lambda z, t, y: entropy(z, 3.0),
    "standardise": lambda z, t, y: standardise(z),
    "smooth_labels": lambda z, t, y: smooth_labels(y, 5),
    "restrict_vocabulary": lambda z, t, y: restrict_vocabulary(z, torch.tensor([3, 0])),
    "restrict_vocabulary, with rest": lambda z, t, y: restrict_vocabulary(z, t.topk(2).indices, rest=True),
}
MASK = torch.tensor([True, True, False, True])


def compiled(function, backend="eager"):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend)


@each(ALL)
def test_losses_compile_without_a_graph_break(loss):
    z, t, y = batch(4, 5)
    found = compiled(lambda z, t, y, mask: loss(z, t, y, mask=mask))(z.requires_grad_(), t, y, MASK)
    torch.testing.assert_close(found, loss(z, t, y, mask=MASK))
    (slope,) = torch.autograd.grad(found, z)
    torch.testing.assert_close(slope, gradient(loss, z.detach(), t, y, mask=MASK))


@each({**OTHERS, "next_token": lambda z, t, y: next_token(z[None], t[None], y[None])}, "function")
def test_functions_compile_without_a_graph_break(function):
    given = batch(4, 5)
    torch.testing.assert_close(compiled(function)(*given), function(*given))


def test_permutation_compiles_without_a_graph_break():
    _, t, y = batch(4, 5)
    shuffled = compiled(lambda t, y: permute_dark_knowledge(t, y))(t, y)
    assert torch.equal(shuffled.sort(-1).values, t.sort(-1).values)


@pytest.mark.parametrize("loss", [ALL["jsd"], decoupled, correlation])
def test_the_backward_pass_is_traced_too(loss):
    z, t, y = batch(4, 5)
    found = compiled(lambda z: loss(z, t, y, mask=MASK), "aot_eager")(z.requires_grad_())
    (slope,) = torch.autograd.grad(found, z)
    torch.testing.assert_close(slope, gradient(loss, z.detach(), t, y, mask=MASK))


def test_terms_compile_without_a_graph_break():
    z, t, y = batch(4, 5)
    objective = Linear(1, 0) * SkewedForwardKL() + SoftTargets(temperature=LearnedTemperature())
    seen = {"student_logits": z, "teacher_logits": t, "labels": y, "progress": 0.5}
    torch.testing.assert_close(compiled(lambda **seen: objective(**seen))(**seen), objective(**seen))


@every_loss
def test_vmap_and_grad(loss):
    z, t, y = batch(4, 5)
    torch.testing.assert_close(torch.func.vmap(loss)(z, t, y), loss(z, t, y, reduction="none"))
    one_by_one = torch.func.vmap(torch.func.grad(loss))(z, t, y)
    torch.testing.assert_close(one_by_one, gradient(loss, z, t, y, reduction="sum"))


@each(ALL)
def test_vmap_over_batches_with_masks(loss):
    z, t, y = batch(3, 4, 5)
    mask = MASK | torch.eye(3, 4, dtype=torch.bool)
    found = torch.func.vmap(lambda z, t, y, mask: loss(z, t, y, mask=mask))(z, t, y, mask)
    expected = [loss(*one, mask=m) for *one, m in zip(z, t, y, mask, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected))
    slopes = torch.func.vmap(torch.func.grad(lambda z, t, y: loss(z, t, y)))(z, t, y)
    expected = [gradient(loss, *one) for one in zip(z, t, y, strict=True)]
    torch.testing.assert_close(slopes, torch.stack(expected))


@every_loss
def test_vmap_over_counts(loss):
    z, t, y = batch(3, 4, 5)
    counts = torch.tensor([2.0, 4.0, 8.0])
    found = torch.func.vmap(lambda z, t, y, count: loss(z, t, y, count=count))(z, t, y, counts)
    torch.testing.assert_close(found, loss(z, t, y, reduction="none").sum(1) / counts, check_dtype=False)


@each(OTHERS, "function")
def test_vmap_over_functions(function):
    z, t, y = batch(4, 5)
    torch.testing.assert_close(torch.func.vmap(function)(z, t, y), function(z, t, y))


def test_a_temperature_that_learns_can_be_differentiated_by_functions():
    temperature = LearnedTemperature(1, 21, strength=0.5)

    def value(theta):
        return torch.func.functional_call(temperature, {"theta": theta}, (1.0,))

    assert torch.func.grad(value)(torch.zeros(())) == -0.5 * 20 / 4


@each({**ALL, **OTHERS})
def test_no_value_is_looked_at_off_the_cpu(loss):
    """Where looking would stall the device, or be impossible as here, shapes and types alone are checked."""
    given = [x.to("meta") for x in batch(4, 5)]
    if loss in ALL.values():
        assert loss(*given, mask=MASK.to("meta")).device.type == "meta"
    assert loss(*given).device.type == "meta"


@each(ALL)
def test_autocast_changes_nothing_but_the_logits(loss):
    inputs, _, y = batch(8, 6)
    student, teacher = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        z, t = student(inputs.float()), teacher(inputs.float()).detach()
        assert z.dtype == torch.bfloat16
        found = loss(z, t, y)
    assert found.dtype == torch.float32 and torch.equal(found, loss(z, t, y))
    torch.testing.assert_close(found, loss(z.float(), t.float(), y), rtol=1e-6, atol=1e-7)
    found.backward()
    assert student.weight.grad.dtype == torch.float32 and student.weight.grad.any()

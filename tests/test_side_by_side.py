"""Several small networks in one module are what each is alone."""

import pytest
import torch
from torch import nn

from kdlab.data import ExactTeacher, Examples, KnownPosterior
from kdlab.models import SideBySide, mlp
from kdlab.objectives import ForwardKL
from kdlab.training import Recipe, fit

TASK = KnownPosterior.draw(superclasses=2, classes_each=2, dimensions=3, seed=0)


def small(seed):
    torch.manual_seed(seed)
    return mlp(3, 4, width=5, hidden_layers=1)


def test_each_slice_passes_through_its_own_network():
    networks, inputs = [small(s) for s in range(3)], torch.randn(7, 3, 3)
    outputs = SideBySide(networks, units=[1.0, 0.5, 2.0])(inputs)
    for m, network in enumerate(networks):
        torch.testing.assert_close(outputs[:, m], network(inputs[:, m]))


def test_adam_trains_each_as_it_would_alone_at_its_own_rate():
    rates, train = (0.01, 0.1), [TASK.sample(64, generator=torch.Generator().manual_seed(s)) for s in range(2)]

    def recipe(rate):
        return Recipe(
            epochs=2,
            batch_size=16,
            optimizer="adam",
            learning_rate=rate,
            weight_decay=0.0,
            schedule="cosine",
            augment=False,
        )

    alone = [small(s) for s in range(2)]
    for network, rate, examples in zip(alone, rates, train, strict=True):
        fit(network, ForwardKL(), train=examples, teacher=ExactTeacher(TASK), recipe=recipe(rate))
    beside = SideBySide([small(s) for s in range(2)], units=[rate / 0.1 for rate in rates])
    both = Examples(torch.stack([t.inputs for t in train], 1), torch.stack([t.labels for t in train], 1))
    fit(beside, 2.0 * ForwardKL(), train=both, teacher=ExactTeacher(TASK), recipe=recipe(0.1))
    inputs = TASK.sample(50).inputs
    outputs = beside(inputs[:, None].expand(-1, 2, -1))
    for m, network in enumerate(alone):
        torch.testing.assert_close(outputs[:, m], network(inputs), atol=1e-3, rtol=1e-3)


def test_what_cannot_stand_side_by_side_is_refused():
    with pytest.raises(ValueError, match="0 networks need a positive unit each"):
        SideBySide([])
    with pytest.raises(ValueError, match="2 networks need a positive unit each"):
        SideBySide([small(0), small(1)], units=[1.0])
    with pytest.raises(ValueError, match="running statistics"):
        SideBySide([nn.BatchNorm1d(3)])
    with pytest.raises(ValueError, match=r"shape \(B, 2, …\), not \(4, 3, 3\)"):
        SideBySide([small(0), small(1)])(torch.randn(4, 3, 3))

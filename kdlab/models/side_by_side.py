"""Several small networks of one architecture as one module."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdlab.shapes import Float


class SideBySide(nn.Module):
    r"""Networks of one architecture that train at once, each on examples of its own.

    Inputs of shape ``(B, M, …)`` become outputs ``(B, M, …)``: slice :math:`m` of the second axis passes through network
    :math:`m` and no other. So a loss that is a sum over the slices trains :math:`M` networks in the time of few, and
    :func:`~kdlab.training.loop.fit` takes them as one student. (A mean over the slices makes each gradient :math:`M` times
    smaller: weight the objective with :math:`M`.)

    Parameters are held in units :math:`u_m`: network :math:`m` computes with :math:`u_m\phi_m`, and :math:`\phi_m` is what the
    optimiser moves. The step of Adam does not depend on the gradient's size (up to its :math:`\epsilon`), so that it moves network
    :math:`m` by :math:`u_m` times the recipe's rate. With plain SGD it would be :math:`u_m^2` times.

    Args:
        networks: copied; they have the same layers and no buffers.
        units: :math:`u`, one positive number for each network; all one if None.

    Raises:
        ValueError: if there is no network, or not a positive unit for each; for networks with buffers, such as batch
            normalisation's, which would be shared.

    >>> networks = [nn.Linear(3, 2) for _ in range(4)]
    >>> beside, inputs = SideBySide(networks), torch.randn(5, 4, 3)
    >>> torch.allclose(beside(inputs)[:, 1], networks[1](inputs[:, 1]), atol=1e-6)
    True
    """

    def __init__(self, networks: Sequence[nn.Module], units: Sequence[float] | None = None) -> None:
        super().__init__()
        units = [1.0] * len(networks) if units is None else list(units)
        if not networks or len(units) != len(networks) or min(units) <= 0:
            raise ValueError(f"{len(networks)} networks need a positive unit each, not {units}.")
        if any(True for network in networks for _ in network.buffers()):
            raise ValueError("networks with buffers, such as running statistics, cannot stand side by side.")
        stacked, _ = torch.func.stack_module_state(list(networks))
        self.names = tuple(stacked)
        self.register_buffer("units", torch.tensor(units, dtype=stacked[self.names[0]].dtype))
        self.stacked = nn.ParameterList(nn.Parameter(w.detach() / self._unit(w)) for w in stacked.values())
        self._network = [copy.deepcopy(networks[0]).to("meta")]  # in a list: its weights are not ours

    def _unit(self, weights: Tensor) -> Tensor:
        return self.units.view(-1, *[1] * (weights.ndim - 1))

    def forward(self, inputs: Float[Tensor, "B networks ..."]) -> Float[Tensor, "B networks ..."]:
        if inputs.ndim < 2 or inputs.shape[1] != len(self.units):
            raise ValueError(
                f"inputs for {len(self.units)} networks have shape (B, {len(self.units)}, …), not {tuple(inputs.shape)}."
            )

        def one(weights, x):
            return torch.func.functional_call(self._network[0], dict(zip(self.names, weights, strict=True)), (x,))

        weights = [self._unit(w) * w for w in self.stacked]
        return torch.vmap(one, in_dims=(0, 1), out_dims=1)(weights, inputs)

    def __len__(self) -> int:
        return len(self.units)

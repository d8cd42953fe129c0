"""A plain network for vectors."""

from torch import nn


def mlp(inputs: int, outputs: int, *, width: int = 64, hidden_layers: int = 2) -> nn.Sequential:
    """A multi-layer perceptron with ReLU: vectors ``(B, inputs)`` to logits ``(B, outputs)``.

    >>> mlp(16, 20, width=8, hidden_layers=1)
    Sequential(
      (0): Linear(in_features=16, out_features=8, bias=True)
      (1): ReLU()
      (2): Linear(in_features=8, out_features=20, bias=True)
    )
    """
    layers = []
    for _ in range(hidden_layers):
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))

"""The optimiser that a recipe names."""

import torch

from .recipe import Recipe


def optimizer_of(recipe: Recipe, student, objective, device) -> torch.optim.Optimizer:
    """The recipe's optimiser. A single number, such as a temperature that an objective learns, does not decay."""
    on_cuda = torch.device(device).type == "cuda"
    rate = torch.tensor(recipe.learning_rate, device=device) if on_cuda else recipe.learning_rate
    every, axes = [*student.parameters(), *objective.parameters()], 2 if recipe.optimizer == "adamw" else 1
    every = [p for p in every if p.requires_grad]
    parameters = [{"params": [p for p in every if p.ndim >= axes]}]
    if still := [p for p in every if p.ndim < axes]:
        parameters.append({"params": still, "weight_decay": 0.0})
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters, rate, (0.9, 0.95), weight_decay=recipe.weight_decay, fused=on_cuda, capturable=on_cuda
        )
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, rate, weight_decay=recipe.weight_decay, fused=on_cuda, capturable=on_cuda)
    return torch.optim.SGD(parameters, rate, recipe.momentum, weight_decay=recipe.weight_decay, fused=on_cuda)

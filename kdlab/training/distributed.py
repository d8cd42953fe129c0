"""What changes when ``torchrun`` spreads one run over several processes."""

import torch
from torch import distributed, nn


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are: (0, 1) where a run is not spread."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Replace each gradient by its mean over the processes, in one message."""
    _, world = rank_and_world()
    if world == 1:
        return
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    flat /= world
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def synchronised_batch_norm(model: nn.Module, device) -> None:
    """Have batch normalisation average over all processes, where PyTorch can (on CUDA).

    On a CPU each process normalises by its own part of the batch, as with smaller batches.
    """
    if rank_and_world()[1] > 1 and torch.device(device).type == "cuda":
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                parent = model.get_submodule(name.rpartition(".")[0])
                setattr(
                    parent,
                    name.rpartition(".")[2],
                    nn.SyncBatchNorm.convert_sync_batchnorm(module),
                )

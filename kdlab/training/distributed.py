"""What changes when ``torchrun`` spreads one run over several processes."""

import os
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn


@contextmanager
def processes(device):
    """Join the processes that ``torchrun`` started, until the block ends; yield this one's device.

    CPUs talk by gloo, GPUs by NCCL, each process having the GPU of its local rank. A process that is alone gets ``device``.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield torch.device(device)
        return
    device = torch.device(device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are: (0, 1) where a run is not spread."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def anywhere(flag: bool) -> bool:
    """Whether ``flag`` is True in any process. They talk by gloo: no GPU is waited for."""
    if rank_and_world()[1] == 1:
        return flag
    found = torch.tensor(int(flag))
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return bool(found)


def by_the_first(function: Callable):
    """What ``function`` returns or raises in the first process, in every process."""
    rank, world = rank_and_world()
    if world == 1:
        return function()
    found = [None, None]
    if rank == 0:
        try:
            found[0] = function()
        except Exception as error:  # noqa: BLE001 (the others wait for an answer)
            found[1] = error
    distributed.broadcast_object_list(found)
    result, error = found
    if error is not None:
        raise error
    return result


def average(value: Tensor) -> Tensor:
    """The mean of ``value`` over the processes."""
    _, world = rank_and_world()
    if world > 1:
        value = value / world
        distributed.all_reduce(value)
    return value


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Replace each gradient by its mean over the processes, in one message."""
    if rank_and_world()[1] == 1:
        return
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    flat = average(torch.cat([g.flatten() for g in gradients]))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def synchronised_batch_norm(model: nn.Module, device) -> None:
    """Have batch normalisation average over all processes, where PyTorch can (on CUDA).

    On a CPU each process normalises by its own part of the batch, as with smaller batches.
    """
    if rank_and_world()[1] > 1 and torch.device(device).type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place

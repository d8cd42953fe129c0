"""What makes a device compute the same bits twice."""

import os
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def on_device(device, precision: str):
    """On CUDA: streams and graphs are of this device; its convolutions are those that give the same bits twice, and float32 is no TF32."""
    if torch.device(device).type != "cuda":
        yield
        return
    flags = torch.backends.cudnn
    before = flags.deterministic, flags.allow_tf32
    with torch.cuda.device(device):
        flags.deterministic, flags.allow_tf32 = True, precision != "float32"
        try:
            yield
        finally:
            flags.deterministic, flags.allow_tf32 = before


@contextmanager
def deterministic_attention(labels: Tensor):
    """For the backward pass of texts on CUDA, whose fused attention adds up in any order unless it is told not to.

    Nothing changes where the process has no ``CUBLAS_WORKSPACE_CONFIG``, without which PyTorch refuses to be told; ``kdlab run``
    has set it.
    """
    if labels.ndim < 2 or not labels.is_cuda or "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
        yield
        return
    filling = torch.utils.deterministic
    before = torch.get_deterministic_debug_mode(), filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        filling.fill_uninitialized_memory = before[1]

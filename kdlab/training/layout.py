"""How the tensors of a model lie in memory while it is trained."""

import torch
from torch import nn


def memory_format(model: nn.Module, device) -> torch.memory_format:
    """Channels last, which convolutions are faster in; contiguous where that would not be safe.

    On a CPU without AVX-512, the gradient of a 1×1 convolution with stride and fewer than eight input channels writes past its
    buffer where the channels are last (oneDNN of torch 2.13: the process dies, or other numbers change). Such a model is
    trained in the other layout, on every CPU, so that a run does not depend on which it is.
    """
    narrow = any(
        isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.stride != (1, 1) and m.in_channels < 8
        for m in model.modules()
    )
    on_cpu = torch.device(device).type == "cpu"
    return torch.contiguous_format if on_cpu and narrow else torch.channels_last

"""Random numbers that depend on what they are for, and on nothing that was drawn before."""

import hashlib
from contextlib import contextmanager

import torch


def number(*what) -> int:
    """A seed of 63 bits from what it is for."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:8], "big") >> 1


def generator(*what) -> torch.Generator:
    """A generator on the CPU, seeded by what it is for."""
    return torch.Generator().manual_seed(number(*what))


def seed_torch(device: torch.device, *what) -> None:
    """Seed what terms and models draw from (a captured step draws nothing)."""
    if device.type == "cuda":
        if not torch.cuda.is_current_stream_capturing():
            here = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.default_generators[here].manual_seed(number(*what))
    else:
        torch.default_generator.manual_seed(number(*what))


@contextmanager
def own_random_state(device):
    """After the block, torch's random state on the device is as it was before."""
    on_cuda = torch.device(device).type == "cuda"
    state = torch.cuda.get_rng_state(device) if on_cuda else torch.get_rng_state()
    try:
        yield
    finally:
        torch.cuda.set_rng_state(state, device) if on_cuda else torch.set_rng_state(state)

"""A student on several ranks, each with a part of the batch."""

import os

import torch
from torch import nn

from kdlab.objectives import CrossEntropy, SkewedForwardKL, SoftTargets, global_count

#: The sequences that each of two ranks takes: 6 + 1 + 3 tokens, and 2.
PARTS = (slice(0, 3), slice(3, 4))


def gradients(parts, wrap=lambda student: student):
    """The gradient of a student's parameters, from one micro-batch after another."""
    torch.manual_seed(0)
    inputs, teacher_logits = torch.randn(4, 6, 8), torch.randn(4, 6, 5)
    mask = torch.arange(6) < torch.tensor([[6], [1], [3], [2]])
    labels = torch.randint(5, (4, 6)).where(mask, -100)
    student = nn.Linear(8, 5)
    model = wrap(student)
    objective = 0.3 * CrossEntropy() + 0.5 * SoftTargets(temperature=2) + 0.2 * SkewedForwardKL()
    count = sum(global_count(mask[part]) for part in parts)
    for part in parts:
        total, _ = objective(
            student_logits=model(inputs[part]),
            teacher_logits=teacher_logits[part],
            labels=labels[part],
            mask=mask[part],
            count=count,
        )
        total.backward()
    return {name: parameter.grad for name, parameter in student.named_parameters()}


def distributed_gradients(rank):
    return gradients([PARTS[rank]], nn.parallel.DistributedDataParallel)


def one_rank(rank, ranks, folder, what):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=ranks)
    torch.save(what(rank), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def leave():
    """End a forked process at once: where a wrapped model is freed after its group, gloo's destructor may wait for ever for its own thread."""
    torch.distributed.destroy_process_group()
    os._exit(0)


def on_ranks(ranks, folder, what=distributed_gradients):
    """Each rank stores what ``what(rank)`` gives, a dict of tensors, as ``rank.pt``."""
    torch.multiprocessing.spawn(one_rank, (ranks, folder, what), nprocs=ranks)

"""``step``: images a second, against the step as the published studies write it."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..data import Split
from .timing import Contest, Laps, Settings, contest
from .training import kd, kdlab_round, network, recipe, synthetic, untrained_teacher


class ImageByImage(Dataset):
    """Images that are cropped, mirrored and normalised one at a time, in Python.

    By NumPy, where the published code has PIL and torchvision: the same operations on the same bytes, without the
    conversions between the two, and thus a little faster than they are (55 µs an image where PIL took 70).
    """

    def __init__(self, split: Split):
        self.images = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = split.labels.tolist()
        self.mean, self.std = np.float32(split.mean), np.float32(split.std)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        image = np.pad(self.images[index], ((4, 4), (4, 4), (0, 0)))
        top, left, mirrored = torch.randint(9, (2,)).tolist() + [torch.rand(()).item() < 0.5]
        image = image[top : top + 32, left : left + 32]
        if mirrored:
            image = image[:, ::-1]
        image = (image.astype(np.float32) / 255 - self.mean) / self.std
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), self.labels[index], index


#: Of how many views a teacher's logits are kept where it is timed what it costs to learn from them.
VIEWS = 4


def loss_by_hand(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """0.1 of the hard labels, 0.9 of the soft targets at temperature 4."""
    log_q = F.log_softmax(student_logits / 4, dim=1)
    p = F.softmax(teacher_logits / 4, dim=1)
    soft = F.kl_div(log_q, p, reduction="sum") * 4**2 / len(labels)
    return 0.1 * F.cross_entropy(student_logits, labels) + 0.9 * soft


def step_by_hand(
    student: nn.Module, teacher: nn.Module, optimizer, inputs: Tensor, labels: Tensor
) -> tuple[float, float, float]:
    """One step: float32, the teacher asked anew, and loss, top-1 and top-5 accuracy read at once; these are returned."""
    student_logits = student(inputs)
    with torch.no_grad():
        teacher_logits = teacher(inputs)
    loss = loss_by_hand(student_logits, teacher_logits, labels)
    hits = student_logits.detach().topk(5, dim=1).indices == labels[:, None]
    read = loss.item(), hits[:, 0].float().mean().item(), hits.any(1).float().mean().item()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return read


def round_by_hand(settings: Settings, pair: tuple[str, str]):
    """A function that trains two epochs as the published code does, and times the second."""
    student, teacher = network(pair[1]).to(settings.device), untrained_teacher(pair[0]).to(settings.device)
    how = recipe(settings)
    loader = DataLoader(
        ImageByImage(synthetic(settings.images)),
        settings.batch_size,
        shuffle=True,
        num_workers=settings.workers,
    )

    def one_round() -> float:
        laps = Laps(settings.device)
        optimizer = torch.optim.SGD(
            student.parameters(), how.learning_rate, how.momentum, weight_decay=how.weight_decay
        )
        student.train()
        tuned, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            for _ in range(how.epochs):
                for inputs, labels, _ in loader:
                    inputs, labels = inputs.to(settings.device), labels.to(settings.device)
                    step_by_hand(student, teacher, optimizer, inputs, labels)
                laps()
        finally:
            torch.backends.cudnn.benchmark = tuned
        return laps.last

    return one_round


def step(settings: Settings) -> list[Contest]:
    """kdlab against the step as RepDistiller writes it: images a second, for one student and for five.

    By hand: images are prepared one at a time by the workers of a DataLoader, computed in float32 and NCHW, the teacher
    looks once for every student, and loss and accuracy are read at every step; cuDNN chooses its fastest kernels, as there.
    kdlab: ``fit_together``, images on the device, its faster precision, channels-last memory, and five students
    beside one look of the teacher. Networks, batches, loss and optimiser are the same. Five students by hand are trained
    one after another, at the images a second of one. Images are counted once for each student. On CUDA the five have a seed each,
    and so batches of their own, which the teacher looks at joined; on a CPU they share one, as the runner has it there. Five once more, from
    logits of the teacher that were made before (:class:`~kdlab.training.teachers.LogitsOfViews`; of few views, since it costs the same).
    """
    names = settings.pair
    seeds = range(5) if torch.device(settings.device).type == "cuda" else (0,) * 5
    contestants = {
        "by hand": round_by_hand(settings, names),
        "kdlab": kdlab_round(settings, names, kd()),
        "kdlab, 5 students": kdlab_round(settings, names, kd(), seeds=seeds),
        "kdlab, 5 students, kept logits": kdlab_round(settings, names, kd(), seeds=seeds, views=VIEWS),
    }
    images = dict.fromkeys(list(contestants)[2:], 5 * settings.images)
    return [
        contest(
            f"KD {names[0]} → {names[1]}", contestants, settings,
            reference="by hand", images=images,
        )
    ]  # fmt: skip

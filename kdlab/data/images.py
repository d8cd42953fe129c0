"""Labelled images: CIFAR-100, CIFAR-10, and the digits that stand in for them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.shapes import Bool, Float, Integer, Shaped, with_shapes

from ..files import note_read
from .download import DataError, fetch_archive

_CIFAR100 = {
    "url": "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    "known_hash": "md5:03b5dce01913d631647c71ecec9e9cb8",
    "name": "cifar-100-binary",
}
_CIFAR10 = {
    "url": "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "known_hash": "md5:c32a1d4ab5d03f1284b67883e8d87530",
    "name": "cifar-10-batches-bin",
}


#: Zeros around an image of which its crops are taken, and how many crops there are; those from this number on are mirrored, too.
PADDING = 4
SHIFTS = (2 * PADDING + 1) ** 2
#: The number of the view that shows an image as it is.
UNMOVED = SHIFTS // 2


@lru_cache(maxsize=32)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "1 C 1 1"]:
    """Constants of the channels, which are copied to a device once: a copy waits for it."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)


@dataclass(frozen=True)
class Split:
    """Images, their labels, and the constants that normalise them.

    Attributes:
        images: uint8, shape ``(n, 3, 32, 32)``.
        labels: int64, shape ``(n,)``.
        mean, std: per channel, of the training images, in units of 0 … 1.
        flip: whether a mirrored image keeps its meaning (true of objects, not of digits).
        views: by number, those that augmentation draws from; None: all 81 shifts, mirrored too where ``flip`` says so.
    """

    __repr__ = with_shapes

    images: Shaped[Tensor, "n 3 H W"]
    labels: Integer[Tensor, " n"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool = True
    views: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images are uint8, 0 to 255, of shape (n, 3, H, W), not {self.images.dtype} of shape {tuple(self.images.shape)}; of floating-point "
                "inputs make kdlab.data.Examples."
            )
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images do not fit {len(self.labels)} labels.")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> "Split":
        return replace(self, images=self.images[index], labels=self.labels[index])

    def to(self, device: torch.device | str) -> "Split":
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def normalise(self, images: Shaped[Tensor, "n 3 H W"]) -> Float[Tensor, "n 3 H W"]:
        """uint8 images to float32 of mean zero and deviation one, in channels-last memory."""
        mean, std = (_per_channel(tuple(values), images.device) for values in (self.mean, self.std))
        return (images.float() / 255 - mean).div_(std).contiguous(memory_format=torch.channels_last)

    @property
    def all_views(self) -> tuple[int, ...]:
        """The numbers of all views that augmentation may draw."""
        return tuple(range(2 * SHIFTS if self.flip else SHIFTS)) if self.views is None else self.views

    def with_views(self, n: int, *, seed: int = 0) -> "Split":
        """The same, augmented by no more than n views, drawn once from all that there are."""
        if not 1 <= n <= len(self.all_views):
            raise ValueError(f"there are {len(self.all_views)} views, of which at least one is drawn, not {n}.")
        drawn = torch.randperm(len(self.all_views), generator=torch.Generator().manual_seed(seed))[:n]
        return replace(self, views=tuple(self.all_views[i] for i in drawn.tolist()))

    def draw_views(self, n: int, generator: torch.Generator | None) -> Integer[Tensor, " n"]:
        """A view for each of n images, by number."""
        if self.views is not None:
            return torch.tensor(self.views)[torch.randint(len(self.views), (n,), generator=generator)]
        shifts, mirrored = draw_crops(n, generator, flip=self.flip)
        number = shifts[0] * (2 * PADDING + 1) + shifts[1]
        return number if mirrored is None else number + SHIFTS * mirrored

    def seen(
        self, index: Integer[Tensor, " n"], views: Integer[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n 3 H W"]:
        """Normalised images, each in its view; None: as it is."""
        images = self.images[index]
        if views is not None:
            side = 2 * PADDING + 1
            shifts = torch.stack([views % SHIFTS // side, views % side])
            images = shift_and_mirror(images, shifts, views >= SHIFTS if self.flip else None)
        return self.normalise(images)

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        augment: bool = False,
        order: Integer[Tensor, " N"] | None = None,
        start: int = 0,
        tell_views: bool = False,
    ) -> Iterator[tuple[Tensor, ...]]:
        """Batches of (normalised images ``(n, 3, H, W)``, labels ``(n,)``, their indices in the split ``(n,)``).

        In a random order if there is a generator, else in order. A shuffled pass drops the last, incomplete batch, so that
        every step sees ``batch_size`` images (a split smaller than one batch is one batch). An ordered pass drops nothing.

        Args:
            order: a shuffled pass in this order, a permutation of the indices; the generator is then for augmentation alone.
            start: how many batches to leave out; those that follow are the same as without.
            tell_views: whether each batch ends with the numbers of the views that are seen in it, ``(n,)``.
        """
        device = self.labels.device
        indices = list(batch_indices(len(self), batch_size, generator, order, device))
        sizes = [len(index) for index in indices]
        drawn = None
        if augment:  # of the whole pass, so that no batch waits for a device
            drawn = torch.cat([self.draw_views(n, generator) for n in sizes]).to(device).split(sizes)
        for number in range(start, len(indices)):
            index, views = indices[number], None if drawn is None else drawn[number]
            batch = self.seen(index, views), self.labels[index], index
            yield (*batch, torch.full_like(index, UNMOVED) if views is None else views) if tell_views else batch


def batch_indices(
    n: int,
    batch_size: int,
    generator: torch.Generator | None = None,
    order: Integer[Tensor, " N"] | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Integer[Tensor, " n"]]:
    """Indices of batches: in order and all, or shuffled and none incomplete. They are copied to the device once, which waits for it."""
    if generator is None and order is None:
        yield from torch.arange(n, device=device).split(batch_size)
    else:
        order = torch.randperm(n, generator=generator) if order is None else order
        yield from order[: max(n - n % batch_size, min(n, batch_size))].to(device).split(batch_size)


def draw_crops(
    n: int, generator: torch.Generator | None, *, padding: int = PADDING, flip: bool = True
) -> tuple[Integer[Tensor, "2 n"], Bool[Tensor, " n"] | None]:
    """Shifts ``(2, n)``, from 0 to twice the padding, and for each image whether it is mirrored (None: none is)."""
    shifts = torch.randint(0, 2 * padding + 1, (2, n), generator=generator)
    return shifts, torch.rand(n, generator=generator) < 0.5 if flip else None


def shift_and_mirror(
    images: Shaped[Tensor, "n C H W"],
    shifts: Integer[Tensor, "2 n"],
    mirrored: Bool[Tensor, " n"] | None,
    *,
    padding: int = 4,
) -> Shaped[Tensor, "n C H W"]:
    """Crop each image out of its zero-padded self at its shift, and mirror those that are to be."""
    height, width = images.shape[2:]
    rows = shifts[0][:, None] + torch.arange(height, device=shifts.device)
    columns = shifts[1][:, None] + torch.arange(width, device=shifts.device)
    if mirrored is not None:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    rows, columns = (x.to(images.device, non_blocking=True) for x in (rows, columns))
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    example = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[example, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def crop_and_flip(
    images: Shaped[Tensor, "n C H W"], generator: torch.Generator | None, *, padding: int = 4, flip: bool = True
) -> Shaped[Tensor, "n C H W"]:
    """Each image shifted by up to ``padding`` pixels, zeros moving in, and mirrored with probability one half.

    The augmentation of the published CIFAR recipes (He et al. 2016, section 4.2).
    """
    return shift_and_mirror(images, *draw_crops(len(images), generator, padding=padding, flip=flip), padding=padding)


def draw_boxes(
    n: int, generator: torch.Generator | None, *, area: tuple[float, float] = (0.25, 1.0)
) -> Float[Tensor, "n 4"]:
    """Square parts of pictures, for :func:`resample`: each of an area drawn evenly between two fractions of the whole, anywhere in it.

    Returns:
        float32, shape ``(n, 4)``: top, left, bottom and right, from 0 to 1.

    Raises:
        ValueError: for areas that are not from 0 to 1.
    """
    least, most = area
    if not 0 < least <= most <= 1:
        raise ValueError(f"area is two fractions of the whole picture, such as (0.25, 1.0), not {area!r}.")
    side = (least + (most - least) * torch.rand(n, 1, generator=generator)).sqrt()
    corner = torch.rand(n, 2, generator=generator) * (1 - side)
    return torch.cat([corner, (corner + side).clamp(max=1.0)], 1)


def resample(
    images: Float[Tensor, "n C H W"], boxes: Float[Tensor, "n 4"], size: int | tuple[int, int]
) -> Float[Tensor, "n C h w"]:
    """What lies in a box of each picture or map, at another size: bilinear, each new pixel at the centre of its part of the box.

    Differentiable in the images. Of a box that is much larger than the new size, pixels in between are passed over.

    Args:
        images: floating point, shape ``(B, C, H, W)``.
        boxes: top, left, bottom and right, from 0 to 1, shape ``(B, 4)``.
        size: the new height and width, or one for both.

    >>> picture = torch.arange(4.0).view(1, 1, 2, 2)
    >>> resample(picture, torch.tensor([[0.0, 0.5, 1.0, 1.0]]), (2, 1)).flatten().tolist()
    [1.0, 3.0]
    """
    height, width = (size, size) if isinstance(size, int) else size
    top, left, bottom, right = boxes.to(images.device, torch.float32).unbind(1)

    def centres(low, high, n):
        parts = (torch.arange(n, device=images.device) + 0.5) / n
        return 2 * (low[:, None] + parts * (high - low)[:, None]) - 1  # −1 and 1 are the edges

    y = centres(top, bottom, height)[:, :, None].expand(-1, height, width)
    x = centres(left, right, width)[:, None, :].expand(-1, height, width)
    grid = torch.stack([x, y], -1).to(images.dtype)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class ImageData:
    """A data set in three splits.

    Attributes:
        name: ``"cifar100"``, ``"cifar10"`` or ``"digits"``.
        train, validation, test: the validation split is held out of the training images; it chooses, the test
            split is touched once.
        classes, superclasses: names; ``superclass_of[c]`` is the superclass of class ``c``.
        checksum: of the content, whatever its order on disk.
        fallback: whether this stands in for data that could not be had, and ``reason``: why.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    superclasses: tuple[str, ...]
    superclass_of: tuple[int, ...]
    checksum: str
    fallback: bool = False
    reason: str = ""
    # For people, what its examples are called, and what a fall-back stands in for.
    unit: ClassVar[str] = "images"
    wanted: ClassVar[str] = "CIFAR-100"

    @property
    def title(self) -> str:
        return self.name

    @property
    def num_classes(self) -> int:
        return len(self.classes)


def _canonical(rows: np.ndarray) -> tuple[np.ndarray, str]:
    """Rows in the order of their SHA-256, and the SHA-256 of that order.

    Copies of one data set that store it in different orders thus give the same checksum, the same splits and the
    same batches.
    """
    digests = [hashlib.sha256(row.tobytes()).digest() for row in rows]
    order = sorted(range(len(rows)), key=digests.__getitem__)
    return rows[order], hashlib.sha256(b"".join(digests[i] for i in order)).hexdigest()


def _read_rows(path, rows: int, bytes_per_row: int) -> np.ndarray:
    if not note_read(path).is_file():
        raise DataError(f"{path} is missing; delete its folder, and it is downloaded again.")
    size = path.stat().st_size
    if size != rows * bytes_per_row:
        raise DataError(
            f"{path} has {size:,} bytes instead of {rows * bytes_per_row:,}: it is truncated or not the official "
            "binary version; delete its folder, and it is downloaded again."
        )
    return np.fromfile(path, dtype=np.uint8).reshape(rows, bytes_per_row)


def _read_names(path) -> tuple[str, ...]:
    if not note_read(path).is_file():
        raise DataError(f"{path} is missing; delete its folder, and it is downloaded again.")
    return tuple(path.read_text(encoding="utf-8").split())


def _hold_out(labels: np.ndarray, per_class: int) -> np.ndarray:
    """True for the first ``per_class`` rows of each class (the canonical order is as good as random)."""
    held = np.zeros(len(labels), dtype=bool)
    for c in np.unique(labels):
        held[np.flatnonzero(labels == c)[:per_class]] = True
    return held


def _assemble(train, test, *, validation: int, flip, **described) -> ImageData:
    """``train`` and ``test`` are (images uint8, labels); ``validation`` images a class are held out of ``train``."""
    images, labels = train
    pixels = images.transpose(1, 0, 2, 3).reshape(3, -1)
    mean = pixels.mean(1, dtype=np.float64) / 255
    std = np.sqrt((pixels.astype(np.uint16) ** 2).mean(1, dtype=np.float64) / 255**2 - mean**2)
    constants = {"mean": tuple(mean.tolist()), "std": tuple(std.tolist()), "flip": flip}

    def split(images, labels):
        return Split(torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64)), **constants)

    held = _hold_out(labels, validation)
    return ImageData(
        train=split(images[~held], labels[~held]),
        validation=split(images[held], labels[held]),
        test=split(*test),
        **described,
    )


def _read_checked(paths, rows: int, bytes_per_row: int, known: str, name: str) -> np.ndarray:
    """The rows of one or more files, in canonical order, if they are those that the data set has."""
    content, checksum = _canonical(np.concatenate([_read_rows(path, rows, bytes_per_row) for path in paths]))
    if checksum != known:
        where = paths[0] if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}"
        raise DataError(
            f"{where} {'does' if len(paths) == 1 else 'do'} not hold the {rows * len(paths):,} images of {name} (content checksum "
            f"{checksum[:12]}… instead of {known[:12]}…); delete its folder, and it is downloaded again."
        )
    return content


# Of the content, whatever its order on disk.
CIFAR100_CHECKSUM = "7077d87fc363f92dbf1245f13ba80561d7b33a96c79ad57168d49dc172aaa92b"
CIFAR100_TEST_CHECKSUM = "96adb3db8da7632dbb350559a17b9f585fab5b17675de5fc8f6761384196b294"
CIFAR10_CHECKSUM = "55a61f79a40ece2ceda9fb5f9f7078f6ea2fc4952489cef56682bcf92cfcc260"
CIFAR10_TEST_CHECKSUM = "325704b01eb92e1e2a6215ae6a916bb7db7de054af0c496be1c7be2e0fcfbf5f"


def load_cifar100(*, validation_per_class: int = 50, download: bool = True) -> ImageData:
    """CIFAR-100 in the official binary layout (Krizhevsky 2009): 60,000 images, 100 classes, 20 superclasses.

    Read from ``cifar-100-binary`` in the data folder (:func:`~kdlab.data.download.folder`), or downloaded there.

    Args:
        validation_per_class: training images of each class that are held out for validation.
        download: whether the archive may be downloaded.

    Raises:
        DataError: if the data are missing and cannot be downloaded, truncated, or not CIFAR-100.
    """
    where = fetch_archive(**_CIFAR100, download=download)
    parts = {
        name: _read_checked([where / f"{name}.bin"], rows, 3074, known, "CIFAR-100")
        for name, rows, known in (("train", 50_000, CIFAR100_CHECKSUM), ("test", 10_000, CIFAR100_TEST_CHECKSUM))
    }
    coarse, fine = parts["train"][:, 0], parts["train"][:, 1]
    superclass_of = tuple(int(coarse[fine == c][0]) for c in range(100))
    names = [_read_names(where / f"{kind}_label_names.txt") for kind in ("fine", "coarse")]
    return _assemble(
        *((rows[:, 2:].reshape(-1, 3, 32, 32), rows[:, 1]) for rows in (parts["train"], parts["test"])),
        validation=validation_per_class,
        flip=True,
        name="cifar100",
        classes=names[0],
        superclasses=names[1],
        superclass_of=superclass_of,
        checksum=CIFAR100_CHECKSUM,
    )


def load_cifar10(*, validation_per_class: int = 500, download: bool = True) -> ImageData:
    """CIFAR-10 in the official binary layout: 60,000 images, 10 classes, grouped as animals and vehicles.

    Read from ``cifar-10-batches-bin`` in the data folder, or downloaded there. Arguments and errors as in
    :func:`load_cifar100`.
    """
    where = fetch_archive(**_CIFAR10, download=download)
    batches = [where / f"data_batch_{i}.bin" for i in range(1, 6)]
    train = _read_checked(batches, 10_000, 3073, CIFAR10_CHECKSUM, "CIFAR-10")
    test = _read_checked([where / "test_batch.bin"], 10_000, 3073, CIFAR10_TEST_CHECKSUM, "CIFAR-10")
    classes = _read_names(where / "batches.meta.txt")
    vehicles = {"airplane", "automobile", "ship", "truck"}
    return _assemble(
        *((rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]) for rows in (train, test)),
        validation=validation_per_class,
        flip=True,
        name="cifar10",
        classes=classes,
        superclasses=("animals", "vehicles"),
        superclass_of=tuple(int(c in vehicles) for c in classes),
        checksum=CIFAR10_CHECKSUM,
    )


def load_digits(*, validation_per_class: int = 20) -> ImageData:
    """The 1,797 handwritten 8×8 digits that scikit-learn carries, enlarged to 3×32×32.

    They stand in where CIFAR cannot be had, so that every cell still runs. Their "superclasses" group digits by
    the strokes they share.

    Raises:
        DataError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as sklearn_digits
    except ImportError:
        raise DataError("the fall-back images come with scikit-learn: pip install 'kdlab[data]'.") from None
    digits: Any = sklearn_digits()
    small = np.minimum(digits.images * 16, 255).astype(np.uint8)
    images = np.repeat(small.repeat(4, 1).repeat(4, 2)[:, None], 3, axis=1)
    rows, checksum = _canonical(np.concatenate([digits.target[:, None].astype(np.uint8), images.reshape(-1, 3072)], 1))
    test = _hold_out(rows[:, 0], 40)
    groups = {"closed loops": {0, 6, 8, 9}, "straight strokes": {1, 4, 7}, "open curves": {2, 3, 5}}
    return _assemble(
        *((part[:, 1:].reshape(-1, 3, 32, 32), part[:, 0]) for part in (rows[~test], rows[test])),
        validation=validation_per_class,
        flip=False,
        name="digits",
        classes=tuple(str(d) for d in range(10)),
        superclasses=tuple(groups),
        superclass_of=tuple(next(g for g, members in enumerate(groups.values()) if d in members) for d in range(10)),
        checksum=checksum,
        fallback=True,
    )


def load_images(*, download: bool = True) -> ImageData:
    """CIFAR-100, or :func:`load_digits` with ``fallback=True`` where it cannot be had.

    Raises:
        DataError: if CIFAR-100 is there but damaged: that is a mistake to mend, not to step over.
    """
    try:
        fetch_archive(**_CIFAR100, download=download)
    except DataError as error:
        return replace(load_digits(), reason=str(error))
    return load_cifar100()

"""Examples of any kind for the training loop: tensors, dictionaries of tensors, and what a DataLoader loads."""

import hashlib
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from kdlab.shapes import Integer, Shaped, with_shapes

from .images import batch_indices

Inputs = Shaped[Tensor, "n ..."] | Mapping[str, Shaped[Tensor, "n ..."]]


def each(function: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """A function of inputs that are a tensor, or of each tensor of a dictionary of them."""
    if isinstance(inputs, Mapping):
        return {name: function(value) for name, value in inputs.items()}
    return function(inputs)


@dataclass(frozen=True)
class Examples:
    """Inputs of any shape ``(n, …)`` and their labels, for :func:`kdlab.training.loop.fit`.

    Attributes:
        inputs: a tensor; or a dictionary of tensors (``input_ids``, ``attention_mask``, …), which a model gets by their names.
        labels: classes ``(n,)``, or probabilities of the classes ``(n, C)``, such as those of mixed images; of texts one a token. Zeros,
            where nothing is labelled.
    """

    __repr__ = with_shapes

    inputs: Inputs
    labels: Shaped[Tensor, "n ..."]

    @property
    def augments(self) -> bool:
        """Whether batches are augmented where the recipe says so, as those of a class with its own :meth:`augmented` are."""
        return type(self).augmented is not Examples.augmented

    def augmented(self, inputs: Inputs, generator: torch.Generator) -> Inputs:
        """A view of a batch's inputs, drawn with this generator; a class of one's own says which.

        >>> class Shaken(Examples):
        ...     def augmented(self, inputs, generator):
        ...         return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)
        """
        return inputs

    def __post_init__(self) -> None:
        check_batch(self.inputs, self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> "Examples":
        return replace(self, inputs=each(lambda x: x[index], self.inputs), labels=self.labels[index])

    def to(self, device: torch.device | str) -> "Examples":
        return replace(self, inputs=each(lambda x: x.to(device), self.inputs), labels=self.labels.to(device))

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        augment: bool = False,
        order: Integer[Tensor, " N"] | None = None,
        start: int = 0,
    ) -> Iterator[tuple[Inputs, Shaped[Tensor, "n ..."], Integer[Tensor, " n"]]]:
        """Batches of (inputs, labels, indices), as :meth:`kdlab.data.images.Split.batches`; augmented by what :meth:`augmented` says."""
        seed = 0 if generator is None else generator.initial_seed()
        for number, index in enumerate(batch_indices(len(self), batch_size, generator, order, self.labels.device)):
            if number >= start:
                inputs = each(lambda x, index=index: x[index], self.inputs)
                if augment and self.augments:  # drawn for each batch by itself, so that a run may begin with any
                    inputs = self.augmented(inputs, torch.Generator().manual_seed((seed + number) % 2**63))
                yield inputs, self.labels[index], index


def check_batch(inputs: Any, labels: Any) -> None:
    """That inputs and labels are tensors, one an example, and labels what a model can learn.

    Raises:
        TypeError: for what is no tensor, nor a dictionary of them.
        ValueError: for other numbers of inputs than labels, or labels that are the tokens themselves.
    """
    named = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
    every = {**named, "labels": labels}
    for name, value in every.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} must be a tensor, not {type(value).__name__}; inputs may be a dictionary of tensors, and labels of what has none are zeros."
            )
    for name, value in every.items():
        if value.ndim == 0 or labels.ndim == 0 or len(value) != len(labels):
            count = ["one" if x.ndim == 0 else len(x) for x in (value, labels)]
            raise ValueError(f"{count[0]} {name} have {count[1]} labels.")
    if not named:
        raise ValueError("an empty dictionary is no input.")
    tokens = named.get("input_ids")
    if tokens is not None and tokens.shape == labels.shape and tokens.ndim > 1 and not labels.is_floating_point():
        counted = labels != -100
        if counted.any() and torch.equal(labels[counted], tokens[counted]):
            raise ValueError(
                "labels are the input_ids themselves, as transformers takes them, which shifts them inside its models: here the label "
                "of a token is the one that follows it: input_ids[:, :-1] with labels[:, 1:]."
            )


@dataclass(frozen=True)
class Loaded:
    """The data set of a DataLoader, as :func:`~kdlab.training.loop.fit` reads it.

    Which examples a batch has, and in which order, comes from the recipe, so that a run can go on where it stopped; the loader's own
    sampler is not asked. Loading is the loader's: its data set, ``collate_fn``, ``num_workers`` and ``pin_memory``. What a data set draws at
    random, such as crops, from the generators of PyTorch, NumPy or Python, is drawn anew for each example from the recipe's seed, the
    epoch and its index, with any number of workers.

    A batch is (inputs, labels), or a dictionary with ``"labels"``, whose other tensors are the inputs. No data set that can only be
    gone through from its beginning (``IterableDataset``), and no sampler of one's own: what these draw cannot be gone on with.
    """

    loader: DataLoader
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        loader: Any = self.loader
        if isinstance(loader.dataset, IterableDataset):
            raise TypeError(
                "an IterableDataset has no order that a run could go on in: read it into kdlab.data.Examples(inputs, labels)."
            )
        sampled = type(loader.sampler) is SequentialSampler or (
            type(loader.sampler) is RandomSampler
            and not loader.sampler.replacement
            and loader.sampler.num_samples == len(loader.dataset)
        )
        if not sampled or type(loader.batch_sampler) is not BatchSampler:
            which = loader.sampler if not sampled else loader.batch_sampler
            advice = (
                ""
                if sampled or isinstance(which, DistributedSampler)
                else (
                    " For a choice of examples, or some of them more often, the data set is torch.utils.data.Subset(dataset, list(sampler)), of a sampler "
                    "with a seed: generator=torch.Generator().manual_seed(0)."
                )
            )
            raise TypeError(
                f"a DataLoader is taken with batches in order or shuffled, not with {type(which).__name__}: fit draws the order from the "
                f"recipe's seed and spreads it over processes itself.{advice}"
            )

    def __len__(self) -> int:
        return len(self.loader.dataset)  # pyrefly: ignore[bad-argument-type] it has a length, or it was refused

    def to(self, device: torch.device | str) -> "Loaded":
        return replace(self, device=device)

    @property
    def batch_size(self) -> int:
        return self.loader.batch_size  # pyrefly: ignore[bad-return] with a BatchSampler there is one

    @cached_property
    def labels(self) -> Shaped[Tensor, "n ..."]:
        """Of all examples in their order; they are loaded once more for it."""
        return torch.cat([labels.cpu() for _, labels, _ in self.batches(self.batch_size)])

    @property
    def all_labels(self) -> Shaped[Tensor, "n ..."]:
        """The earlier name of ``labels``."""
        warnings.warn(
            "kdlab.data.examples.Loaded.all_labels is labels since 0.3.0, and ends with 0.5.0.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.labels

    @cached_property
    def augments(self) -> bool:
        """Whether its data set, or ``collate_fn``, draws at random: asked of 32 examples, spread over it."""
        return self._asked(_draws)

    @property
    def identity(self) -> str:
        """The checksum of the first and the last example, by which data sets of one length are told apart."""
        return self._asked(_ends)

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        augment: bool = False,
        order: Integer[Tensor, " N"] | None = None,
        start: int = 0,
    ) -> Iterator[tuple[Inputs, Shaped[Tensor, "n ..."], Integer[Tensor, " n"]]]:
        """Batches of (inputs, labels, indices), as :meth:`kdlab.data.images.Split.batches`; what is augmented is the data set's matter."""
        seed = 0 if generator is None else generator.initial_seed()
        wanted = [index.tolist() for index in batch_indices(len(self), batch_size, generator, order)][start:]
        for index, batch in zip(wanted, self._loaded(wanted, seed), strict=True):
            inputs, labels = _pair(batch)
            check_batch(inputs, labels)
            index = torch.tensor(index)
            if self.device is not None:
                inputs = each(lambda x: x.to(self.device, non_blocking=True), inputs)
                labels, index = labels.to(self.device, non_blocking=True), index.to(self.device)
            yield inputs, labels, index

    def _loaded(self, batches: list[list[int]], seed: int) -> DataLoader:
        loader = self.loader
        return DataLoader(
            _Seeded(loader.dataset, seed),
            batch_sampler=batches,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            generator=torch.Generator(),  # else it would draw from the caller's
            **self._workers(),
        )

    def _asked(self, question: Callable) -> Any:
        """The answer of data set and ``collate_fn``, given where examples are loaded: a file that is opened for it is not shared by all workers."""
        asked = _Asked(partial(question, self.loader.dataset, self.loader.collate_fn))
        (answer,) = DataLoader(asked, batch_size=None, generator=torch.Generator(), **self._workers(1))
        return answer

    def _workers(self, most: int | None = None) -> dict[str, Any]:
        if not (workers := self.loader.num_workers):
            return {}
        others = "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor"
        return {"num_workers": min(most or workers, workers)} | {name: getattr(self.loader, name) for name in others}


@dataclass(frozen=True)
class _Asked(Dataset[Any]):
    """A data set of one example, the answer to a question."""

    question: Callable

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index):
        return self.question()


def _ends(dataset, collate) -> str:
    """The checksum of the first and the last example."""
    seeded = _Seeded(dataset, 0)
    return _checksum(_pair(collate([seeded[index]])) for index in (0, len(dataset) - 1))


def _draws(dataset, collate) -> bool:
    """Whether anything is drawn: seen by the generators, or, where it is drawn from others, by what is loaded twice."""
    spread = range(0, len(dataset), max(1, len(dataset) // 32))

    def load():
        with _drawn_from(0):
            before = _generators()
            pair = _pair(collate([dataset[index] for index in spread]))
            return _checksum([pair]), _generators() != before

    (first, drew), (again, _) = load(), load()
    return drew or first != again


@dataclass(frozen=True)
class _Seeded(Dataset[Any]):
    """A data set whose random draws depend on a seed and the index alone."""

    dataset: Any
    seed: int

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index):
        with _drawn_from(self.seed, index):
            return self.dataset[index]


@contextmanager
def _drawn_from(*what):
    """Python's, NumPy's and PyTorch's generators, seeded; after it they are as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:4], "big")
    random.seed(seed), np.random.seed(seed), torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0]), np.random.set_state(before[1]), torch.set_rng_state(before[2])


def _generators() -> tuple:
    """Where they stand."""
    numpys = np.random.get_state(legacy=False)
    return random.getstate(), repr(numpys), torch.get_rng_state().numpy().tobytes()


def _checksum(pairs) -> str:
    """Of the numbers in pairs of inputs and labels."""
    digest = hashlib.sha256()
    for inputs, labels in pairs:
        check_batch(inputs, labels)
        for tensor in [*(inputs.values() if isinstance(inputs, Mapping) else [inputs]), labels]:
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _pair(batch):
    """Inputs and labels of a batch as a DataLoader gives it."""
    if isinstance(batch, Mapping) and "labels" in batch:
        return {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    what = f"a dictionary of {', '.join(batch)}" if isinstance(batch, Mapping) else f"{type(batch).__name__}"
    raise TypeError(
        f"a batch of the DataLoader is (inputs, labels), or a dictionary with 'labels', not {what}: its collate_fn makes it so. Where no "
        "term looks at labels, any number an example will do."
    )


def as_split(data: Any, name: str) -> Any:
    """What has batches of its own, as it is; a DataLoader as :class:`Loaded`.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(data, DataLoader):
        return Loaded(data)
    if not hasattr(data, "batches"):
        raise TypeError(
            f"{name} is a Split or kdlab.data.Examples(inputs, labels), or a DataLoader, not {type(data).__name__}."
        )
    return data

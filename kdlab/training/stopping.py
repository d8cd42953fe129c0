"""How training is stopped before its end."""

from collections.abc import Callable

from .distributed import anywhere


class Stopped(Exception):
    """Training was asked to stop, and its checkpoint holds all of it."""


class Interruptible:
    """A split whose batches end in :class:`Stopped` once ``stop`` says so; None never does."""

    def __init__(self, split, stop: Callable[[], bool] | None):
        self.split, self.stop = split, stop

    def __getattr__(self, name):
        return getattr(self.split, name)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index) -> "Interruptible":
        return Interruptible(self.split[index], self.stop)

    def spread(self, n: int) -> "Interruptible":
        """As :meth:`kdlab.data.tokens.Tokens.spread`, of a text."""
        return Interruptible(self.split.spread(n), self.stop)

    def batches(self, *arguments, **options):
        for batch in self.split.batches(*arguments, **options):
            if self.stop is not None and anywhere(bool(self.stop())):
                raise Stopped
            yield batch

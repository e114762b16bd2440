"""What becomes of a bad image: it ends the reading of a set, or it is left out and listed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from raydet.errors import DataError

OnBad = Literal["error", "skip"]
"""error: the first bad image or box is a `DataError`. skip: the image is left out."""

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An image that is not in the set, and why."""

    name: str
    """The image, as far as it is known: its id, or its file."""
    reason: str
    """The error's line, which names file and field."""


@dataclass(slots=True)
class Sieve:
    """Reads image by image and keeps a list of what did not pass.

    >>> sieve = Sieve("skip")
    >>> def broken() -> int:
    ...     raise DataError("a.png: truncated")
    >>> sieve.take("a", broken) is None, sieve.left_out
    (True, [LeftOut(name='a', reason='a.png: truncated')])
    """

    on_bad: OnBad = "error"
    left_out: list[LeftOut] = field(default_factory=list)

    def take(self, name: str, read: Callable[[], Found]) -> Found | None:
        """What `read` returns; None where it is left out.

        Raises:
            DataError: it is bad, and nothing is to be left out.
        """
        try:
            return read()
        except DataError as error:
            if self.on_bad == "error":
                raise
            self.leave_out(name, str(error))
            return None

    def all(self, reads: Iterable[tuple[str, Callable[[], Found]]]) -> list[Found]:
        """What the readers return, by the name of each, in their order and without those that are left out.

        Raises:
            DataError: one is bad, and nothing is to be left out.
        """
        taken = (self.take(name, read) for name, read in reads)
        return [found for found in taken if found is not None]

    def leave_out(self, name: str, reason: str) -> None:
        """Put an image on the list."""
        self.left_out.append(LeftOut(name=name, reason=reason))

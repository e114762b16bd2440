"""How bad images are handled: the first one ends the reading of a set, or each is left out and listed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from raydet.errors import DataError

OnBad = Literal["error", "skip"]
"""error: the first bad image or box raises a `DataError`. skip: the image is left out."""
Kind = Literal["image", "annotation"]

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An image that was left out of the set, or an annotation that belongs to no image."""

    name: str
    """The image's id or file, as far as it is known."""
    reason: str
    """The message of the error, which names file and field."""
    kind: Kind = "image"


@dataclass(slots=True)
class BadSamples:
    """Reads image by image and lists the bad ones.

    >>> bad_samples = BadSamples("skip")
    >>> def broken() -> int:
    ...     raise DataError("a.png: truncated")
    >>> bad_samples.try_read("a", broken) is None, bad_samples.left_out
    (True, [LeftOut(name='a', reason='a.png: truncated', kind='image')])
    """

    on_bad: OnBad = "error"
    left_out: list[LeftOut] = field(default_factory=list)

    def try_read(self, name: str, read: Callable[[], Found]) -> Found | None:
        """The result of `read`; None if the image is left out.

        Raises:
            DataError: the image is bad, and `on_bad` is "error".
        """
        try:
            return read()
        except DataError as error:
            self.refuse(name, error)
            return None

    def read_all(self, reads: Iterable[tuple[str, Callable[[], Found]]]) -> list[Found]:
        """The results of (name, read) pairs in their order, without the images that are left out.

        Raises:
            DataError: an image is bad, and `on_bad` is "error".
        """
        results = (self.try_read(name, read) for name, read in reads)
        return [result for result in results if result is not None]

    def refuse(self, name: str, error: DataError, kind: Kind = "image") -> None:
        """Leave out an image, or an annotation, because of this error.

        Raises:
            DataError: this error, if `on_bad` is "error".
        """
        if self.on_bad == "error":
            raise error
        self.left_out.append(LeftOut(name, str(error), kind))

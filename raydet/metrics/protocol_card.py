"""Protocol cards: what two figures must have in common to be compared, as data with a short hash.

Published figures of event detection are often not of one protocol: of the boxes that are filtered away, of the list of
classes, of class-agnostic AP or the mean over the classes, of scores with or without objectness. The card of an
evaluation is kept with its records, and figures of different cards are not compared.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class ProtocolCard:
    """How a set of detections was measured."""

    skip_ms: float
    """Boxes up to this time from the start of their sequence do not count."""
    min_diagonal_px: float
    """Boxes with a shorter diagonal do not count; source pixels."""
    min_side_px: float
    tolerance_ms: float
    """Longest time between a label and the detections that count for it."""
    classes: tuple[str, ...]
    average: str
    """`mean over classes` or `class-agnostic`: which AP decides."""
    score: str
    """What detections are ranked by, e.g. `class probability`, or `objectness x class probability`."""
    confidence_threshold: float
    """Detections below it were dropped."""
    nms_threshold: float
    image_hw: tuple[int, int] | None
    """Height and width of the images in which boxes were measured; None: they differ."""

    @property
    def hash(self) -> str:
        """Eight hex digits: equal cards have equal ones, in later versions, too."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:8]

    def to_json(self) -> str:
        """One line of text; `from_json` reads it back."""
        tree = {
            name: float(value) if isinstance(value, int) else value for name, value in asdict(self).items()
        }
        return json.dumps(tree, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a card.

        Raises:
            ValueError: the text is no card.
        """
        tree: dict[str, Any] = json.loads(text)
        names = [field.name for field in fields(cls)]
        if not isinstance(tree, dict) or sorted(tree) != sorted(names):
            raise ValueError(f"expected a protocol card with {', '.join(names)}, got {text[:80]}")
        lists = {name: tuple(value) for name, value in tree.items() if isinstance(value, list)}
        return cls(**tree | lists)

    def differences(self, other: ProtocolCard) -> list[str]:
        """The fields that differ, with both values."""
        return [
            f"{field.name} is {_text(mine)} against {_text(theirs)}"
            for field in fields(self)
            if (mine := getattr(self, field.name)) != (theirs := getattr(other, field.name))
        ]


def _text(value: object) -> str:
    match value:
        case tuple():
            return f"({', '.join(map(str, value))})"
        case float():
            return f"{value:g}"
        case None:
            return "of several sizes"
        case _:
            return str(value)

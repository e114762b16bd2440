"""Where this process is: which phase of which step, with which images. Told to whoever listens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Phase = Literal[
    "setup",
    "rehearsal",
    "between",
    "load",
    "forward",
    "backward",
    "update",
    "evaluate",
    "save-copy",
    "save-write",
    "save-commit",
]

IN_WORDS: dict[Phase, str] = {
    "setup": "setting up of model and optimiser",
    "rehearsal": "rehearsal",
    "between": "time between two steps",
    "load": "loading of the next batch",
    "forward": "forward pass",
    "backward": "backward pass",
    "update": "update after the pass",
    "evaluate": "evaluation",
    "save-copy": "copying of a checkpoint to the host",
    "save-write": "writing of a checkpoint",
    "save-commit": "completing of a checkpoint",
}


@dataclass(slots=True)
class CurrentPhase:
    """Of the thread that trains."""

    phase: Phase = "setup"
    step: int = 0
    """Optimiser steps completed."""
    image_ids: tuple[str, ...] = ()


HERE = CurrentPhase()
"""This process trains one run at a time."""

_listeners: list[Callable[[Phase, int], None]] = []


def enter(phase: Phase, image_ids: Sequence[str] = ()) -> None:
    """The training thread begins a phase."""
    HERE.phase, HERE.image_ids = phase, tuple(image_ids)
    tell(phase)


def tell(phase: Phase) -> None:
    """A phase begins in another thread, which does not hold up the training."""
    for listener in _listeners:
        listener(phase, HERE.step)


def listen(listener: Callable[[Phase, int], None]) -> None:
    """Have every phase told, with the steps completed, in the thread that enters it."""
    _listeners.append(listener)

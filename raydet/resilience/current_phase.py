"""Which phase of which step this process is in, on which images; listeners are notified of every phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Phase = Literal[
    "setup",
    "dry run",
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

PHASE_NAMES: dict[Phase, str] = {
    "setup": "setup of model and optimizer",
    "dry run": "worst-case dry run",
    "between": "time between two steps",
    "load": "loading of the next batch",
    "forward": "forward pass",
    "backward": "backward pass",
    "update": "optimizer update",
    "evaluate": "evaluation",
    "save-copy": "copy of a checkpoint to the host",
    "save-write": "writing of a checkpoint",
    "save-commit": "commit of a checkpoint",
}


@dataclass(slots=True)
class CurrentPhase:
    """What the training thread is doing."""

    phase: Phase = "setup"
    step: int = 0
    """Optimizer steps completed."""
    image_ids: tuple[str, ...] = ()


CURRENT = CurrentPhase()
"""This process trains one run at a time."""

_listeners: list[Callable[[Phase, int], None]] = []


def enter(phase: Phase, image_ids: Sequence[str] = ()) -> None:
    """Record that the training thread starts a phase, and notify the listeners."""
    CURRENT.phase, CURRENT.image_ids = phase, tuple(image_ids)
    notify(phase)


def notify(phase: Phase) -> None:
    """Notify the listeners only: for a phase in a background thread, which does not block training."""
    for listener in _listeners:
        listener(phase, CURRENT.step)


def add_listener(listener: Callable[[Phase, int], None]) -> None:
    """Call `listener` with every phase and the steps completed, in the thread that enters the phase."""
    _listeners.append(listener)

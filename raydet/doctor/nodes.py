"""Whom the doctor asks: the nodes of a cluster, or, where there is none, this machine."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from raydet.doctor.judge import Clock

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """A node could not be asked."""

    reason: str


class Nodes(Protocol):
    """Machines by their names."""

    @property
    def names(self) -> Sequence[str]:
        """Those that live."""

    @property
    def gpus(self) -> Mapping[str, int] | None:
        """How many Ray counts on each; None: there is no Ray."""

    def ask(
        self, question: Callable[..., Answer], arguments: Mapping[str, tuple[Any, ...]], *, timeout_s: float
    ) -> dict[str, Answer | NoAnswer]:
        """Call a function on each node that has arguments, on all at the same time."""

    def address(self, name: str) -> str:
        """Where the other nodes reach it."""

    def clocks(self) -> Mapping[str, Clock]:
        """Those of the nodes that have answered, against ours."""


class ThisMachine:
    """No cluster."""

    names = (socket.gethostname(),)
    gpus = None

    def ask(
        self, question: Callable[..., Answer], arguments: Mapping[str, tuple[Any, ...]], *, timeout_s: float
    ) -> dict[str, Answer | NoAnswer]:
        """See `Nodes`."""
        return {name: question(*values) for name, values in arguments.items()}

    def address(self, name: str) -> str:
        """See `Nodes`."""
        return "127.0.0.1"

    def clocks(self) -> Mapping[str, Clock]:
        """See `Nodes`."""
        return {}


def answered(answers: Mapping[str, Answer | NoAnswer]) -> dict[str, Answer]:
    """Without the nodes that gave none."""
    return {name: answer for name, answer in answers.items() if not isinstance(answer, NoAnswer)}

"""The machines that the doctor examines: the nodes of a cluster, or this machine alone."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from raydet.doctor.judge import Clock

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Why a node has not answered."""

    reason: str


class Nodes(Protocol):
    """Machines by their names."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the nodes that are alive."""

    @property
    def gpus(self) -> Mapping[str, int] | None:
        """GPUs that Ray counts on each node; None: without Ray."""

    def ask(
        self, question: Callable[..., Answer], arguments: Mapping[str, tuple[Any, ...]], *, timeout_s: float
    ) -> dict[str, Answer | NoAnswer]:
        """Call a function on each node that has arguments, on all at the same time."""

    def address(self, name: str) -> str:
        """Address under which other nodes reach a node."""

    def clocks(self) -> Mapping[str, Clock]:
        """Clocks of the nodes that have answered, relative to ours."""


class ThisMachine:
    """This machine as the only node."""

    names = (socket.gethostname(),)
    gpus = None

    def ask(
        self, question: Callable[..., Answer], arguments: Mapping[str, tuple[Any, ...]], *, timeout_s: float
    ) -> dict[str, Answer | NoAnswer]:
        return {name: question(*values) for name, values in arguments.items()}

    def address(self, name: str) -> str:
        return "127.0.0.1"

    def clocks(self) -> Mapping[str, Clock]:
        return {}


def answered(answers: Mapping[str, Answer | NoAnswer]) -> dict[str, Answer]:
    """The answers, without the nodes that have not answered."""
    return {name: answer for name, answer in answers.items() if not isinstance(answer, NoAnswer)}

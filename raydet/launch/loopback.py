"""The rendezvous of the workers of a local Ray, on the loopback.

Ray itself listens there (`raydet.launch.ray_settings`), but torch opens the workers' rendezvous, a key-value store
without authentication, on every interface of the machine. Here rank 0 opens the store on the loopback before torch
does, and torch uses the existing one.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import raydet.launch.ray_settings  # noqa: F401  # isort: skip  -- before ray, which reads the environment at import

from ray.train.torch import TorchConfig

from raydet.launch.ray_private import rendezvous_function, torch_backend

LOOPBACK = "127.0.0.1"

_opened: list[Any] = []
"""The store of this process, kept alive by this reference."""


class LoopbackTorchConfig(TorchConfig):
    """Ray's own, except for the address of the rendezvous."""

    @property
    def backend_cls(self) -> type[Any]:
        return _LoopbackBackend


class _LoopbackBackend(torch_backend()):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        super().on_start(_OnLoopback(worker_group), backend_config)


class _OnLoopback:
    """A group of workers whose rank 0, asked for an address and a free port, opens the store there."""

    def __init__(self, workers: Any) -> None:
        self._workers = workers

    def __len__(self) -> int:
        return len(self._workers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workers, name)

    def execute_single(self, rank: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if function is rendezvous_function():
            function = open_store
        return self._workers.execute_single(rank, function, *args, **kwargs)


def open_store() -> tuple[str, int]:
    """Open a store on the loopback for this process's process group; returns its address and port."""
    from torch.distributed import TCPStore

    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        port = int(listener.getsockname()[1])
        store = TCPStore(
            LOOPBACK,
            port,
            is_master=True,
            wait_for_workers=False,
            multi_tenant=True,  # torch, opening a store on this port in this process, gets this one
            master_listen_fd=listener.detach(),
        )
    _opened[:] = [store]
    return LOOPBACK, port

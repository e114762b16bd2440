"""This process among the workers of a run, and the collectives that they use.

Every function also works for one process without a process group. Only tensors are sent, nothing is pickled.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from raydet.errors import ConfigError


@dataclass(frozen=True, slots=True)
class World:
    """This process among the workers of one run."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    ranks_per_node: int | None = None
    """Workers on each node; None: unknown."""

    @property
    def is_main(self) -> bool:
        """Rank 0 writes the files."""
        return self.rank == 0


def world_from_environment(*, use_gpu: bool | None = None) -> World:
    """Join the process group that `torchrun` describes; without `torchrun`, a world of one process.

    Raises:
        ConfigError: a GPU is required, and there is none.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = select_device(use_gpu, local_rank=local_rank)
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    ranks_per_node = os.environ.get("LOCAL_WORLD_SIZE")
    return World(
        rank=int(os.environ.get("RANK", "0")),
        world_size=world_size,
        device=device,
        ranks_per_node=int(ranks_per_node) if ranks_per_node else None,
    )


def select_device(use_gpu: bool | None, *, local_rank: int = 0) -> torch.device:
    """The device for `--gpu` (True), `--cpu` (False) or neither (None: a GPU if there is one).

    Raises:
        ConfigError: a GPU is required, and there is none.
    """
    if use_gpu and not torch.cuda.is_available():
        raise ConfigError("--gpu expected a GPU, PyTorch finds none on this machine; leave it out")
    return local_device(local_rank, use_gpu=use_gpu is not False)


def local_device(local_rank: int, *, use_gpu: bool = True) -> torch.device:
    """The GPU of this worker, or the CPU if there is none or `use_gpu` is false."""
    if not use_gpu or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def mean_over_ranks(values: Tensor, world: World) -> Tensor:
    """The mean of each rank's tensor, on every rank."""
    if world.world_size == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world.world_size


def smallest_over_ranks(value: int, world: World) -> int:
    """The smallest of all ranks' numbers, on every rank."""
    if world.world_size == 1:
        return value
    numbers = torch.tensor([value], dtype=torch.int64, device=world.device)
    dist.all_reduce(numbers, op=dist.ReduceOp.MIN)
    return int(numbers)


def largest_over_ranks(value: int, world: World) -> int:
    """The largest of all ranks' numbers, on every rank."""
    return -smallest_over_ranks(-value, world)


def sum_over_ranks(values: NDArray[np.uint64], world: World) -> NDArray[np.uint64]:
    """The sum of all ranks' integers modulo 2^64, on every rank."""
    if world.world_size == 1:
        return values
    total = torch.from_numpy(values.view(np.int64).copy()).to(world.device)
    dist.all_reduce(total)
    return total.cpu().numpy().view(np.uint64)


def gather_rows(rows: NDArray[np.float64], world: World) -> NDArray[np.float64]:
    """All ranks' rows [N_rank, D] concatenated in rank order, on every rank."""
    if world.world_size == 1:
        return rows
    mine = torch.from_numpy(np.ascontiguousarray(rows)).to(world.device)
    count = torch.tensor([len(rows)], device=world.device)
    counts = [torch.zeros_like(count) for _ in range(world.world_size)]
    dist.all_gather(counts, count)
    most = max(int(c) for c in counts)
    padded = torch.zeros(most, rows.shape[1], dtype=torch.float64, device=world.device)
    padded[: len(rows)] = mine
    gathered = [torch.zeros_like(padded) for _ in range(world.world_size)]
    dist.all_gather(gathered, padded)
    return np.concatenate([part[: int(n)].cpu().numpy() for part, n in zip(gathered, counts, strict=True)])


def average_statistics(module: nn.Module, world: World) -> None:
    """Give every rank the mean of all ranks' BatchNorm statistics: they drift apart during an epoch."""
    if world.world_size == 1:
        return
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for statistic in (norm.running_mean, norm.running_var):
                assert statistic is not None
                dist.all_reduce(statistic)
                statistic.div_(world.world_size)


def gather_texts(text: str, world: World, group: dist.ProcessGroup | None) -> list[str]:
    """All ranks' texts in rank order, on every rank.

    Args:
        group: see `host_group`.
    """
    if world.world_size == 1:
        return [text]
    mine = torch.tensor(list(text.encode()), dtype=torch.uint8)
    sizes = _gather(torch.tensor([len(mine)]), world, group)
    padded = torch.zeros(max(int(size) for size in sizes), dtype=torch.uint8)
    padded[: len(mine)] = mine
    texts = _gather(padded, world, group)
    return [bytes(part[: int(size)].numpy()).decode() for part, size in zip(texts, sizes, strict=True)]


def _gather(tensor: Tensor, world: World, group: dist.ProcessGroup | None) -> list[Tensor]:
    gathered = [torch.empty_like(tensor) for _ in range(world.world_size)]
    dist.all_gather(gathered, tensor, group=group)
    return gathered


def host_group(world: World) -> dist.ProcessGroup | None:
    """A new group of all ranks for tensors on the host; None for one rank. Must be called on every rank."""
    if world.world_size == 1:
        return None
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup), "every rank is a member"
    return group


def any_over_ranks(flags: Sequence[bool], world: World, group: dist.ProcessGroup | None) -> list[bool]:
    """For each flag whether it is set on any rank, on every rank."""
    if world.world_size == 1:
        return list(flags)
    votes = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=group)
    return [bool(vote) for vote in votes.tolist()]


def broadcast_text(text: str, world: World, *, source: int) -> str:
    """One rank's text, on every rank."""
    if world.world_size == 1:
        return text
    content = torch.tensor(list(text.encode()), dtype=torch.uint8, device=world.device)
    length = torch.tensor([len(content)], device=world.device)
    dist.broadcast(length, src=source)
    if world.rank != source:
        content = torch.zeros(int(length), dtype=torch.uint8, device=world.device)
    dist.broadcast(content, src=source)
    return bytes(content.tolist()).decode()

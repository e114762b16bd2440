from __future__ import annotations

import multiprocessing
from pathlib import Path

import torch.distributed as dist

from raydet.parallel.collectives import World, largest_over_ranks, smallest_over_ranks

VALUES = (3, -7)


def run_rank(rank: int, directory: Path) -> None:
    store = dist.FileStore(str(directory / "store"), len(VALUES))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=len(VALUES))
    world = World(rank=rank, world_size=len(VALUES))
    found = smallest_over_ranks(VALUES[rank], world), largest_over_ranks(VALUES[rank], world)
    (directory / f"rank {rank}").write_text(str(found))
    dist.destroy_process_group()


def test_smallest_and_largest_over_ranks(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run_rank, args=(rank, tmp_path)) for rank in range(len(VALUES))]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [(tmp_path / f"rank {rank}").read_text() for rank in range(len(VALUES))] == ["(-7, 3)"] * 2


def test_one_rank_needs_no_process_group() -> None:
    assert (smallest_over_ranks(5, World()), largest_over_ranks(5, World())) == (5, 5)

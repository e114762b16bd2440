from __future__ import annotations

import pytest

from raydet.config import Strategy
from raydet.errors import ConfigError
from raydet.parallel.layout import Layout, layout_of


@pytest.mark.parametrize(
    ("strategy", "world_size", "shard_ranks", "ranks_per_node", "wanted"),
    [
        ("auto", 1, None, None, Layout("single", 1, 1)),
        ("auto", 3, None, None, Layout("ddp", 3, 1)),
        ("fsdp", 4, None, 2, Layout("fsdp", 1, 4)),
        ("hsdp", 4, None, 2, Layout("hsdp", 2, 2)),
        ("hsdp", 4, 1, 2, Layout("hsdp", 4, 1)),
        ("hsdp", 4, None, None, Layout("hsdp", 1, 4)),
    ],
)
def test_layouts(
    strategy: Strategy, world_size: int, shard_ranks: int | None, ranks_per_node: int | None, wanted: Layout
) -> None:
    found = layout_of(strategy, world_size=world_size, shard_ranks=shard_ranks, ranks_per_node=ranks_per_node)
    assert found == wanted
    assert found.replicas * found.shards == world_size


@pytest.mark.parametrize(
    ("strategy", "world_size", "shard_ranks", "message"),
    [
        ("fsdp", 1, None, "fsdp requires several workers, got 1"),
        ("hsdp", 1, 1, "hsdp requires several workers, got 1"),
        ("ddp", 1, None, "ddp requires several workers, got 1"),
        ("single", 2, None, "single requires one worker, got 2"),
        ("hsdp", 4, 3, "groups of 3 do not divide 4 workers"),
        ("fsdp", 4, 2, "shard_ranks requires train.strategy=hsdp"),
    ],
)
def test_what_does_not_fit(
    strategy: Strategy, world_size: int, shard_ranks: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        layout_of(strategy, world_size=world_size, shard_ranks=shard_ranks)

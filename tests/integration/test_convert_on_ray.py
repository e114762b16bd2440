"""Conversion by several Ray workers: the same bytes as by one, and an error of theirs is one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import raydet.launch.ray_settings  # noqa: F401  # isort: skip  -- before ray, which reads the environment at import

import numpy as np
import pytest
import ray

from raydet.config import DataConfig, NpyYoloSource, SyntheticSource
from raydet.data.convert import convert
from raydet.errors import DataError

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def four_cpus() -> Iterator[None]:
    """A local Ray that lets four workers run on fewer cores."""
    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100_000_000,
    )
    yield
    ray.shutdown()


def data() -> DataConfig:
    source = SyntheticSource(num_sequences=6, frames_per_sequence=4, size_hw=(120, 160))
    return DataConfig(source=source, canvas_hw=(128, 160))


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_one_two_and_four_workers_write_the_same_bytes(tmp_path: Path) -> None:
    convert(data(), str(tmp_path / "0"), images_per_shard=3)
    wanted = contents(tmp_path / "0")
    assert len(wanted) == 8 + 2
    for workers in (1, 2, 4):
        convert(data(), str(tmp_path / str(workers)), images_per_shard=3, workers=workers)
        assert contents(tmp_path / str(workers)) == wanted, workers


def test_a_bad_image_is_one_data_error(tmp_path: Path) -> None:
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for number in range(3):
        np.save(root / "images" / f"{number}.npy", np.full((40, 48, 5), 300.0 if number == 1 else 0.0))
        (root / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    config = DataConfig(source=NpyYoloSource(root=str(root)), classes=("person",), canvas_hw=(64, 64))
    with pytest.raises(DataError) as caught:
        convert(config, str(tmp_path / "shards"), workers=2, images_per_shard=1)
    assert "1.npy" in str(caught.value)
    assert "\n" not in str(caught.value)

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from raydet.config import (
    Augmentation,
    Crop,
    DataConfig,
    EventPhotometric,
    EventSimulation,
    ModalityDropout,
    NpyYoloSource,
    Photometric,
    RgbPhotometric,
    SyntheticSource,
    ThermalPhotometric,
)
from raydet.data.build import open_source
from raydet.data.loader import EvalLoader, TrainLoader
from raydet.data.sampler import batch_plan
from raydet.data.synthetic import SyntheticSet
from raydet.errors import ConfigError, DataError
from raydet.structures import Batch, Sample

DATA = DataConfig(
    source=SyntheticSource(num_sequences=3, frames_per_sequence=5, size_hw=(48, 64)), canvas_hw=(32, 64)
)


def train_loader(
    data: DataConfig = DATA,
    *,
    rank: int = 0,
    world_size: int = 1,
    micro_batch: int | None = None,
    steps_per_epoch: int | None = None,
) -> TrainLoader:
    micro_batch, accumulation = batch_plan(4, world_size, micro_batch)
    source = open_source(data)
    return TrainLoader(
        source,
        list(range(1, len(source))),
        data=data,
        seed=0,
        global_batch=4,
        micro_batch=micro_batch,
        accumulation=accumulation,
        rank=rank,
        world_size=world_size,
        steps_per_epoch=steps_per_epoch,
    )


EVERYTHING = DATA.model_copy(
    update={
        "augmentation": Augmentation(
            min_box_kept=0.3,
            crop=Crop(min_fraction=0.6),
            mosaic=0.5,
            misalignment_px=2,
            photometric=Photometric(
                rgb=RgbPhotometric(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1),
                thermal=ThermalPhotometric(gain=0.2, offset=0.1, noise=0.05),
                event=EventPhotometric(dropped=0.3, spurious=0.05),
            ),
            modality_dropout=ModalityDropout(rgb=0.3, thermal=0.3, event=0.3),
        ),
        "simulate_events": EventSimulation(replaces_own=True),
    }
)


def assert_same(a: Sequence[Batch], b: Sequence[Batch]) -> None:
    assert [batch.image_ids for batch in a] == [batch.image_ids for batch in b]
    for left, right in zip(a, b, strict=True):
        for name in left.modalities:
            assert torch.equal(left.modalities[name], right.modalities[name])
        assert torch.equal(left.boxes_xyxy, right.boxes_xyxy)
        assert torch.equal(left.labels, right.labels)
        assert torch.equal(left.valid_hw, right.valid_hw)
        assert left.dropped.keys() == right.dropped.keys()
        assert all(torch.equal(left.dropped[name], right.dropped[name]) for name in left.dropped)


def test_steps_of_micro_batches() -> None:
    loader = train_loader(micro_batch=2)
    steps = list(loader.epoch(0))
    assert len(steps) == loader.steps_per_epoch == 3
    assert [[batch.size for batch in step] for step in steps] == [[2, 2]] * 3
    assert steps[0][0].canvas_hw == (32, 64)
    seen = [image_id for step in steps for batch in step for image_id in batch.image_ids]
    assert len(set(seen)) == 12
    assert "sequence_0000_0000" not in seen  # index 0 is not among the indices


@pytest.mark.parametrize("data", [DATA, EVERYTHING], ids=["default", "everything"])
def test_two_workers_read_what_one_accumulates(data: DataConfig) -> None:
    one = list(train_loader(data, micro_batch=2).epoch(1))
    two = [list(train_loader(data, rank=rank, world_size=2).epoch(1)) for rank in (0, 1)]
    for step, a, b in zip(one, *two, strict=True):
        assert_same(step, [*a, *b])


def test_an_epoch_continues_in_the_middle() -> None:
    loader = train_loader()
    for a, b in zip(list(loader.epoch(0))[1:], loader.epoch(0, first_step=1), strict=True):
        assert_same(a, b)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    list(train_loader().epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_evaluation_image_comes_once(world_size: int) -> None:
    source, indices = open_source(DATA), [9, 3, 5, 1, 7]
    seen: list[int] = []
    for rank in range(world_size):
        loader = EvalLoader(source, indices, data=DATA, batch_size=2, rank=rank, world_size=world_size)
        pairs = list(loader)
        assert len(pairs) == len(loader)
        for batch, positions in pairs:
            assert batch.image_ids == tuple(source.image_ids[indices[p]] for p in positions)
            seen += positions
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_a_rank_may_have_nothing_to_evaluate() -> None:
    assert list(EvalLoader(open_source(DATA), [0], data=DATA, batch_size=2, rank=1, world_size=2)) == []


def test_workers_in_step_get_equally_many_batches() -> None:
    source = open_source(DATA)
    loaders = [
        EvalLoader(source, [0, 1, 2], data=DATA, batch_size=2, rank=rank, world_size=4, in_step=True)
        for rank in range(4)
    ]
    assert [[positions for _, positions in loader] for loader in loaders] == [[[0, 1]], [[2]], [[]], [[]]]
    assert [[batch.size for batch, _ in loader] for loader in loaders] == [[2], [1], [2], [2]]


def test_evaluation_does_not_augment() -> None:
    source = open_source(DATA)
    ((batch, _),) = EvalLoader(source, [4], data=DATA, batch_size=2)
    scale = 32 / 48
    torch.testing.assert_close(
        batch.boxes_xyxy[0], source.targets(4)[0].boxes_xyxy * torch.tensor([43 / 64, scale, 43 / 64, scale])
    )


def test_too_few_images_are_refused() -> None:
    source = open_source(DATA)
    with pytest.raises(ConfigError, match="global_batch"):
        TrainLoader(
            source,
            [0, 1],
            data=DATA,
            seed=0,
            global_batch=4,
            micro_batch=4,
            accumulation=1,
            rank=0,
            world_size=1,
        )


def bad_set(root: Path) -> DataConfig:
    """Five images, the third with a NaN."""
    (root / "images").mkdir()
    (root / "labels").mkdir()
    for number in range(5):
        array = np.full((32, 32, 5), np.nan if number == 2 else 1.0, np.float32)
        np.save(root / "images" / f"{number}.npy", array)
        (root / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    return DataConfig(source=NpyYoloSource(root=str(root)), canvas_hw=(32, 32))


@pytest.mark.parametrize("loader_threads", [0, 1])
def test_a_bad_image_is_a_data_error_with_its_message_only(tmp_path: Path, loader_threads: int) -> None:
    data = bad_set(tmp_path).model_copy(update={"loader_threads": loader_threads})
    loader = EvalLoader(open_source(data), list(range(5)), data=data, batch_size=1)
    for _ in range(2):  # the loader stays usable
        batches = iter(loader)
        assert [next(batches)[1], next(batches)[1]] == [[0], [1]]
        with pytest.raises(
            DataError, match=r"^\S+2\.npy: expected values in 0\.\.255, got nan\.\.nan [^\n]*$"
        ):
            next(batches)


def test_loader_processes_read_the_same() -> None:
    here = train_loader(EVERYTHING, micro_batch=2)
    elsewhere = train_loader(EVERYTHING.model_copy(update={"loader_threads": 2}), micro_batch=2)
    next(elsewhere.epoch(7))  # a pass that is given up
    for epoch in (0, 1):
        for a, b in zip(here.epoch(epoch), elsewhere.epoch(epoch), strict=True):
            assert_same(a, b)


def test_a_mosaic_takes_training_images_only_and_leaves_the_order() -> None:
    read: list[str] = []

    class Noted(SyntheticSet):
        def read(self, index: int) -> Sample:
            read.append(self.image_ids[index])
            return super().read(index)

    noted = Noted(num_sequences=3, frames_per_sequence=5, size_hw=(48, 64), classes=DATA.classes, seed=0)
    mosaic = DATA.model_copy(update={"augmentation": Augmentation(mosaic=1.0)})
    loaders = [
        TrainLoader(
            noted,
            range(5, 15),
            data=data,
            seed=0,
            global_batch=4,
            micro_batch=4,
            accumulation=1,
            rank=0,
            world_size=1,
        )
        for data in (DATA, mosaic)
    ]
    plain, mixed = (list(loader.epoch(0)) for loader in loaders)
    assert [b.image_ids for (b,) in plain] == [b.image_ids for (b,) in mixed]
    assert len(read) == 8 + 4 * 8
    assert set(read) <= set(noted.image_ids[5:])
    assert all((batch.valid_hw == torch.tensor([32, 64])).all() for (batch,) in mixed)


def test_a_bad_partner_is_named(tmp_path: Path) -> None:
    data = bad_set(tmp_path).model_copy(update={"augmentation": Augmentation(mosaic=1.0)})
    loader = TrainLoader(
        open_source(data),
        [0, 2],
        data=data,
        seed=0,
        global_batch=1,
        micro_batch=1,
        accumulation=1,
        rank=0,
        world_size=1,
    )
    # The first image of an epoch is 0 or 2; with 0 the third one comes in as a partner.
    lines = []
    for epoch in range(8):
        with pytest.raises(DataError) as caught:
            list(loader.epoch(epoch))
        lines.append(str(caught.value))
    assert any(
        line.endswith("(image 2, read for the mosaic of 0)") and "2.npy: expected values in 0..255" in line
        for line in lines
    )


def test_dropout_leaves_something_that_the_model_reads() -> None:
    always = Augmentation(modality_dropout=ModalityDropout(rgb=1.0, thermal=1.0))
    data = DATA.model_copy(update={"augmentation": always})
    loader = TrainLoader(
        open_source(data),
        range(15),
        data=data,
        seed=0,
        global_batch=4,
        micro_batch=4,
        accumulation=1,
        rank=0,
        world_size=1,
        reads=("rgb", "thermal"),
    )
    kept = []
    for (batch,) in loader.epoch(0):
        assert "event" not in batch.dropped
        dropped = torch.stack(
            [batch.dropped.get(n, torch.zeros(4, dtype=torch.bool)) for n in ("rgb", "thermal")]
        )
        assert (dropped.sum(dim=0) == 1).all()
        kept += dropped[0].tolist()
    assert 0 < sum(kept) < len(kept)


@pytest.mark.parametrize("steps_per_epoch", [1, 2, 5])
def test_an_epoch_may_be_shorter_or_longer_than_a_pass(steps_per_epoch: int) -> None:
    """It is a reporting period: order and augmentation are those of the pass."""
    loader = train_loader(EVERYTHING, steps_per_epoch=steps_per_epoch)
    passes = [step for epoch in range(4) for step in train_loader(EVERYTHING).epoch(epoch)]
    steps = [step for epoch in range(10 // steps_per_epoch) for step in loader.epoch(epoch)]
    for step, (ours, theirs) in enumerate(zip(steps, passes, strict=False)):
        assert_same(ours, theirs)
        assert loader.position(step) == (step // 3, 4 * (step % 3))
    assert_same(next(loader.epoch(0, steps_per_epoch - 1)), passes[steps_per_epoch - 1])

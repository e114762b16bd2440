from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from sklearn.model_selection import train_test_split

from raydet.config import FirstSplit, FrameSplit, GroupSplit, NamedSplit, Split
from raydet.data.sources.base import Targets
from raydet.data.split import parts_of_ids, split_indices
from raydet.errors import DataError
from raydet.structures import Sample


@dataclass
class Names:
    """A source of names alone: a split looks at nothing else."""

    group_ids: Sequence[str]
    ids: Sequence[str] = ()
    classes: tuple[str, ...] = ("object",)
    modalities: tuple[str, ...] = ("rgb",)

    @property
    def image_ids(self) -> Sequence[str]:
        return self.ids or [str(index) for index in range(len(self.group_ids))]

    def __len__(self) -> int:
        return len(self.group_ids)

    def read(self, index: int) -> Sample:
        raise AssertionError("a split reads no image")

    def targets(self, index: int) -> Targets:
        raise AssertionError("a split reads no boxes")


def ungrouped(count: int) -> Names:
    return Names([""] * count)


def sides(source: Names, split: Split) -> tuple[list[int], list[int]]:
    parts = split_indices(source, split)
    assert parts["test"] == parts["calibration"] == []
    return parts["train"], parts["val"]


@pytest.mark.parametrize("count", [2, 7, 100, 9750])
@pytest.mark.parametrize("seed", [0, 42])
def test_the_frame_split_is_the_published_one(count: int, seed: int) -> None:
    train, val = train_test_split(list(range(count)), test_size=0.2, random_state=seed)
    assert sides(ungrouped(count), FrameSplit(seed=seed)) == (train, val)


def test_the_published_counts() -> None:
    train, val = sides(ungrouped(9750), FrameSplit())
    assert (len(train), len(val)) == (7800, 1950)


def test_groups_stay_together() -> None:
    source = Names([f"g{index // 7}" for index in range(140)])
    train, val = sides(source, GroupSplit())
    assert sorted(train + val) == list(range(140))
    assert not {source.group_ids[i] for i in train} & {source.group_ids[i] for i in val}
    assert len(val) == 28
    assert (train, val) == sides(source, GroupSplit())
    assert val != sides(source, GroupSplit(seed=1))[1]


def test_few_long_sequences_are_not_cut() -> None:
    source = Names([f"sequence_{i // 30}" for i in range(210)])
    train, val = sides(source, GroupSplit())
    assert train
    assert val
    assert not {source.group_ids[i] for i in train} & {source.group_ids[i] for i in val}


def test_four_parts_of_whole_groups() -> None:
    source = Names([f"g{index // 7}" for index in range(140)])
    split = GroupSplit(test_fraction=0.3, calibration_fraction=0.1)
    parts = split_indices(source, split)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 56,
        "val": 28,
        "test": 42,
        "calibration": 14,
    }
    assert sorted(index for part in parts.values() for index in part) == list(range(140))
    groups = [{source.group_ids[i] for i in part} for part in parts.values()]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert (
        parts["val"] == split_indices(source, GroupSplit())["val"]
    )  # a test part does not move the validation


def test_fractions_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(ValueError, match="must sum to less than 1"):
        GroupSplit(val_fraction=0.5, test_fraction=0.3, calibration_fraction=0.2)


def test_without_groups_consecutive_images_stay_together(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="raydet"):
        train, val = sides(ungrouped(100), GroupSplit(num_blocks=10))
    assert "Using 10 blocks" in caplog.text
    assert (len(train), len(val)) == (80, 20)
    assert {index // 10 for index in train}.isdisjoint({index // 10 for index in val})


def test_the_first_images() -> None:
    assert sides(ungrouped(5), FirstSplit(num_train=3)) == ([0, 1, 2], [3, 4])
    assert sides(ungrouped(5), FirstSplit(num_train=2, overfit=True)) == ([0, 1], [0, 1])


def named(*ids: str) -> Names:
    return Names([""] * len(ids), ids)


def test_the_parts_that_a_set_has() -> None:
    source = named("train/a", "test/a", "val/a", "train/b/c", "calibration/x")
    expected = {"train": [0, 3], "val": [2], "test": [1], "calibration": [4]}
    assert split_indices(source, NamedSplit()) == expected
    assert parts_of_ids(source.image_ids) == {"train", "val", "test", "calibration"}
    others = NamedSplit(train=("train", "calibration"), val=("test",), test=("val",), calibration=())
    assert split_indices(source, others) == {"train": [0, 3, 4], "val": [1], "test": [2], "calibration": []}


@pytest.mark.parametrize("ids", [("train/a", "a"), ("train/a", "extra/a"), ("train/a", "val")])
def test_an_image_of_no_part_is_refused(ids: tuple[str, ...]) -> None:
    assert parts_of_ids(ids) == set()
    with pytest.raises(DataError, match=rf"named.*begin with train/.*got '{ids[1]}'"):
        split_indices(named(*ids), NamedSplit())


def test_a_directory_belongs_to_one_part() -> None:
    with pytest.raises(ValueError, match="'test' twice"):
        NamedSplit(val=("val", "test"))


@pytest.mark.parametrize("ids", [("train/a",), ("val/a", "test/b"), ()])
def test_a_set_without_a_part_to_train_or_to_validate(ids: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="must leave images in every part"):
        split_indices(named(*ids), NamedSplit())


@pytest.mark.parametrize(
    ("count", "split"),
    [
        (1, FrameSplit()),
        (1, GroupSplit()),
        (10, GroupSplit(val_fraction=0.99)),
        (20, GroupSplit(num_blocks=3, val_fraction=0.4, test_fraction=0.5)),
        (5, FirstSplit(num_train=5)),
        (5, FirstSplit(num_train=6, overfit=True)),
    ],
)
def test_an_empty_side_is_refused(count: int, split: Split) -> None:
    with pytest.raises(DataError, match=r"data\.split"):
        split_indices(ungrouped(count), split)

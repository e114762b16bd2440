"""StreetHazards: its directories, its lists, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raydet.config import DataConfig, NamedSplit
from raydet.data.build import adopt_source, colours_of, detect_source, open_source
from raydet.data.convert import convert
from raydet.data.sources.base import Source
from raydet.data.split import split_indices
from raydet.errors import DataError
from raydet.recipes.demo import demo
from raydet.structures import ANOMALY, mask_of

VALUES = np.array([[1, 2, 13], [14, 8, 8]], np.uint8)
LABELS = torch.tensor([[0, 1, 12], [ANOMALY, 7, 7]], dtype=torch.uint8)
IMAGES = ("training/t1/1", "training/t2/1", "validation/t3/1", "test/t5/1", "test/t6/1")


def written(root: Path, values: np.ndarray = VALUES) -> Path:
    for number, name in enumerate(IMAGES):
        above = root / ("test" if name.startswith("test") else "train")
        for kind, pixels in (
            ("images", np.full((*VALUES.shape, 3), number, np.uint8)),
            ("annotations", values if name == "test/t5/1" else np.minimum(VALUES, 13)),
        ):
            path = above / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


def data_of(spec: str) -> DataConfig:
    return adopt_source(demo(), detect_source(spec), any_task=True).data


def opened(spec: str) -> Source:
    return open_source(data_of(spec))


def test_the_layout_is_recognised(tmp_path: Path) -> None:
    source = opened(str(written(tmp_path)))
    assert list(source.image_ids) == list(IMAGES)
    assert source.group_ids == ["training/t1", "training/t2", "validation/t3", "test/t5", "test/t6"]
    assert len(source.classes) == 13
    assert colours_of(source)[7] == (128, 64, 128)
    sample = source.read(3)
    assert int(sample.modalities["rgb"][0, 0, 0]) == 3
    assert torch.equal(mask_of(sample.target, "").ids_HW, LABELS)


def test_its_parts(tmp_path: Path) -> None:
    data = data_of(str(written(tmp_path)))
    assert isinstance(data.split, NamedSplit)
    source = open_source(data)
    assert split_indices(source, data.split) == {
        "train": [0, 1],
        "val": [2],
        "test": [3, 4],
        "calibration": [],
    }
    split = NamedSplit(calibration=("training/t2",))
    assert split_indices(source, split)["calibration"] == [1]
    assert split_indices(source, split)["train"] == [0]


def test_shards_keep_anomalies(tmp_path: Path) -> None:
    convert(data_of(str(written(tmp_path / "files"))), str(tmp_path / "shards"))
    shards = opened(f"shards:{tmp_path / 'shards'}")
    assert torch.equal(mask_of(shards.targets(3)[0], "").ids_HW, LABELS)


@pytest.mark.parametrize("as_lines", [False, True])
@pytest.mark.parametrize("above", ["", "train/"])
def test_lists(tmp_path: Path, above: str, as_lines: bool) -> None:
    """Paths are relative to the list or to the set."""
    written(tmp_path)
    entries = [
        {"dbName": "StreetHazards", "width": 3, "height": 2}
        | {f"fpath_{key}": f"{above}{kind}/training/t2/1.png" for key, kind in KINDS}
    ]
    text = "\n".join(map(json.dumps, entries)) if as_lines else json.dumps(entries)
    (tmp_path / "train" / "some.odgt").write_text(text)
    source = opened(f'streethazards:{tmp_path}?lists=["train/some.odgt"]')
    assert list(source.image_ids) == ["training/t2/1"]
    assert source.group_ids == ["training/t2"]


KINDS = (("img", "images"), ("segm", "annotations"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"some\.odgt: expected a list of images \(\.odgt\) in JSON, got a broken one"),
        ("[1]", r"some\.odgt, entry 0: expected a path under 'fpath_img', got 1; correct the list"),
        (
            '[{"fpath_img": "images/training/t1/9.png", "fpath_segm": "annotations/training/t1/9.png"}]',
            r"entry 0: expected the file .*images/training/t1/9\.png, it does not exist; add it, or take it off",
        ),
        (
            '[{"fpath_img": "images/training/t1/1.png", "fpath_segm": "annotations/training/t1/9.png"}]',
            r"entry 0: expected the file .*annotations/training/t1/9\.png, it does not exist",
        ),
        (
            '[{"fpath_img": "../x.png", "fpath_segm": "annotations/training/t1/1.png"}]',
            r"entry 0: expected a path below",
        ),
        (
            '[{"fpath_img": "stray.png", "fpath_segm": "annotations/training/t1/1.png"}]',
            r"expected an image below images/ and training, validation, test, got .*stray\.png",
        ),
        ("[]", r"expected images, found none"),
    ],
)
def test_bad_lists(tmp_path: Path, text: str, message: str) -> None:
    written(tmp_path)
    (tmp_path / "train" / "stray.png").write_bytes((tmp_path / "train/images/training/t1/1.png").read_bytes())
    (tmp_path / "train" / "some.odgt").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        opened(f'streethazards:{tmp_path}?lists=["train/some.odgt"]')
    assert "\n" not in str(caught.value)


def test_a_missing_annotation(tmp_path: Path) -> None:
    (written(tmp_path) / "train/annotations/training/t2/1.png").unlink()
    with pytest.raises(
        DataError, match=r"1 without mask \(t2/1\); add the files, or name the images to take"
    ):
        opened(str(tmp_path))


@pytest.mark.parametrize(("value", "pixels"), [(0, "1 pixel"), (15, "1 pixel")])
def test_values_of_no_class(tmp_path: Path, value: int, pixels: str) -> None:
    """Masks without the shift by one, or with a fifteenth value."""
    values = VALUES.copy()
    values[0, 0] = value
    source = opened(str(written(tmp_path, values)))
    with pytest.raises(
        DataError,
        match=rf"t5/1\.png: expected values of .*streethazards\.yaml, got value {value} \({pixels}\); add",
    ):
        source.targets(3)

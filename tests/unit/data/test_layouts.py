from __future__ import annotations

from pathlib import Path

import pytest

from raydet.config import DataConfig, KaistSource, SyntheticSource, VocSource, YoloSource
from raydet.data.build import adopt_source, open_source
from raydet.data.convert import convert
from raydet.data.layouts import detect_source
from raydet.data.synthetic import SyntheticSet
from raydet.errors import ConfigError, DataError
from raydet.recipes.demo import demo
from tests.contract.formats import write_coco

CLASSES = ("circle", "square", "triangle")


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    for name in ("vi", "ir", "labels_vi", "labels_ir"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_settings_follow_a_question_mark(yolo: Path) -> None:
    assert detect_source(f"yolo:{yolo}?labels=union&union_iou=0.3") == YoloSource(
        root=str(yolo), labels="union", union_iou=0.3
    )
    assert detect_source(f"{yolo}?labels=rgb&thermal_range=[7000,9000]") == YoloSource(
        root=str(yolo), labels="rgb", thermal_range=(7000, 9000)
    )
    assert detect_source("synthetic?num_sequences=4") == SyntheticSource(num_sequences=4)
    assert detect_source(f"kaist:{yolo}?subset=train.txt") == KaistSource(root=str(yolo), subset="train.txt")
    assert detect_source(f'voc:{yolo}?rgb=vi&thermal=null&ignore=["dog"]') == VocSource(
        root=str(yolo), rgb="vi", thermal=None, ignore=("dog",)
    )


def test_a_path_may_have_a_question_mark(tmp_path: Path) -> None:
    (tmp_path / "what?a=1" / "set00").mkdir(parents=True)
    root = str(tmp_path / "what?a=1")
    assert detect_source(root) == detect_source(f"kaist:{root}") == KaistSource(root=root)
    assert detect_source(f"kaist:{root}?subset=a.txt") == KaistSource(root=root, subset="a.txt")


@pytest.mark.parametrize("name", ["a b", "50%25 #1?", "Prüfung"])
def test_sets_in_directories_of_any_name(tmp_path: Path, name: str) -> None:
    """From files to shards to samples; a URI quotes what a path does not."""
    path = write_coco(
        SyntheticSet(num_sequences=2, frames_per_sequence=1, classes=CLASSES, size_hw=(60, 80), seed=1),
        tmp_path / name,
    )
    data = adopt_source(demo(), detect_source(f"coco:{path}")).data
    for destination in (str(tmp_path / name / "plain"), (tmp_path / name / "quoted").as_uri()):
        convert(data, destination)
        shards = adopt_source(demo(), detect_source(f"shards:{destination}")).data
        assert (
            open_source(shards).read(0).modalities["rgb"].equal(open_source(data).read(0).modalities["rgb"])
        )
    assert sorted(found.name for found in tmp_path.iterdir()) == [name]
    assert (tmp_path / name / "quoted" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ("", r"several label sets \(rgb, thermal\); choose .*\?labels=rgb', .*\?labels=union'$"),
        ("?labels=both", r"yolo\.labels: Input should be 'rgb', 'thermal', 'union' or 'fused'"),
        ("?lables=rgb&labels=rgb", "lables: Extra inputs are not permitted"),
        ("?labels", "expects key=value after the question mark, got 'labels'"),
        ("?labels=rgb&thermal_range=[9,7]", "thermal_range: expected low < high, got 9, 7"),
        ("?labels=rgb&union_iou=0", "greater than 0"),
    ],
)
def test_what_is_wrong_is_a_usage_error(yolo: Path, tail: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        detect_source(f"{yolo}{tail}")
    assert "\n" not in str(caught.value)


def test_one_label_set_needs_no_choice(tmp_path: Path) -> None:
    for name in ("images/visible", "images/thermal", "labels"):
        (tmp_path / name).mkdir(parents=True)
    assert detect_source(str(tmp_path)) == YoloSource(root=str(tmp_path), labels="fused")
    (tmp_path / "labels").rmdir()
    with pytest.raises(DataError, match="needs label directories"):
        detect_source(f"yolo:{tmp_path}")


def test_a_directory_that_fits_several_formats(tmp_path: Path) -> None:
    for name in ("visible", "infrared", "Annotations", "labels"):
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=r"fits several formats \(voc, yolo\); name one, for example voc:/"):
        detect_source(str(tmp_path))


def test_a_set_without_a_modality_that_is_read(yolo: Path) -> None:
    for name in ("vi/a.png", "ir/a.png", "labels_vi/a.txt"):
        (yolo / name).write_text("")
    data = DataConfig(
        source=YoloSource(root=str(yolo), labels="rgb"), missing=("rgb", "thermal"), canvas_hw=(32, 32)
    )
    with pytest.raises(ConfigError, match=r"data\.missing names every modality"):
        open_source(data)

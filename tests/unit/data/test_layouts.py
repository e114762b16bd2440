from __future__ import annotations

from pathlib import Path

import pytest

from raydet.config import DataConfig, KaistSource, SyntheticSource, VocSource, YoloSource
from raydet.data.build import open_source
from raydet.data.layouts import detect_source
from raydet.errors import ConfigError, DataError


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
    assert detect_source(str(tmp_path / "what?a=1")) == KaistSource(root=str(tmp_path / "what?a=1"))


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

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydet.config import CocoSource, DataConfig, NpyYoloSource, SyntheticSource
from raydet.data.build import adopt_source, detect_source, open_source
from raydet.errors import ConfigError, DataError
from raydet.recipes.demo import demo


@pytest.fixture
def npy_yolo(tmp_path: Path) -> Path:
    root = tmp_path / "npy"
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    np.save(root / "images" / "a.npy", np.zeros((32, 32, 5), np.uint8))
    (root / "labels" / "a.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    return root


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    root.mkdir()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(root / "v.png")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(root / "t.png")
    tree = {
        "images": [{"id": 1, "rgb": "v.png", "thermal": "t.png"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [4, 4, 8, 8]}],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
    }
    (root / "annotations.json").write_text(json.dumps(tree))
    return root


def test_specs(npy_yolo: Path, coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations = CocoSource(annotations=str(coco / "annotations.json"))
    arrays = NpyYoloSource(root=str(npy_yolo))
    assert detect_source("synthetic") == SyntheticSource()
    assert detect_source(str(coco)) == detect_source(f"coco:{coco}") == annotations
    assert detect_source(str(coco / "annotations.json")) == annotations
    assert detect_source(str(npy_yolo)) == detect_source(f"npy_yolo:{npy_yolo}") == arrays
    monkeypatch.chdir(npy_yolo.parent)
    assert detect_source("npy") == detect_source("npy_yolo:../" + npy_yolo.parent.name + "/npy/") == arrays


@pytest.mark.parametrize("spec", ["", "coco:", "vok:/data", "synthetic:7"])
def test_what_is_no_spec_is_a_usage_error(spec: str) -> None:
    with pytest.raises(
        ConfigError,
        match=r"--data must be synthetic, tree, strange, silent, swarm, FORMAT:PATH \(npy_yolo, .*\), shards:URI, or "
        "a path, got",
    ):
        detect_source(spec)


def test_a_directory_of_no_known_format(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found none of them; name the format"):
        detect_source(str(tmp_path))


@pytest.mark.parametrize("spec", ["/no/where", "coco:/no/where", "npy_yolo:/no/where"])
def test_a_path_that_does_not_exist(spec: str) -> None:
    with pytest.raises(DataError, match="/no/where does not exist"):
        detect_source(spec)


def test_labels_must_be_there(npy_yolo: Path) -> None:
    (npy_yolo / "labels" / "a.txt").unlink()
    (npy_yolo / "labels").rmdir()
    with pytest.raises(DataError, match=r"labels/.* does not exist"):
        detect_source(str(npy_yolo))


def test_coco_brings_its_classes_and_modalities(coco: Path) -> None:
    experiment = adopt_source(demo(), detect_source(str(coco)))
    assert experiment.data.classes == ("person", "car")
    assert experiment.data.missing == ("event",)
    source = open_source(experiment.data)
    assert source.classes == ("person", "car")
    assert source.modalities == ("rgb", "thermal")
    assert type(experiment).from_json(experiment.to_json(), where="here") == experiment


def test_npy_yolo_brings_class_names_where_it_has_them(npy_yolo: Path) -> None:
    source_config = detect_source(str(npy_yolo))
    assert adopt_source(demo(), source_config).data.classes == demo().data.classes
    (npy_yolo / "classes.txt").write_text("person\ncar\n")
    experiment = adopt_source(demo(), source_config)
    assert experiment.data.classes == ("person", "car")
    assert experiment.data.missing == ()
    assert open_source(experiment.data).targets(0)[0].labels.tolist() == [1]


def test_the_synthetic_set_draws_any_classes() -> None:
    experiment = adopt_source(demo(), SyntheticSource(num_sequences=2, frames_per_sequence=1))
    assert experiment.data.classes == demo().data.classes
    assert len(open_source(experiment.data)) == 2


def test_classes_are_found_by_their_names(coco: Path) -> None:
    """Whatever the order of the category ids is."""
    config = detect_source(str(coco))
    expected = open_source(adopt_source(demo(), config).data)
    other = open_source(DataConfig(source=config, classes=("car", "person"), canvas_hw=(32, 32)))
    assert (expected.classes, other.classes) == (("person", "car"), ("car", "person"))
    labels, swapped = (source.targets(0)[0].labels.tolist() for source in (expected, other))
    assert labels
    assert swapped == [1 - label for label in labels]


def test_objects_of_other_classes_are_refused(coco: Path) -> None:
    data = DataConfig(source=detect_source(str(coco)), classes=("tree",), canvas_hw=(32, 32))
    with pytest.raises(DataError, match=r"expected a category of data\.classes \(tree\), got '(person|car)'"):
        open_source(data)


def test_a_set_without_any_modality_is_refused() -> None:
    data = DataConfig(missing=("rgb", "thermal", "event"), canvas_hw=(32, 32))
    with pytest.raises(ConfigError, match="names every modality"):
        open_source(data)

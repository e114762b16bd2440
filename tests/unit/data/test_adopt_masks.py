"""A set with masks sets the classes and the class tree of an experiment for masks, and is refused by one for boxes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from PIL import Image

from raydet.config import (
    Experiment,
    FrameSplit,
    Level,
    NamedSplit,
    NoNeckConfig,
    SegFormerConfig,
    SegmentationTask,
    SyntheticSource,
    TreeSource,
    apply_overrides,
)
from raydet.config.tree import TREE_CLASSES, TREE_LEVELS
from raydet.data.build import adopt_source, detect_source, open_source
from raydet.data.convert import convert
from raydet.data.split import split_indices
from raydet.errors import ConfigError, DataError
from raydet.recipes.demo import demo


def for_masks() -> Experiment:
    base = demo()
    model = base.model.model_copy(update={"neck": NoNeckConfig(), "head": SegFormerConfig()})
    changed = base.model_copy(update={"task": SegmentationTask(), "model": model})
    return Experiment.from_json(changed.to_json(), where="here")


def test_classes_and_tree_are_adopted(tmp_path: Path) -> None:
    experiment = adopt_source(for_masks(), TreeSource(num_images=4))
    assert experiment.data.classes == TREE_CLASSES
    assert isinstance(experiment.task, SegmentationTask)
    assert experiment.task.levels == TREE_LEVELS
    assert Experiment.from_json(experiment.to_json(), where="here") == experiment
    convert(experiment.data, str(tmp_path / "shards"))
    again = adopt_source(for_masks(), detect_source(str(tmp_path / "shards")))
    assert again.task == experiment.task
    assert again.data.missing == ("thermal", "event")


def test_a_trained_run_keeps_its_tree() -> None:
    """Its levels may be other ones than those of the set that it is evaluated on."""
    task = SegmentationTask(levels=(Level(name="one", groups=("all",), parents=(0,) * 9),))
    experiment = for_masks().model_copy(update={"task": task})
    assert adopt_source(experiment, TreeSource(num_images=4), classes=TREE_CLASSES).task == task


def test_the_target_must_be_the_tasks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tree set has masks, demo needs boxes; .*seg_demo") as caught:
        adopt_source(demo(), TreeSource())
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"synthetic set has boxes, demo needs masks; choose .*masks:PATH"):
        adopt_source(for_masks(), SyntheticSource())
    data = adopt_source(demo(), TreeSource(num_images=4), any_task=True).data
    convert(data, str(tmp_path / "shards"))
    with pytest.raises(ConfigError, match=r"shards set has masks, demo needs boxes"):
        adopt_source(demo(), detect_source(str(tmp_path / "shards")))


def test_camvid(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "camvid"
    if not root.is_dir():
        pytest.skip("CamVid is not among the research data")
    with pytest.raises(DataError, match=r"of the masks have values 0 \(.*11 \(.*classes\.yaml|classes: \["):
        adopt_source(for_masks(), detect_source(str(root)))
    experiment = adopt_source(
        for_masks(), detect_source(f'{root}?classes=camvid&splits=["val"]&group_prefix=6')
    )
    source = open_source(experiment.data)
    assert (len(source), len(source.classes), source.modalities) == (30, 11, ("rgb",))
    assert set(source.group_ids) <= {"0001TP", "0006R0", "0016E5", "Seq05V"}
    manifest = convert(experiment.data, str(tmp_path / "shards"))
    assert (manifest.images, manifest.target, manifest.left_out) == (30, "masks", 0)
    shards = open_source(adopt_source(for_masks(), detect_source(str(tmp_path / "shards"))).data)
    for index in (0, 29):
        a, b = source.read(index), shards.read(index)
        assert a.target.ids_HW.equal(b.target.ids_HW)
        assert a.modalities["rgb"].equal(b.modalities["rgb"])
        assert a.source_hw == (360, 480)


def test_the_parts_of_a_set_are_adopted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Images of a set that its authors have split are not mixed; a split of one's own is set after that."""
    root = tmp_path / "set"
    for name in ("train/a", "train/b", "val/a", "test/a"):
        for directory in (name.replace("/", "annot/"), name):
            path = root / f"{directory}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L" if "annot" in directory else "RGB", (8, 8)).save(path)
    (root / "classes.yaml").write_text("classes: [{id: 0, name: road}]")
    experiment = adopt_source(for_masks(), detect_source(str(root)))
    assert experiment.data.split == NamedSplit()
    source = open_source(experiment.data)
    parts = {
        part: [source.image_ids[index] for index in indices]
        for part, indices in split_indices(source, experiment.data.split).items()
    }
    assert parts == {
        "train": ["train/a", "train/b"],
        "val": ["val/a"],
        "test": ["test/a"],
        "calibration": [],
    }
    convert(experiment.data, str(tmp_path / "shards"))
    again = adopt_source(for_masks(), detect_source(str(tmp_path / "shards")))
    assert again.data.split == NamedSplit()
    with caplog.at_level(logging.WARNING, logger="raydet"):
        mixed = adopt_source(for_masks(), detect_source(f'{root}?splits=["train","test"]'))
    assert mixed.data.split == for_masks().data.split
    assert "comes as test and train, without images to validate on" in caplog.text
    caplog.clear()
    trained = adopt_source(
        for_masks(), detect_source(f'{root}?splits=["train","test"]'), classes=experiment.data.classes
    )
    assert (trained.data.split, caplog.text) == (for_masks().data.split, "")  # all images are evaluated
    one_part = adopt_source(for_masks(), detect_source(f'{root}?splits=["val"]'))
    assert one_part.data.split == for_masks().data.split
    chosen = apply_overrides(experiment, {"data.split.kind": "frame"})
    assert chosen.data.split == FrameSplit()

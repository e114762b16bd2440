"""`raydet data check` of sets with masks: counts, classes that never occur, labels that are noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from raydet.check.examine import Settings
from raydet.check.gather import Gathered
from raydet.check.image_record import as_json
from raydet.check.images import worst_cases
from raydet.check.masks import mask_counts, mask_findings
from raydet.check.page import render
from raydet.check.run import check_source
from raydet.check.summary import summary_lines
from raydet.cli import main
from raydet.config import FirstSplit
from raydet.structures import ANOMALY, IGNORE, Mask, Sample, mask_of
from tests.unit.check.planted import kinds_of
from tests.unit.data.masks import CLASSES, MaskSet

CLEAN = MaskSet(num_images=4, size_hw=(90, 120), step=13)


def checked(source: MaskSet, num_train: int = 2) -> Gathered:
    return check_source(source, FirstSplit(num_train=num_train), Settings(classes=source.classes))


def test_counts_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    ids = rng.choice([0, 1, 2, IGNORE], (9, 11), p=[0.5, 0.2, 0.2, 0.1]).astype(np.uint8)
    counts = mask_counts(ids, 4)
    assert counts.pixels_K.tolist() == [int((ids == label).sum()) for label in range(4)]
    assert counts.images_K.tolist() == [1, 1, 1, 0]
    assert counts.unlabelled == int((ids == IGNORE).sum())
    isolated = border = 0
    for y in range(9):
        for x in range(11):
            if ids[y, x] == IGNORE:
                continue
            later = [ids[y + dy, x + dx] for dy, dx in ((1, 0), (0, 1)) if y + dy < 9 and x + dx < 11]
            border += any(other not in (ids[y, x], IGNORE) for other in later)
            if 0 < y < 8 and 0 < x < 10:
                around = [ids[y - 1, x], ids[y + 1, x], ids[y, x - 1], ids[y, x + 1]]
                isolated += all(other not in (ids[y, x], IGNORE) for other in around)
    assert (counts.isolated, counts.border) == (isolated, border)
    assert isolated > 0


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 7), (2, 2)])
def test_the_smallest_masks(size_hw: tuple[int, int]) -> None:
    assert mask_counts(np.zeros(size_hw, np.uint8), 1).isolated == 0


def test_a_clean_set_has_no_finding() -> None:
    found = checked(CLEAN)
    assert found.findings == []
    rows = {row["class"]: row for row in found.mask_rows()}
    assert rows.keys() == set(CLASSES)
    assert all(row["images"] == 4 and row["train"] + row["val"] == row["pixels"] for row in rows.values())
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1, abs=1e-5)
    assert not found.boxes_per_image


def test_classes_that_never_occur() -> None:
    found = checked(MaskSet(num_images=4, size_hw=(90, 120), step=13, classes=(*CLASSES, "whale")))
    assert kinds_of(found) == {"class_unused": 1}
    [finding] = found.findings
    assert (finding.name, finding.detail) == ("whale", "no pixel")


Change = Callable[[Tensor, int], Tensor]
"""Changes the ids of the image of a number."""


def changed(change: Change) -> Gathered:
    """The check of a set with changed masks."""

    @dataclass(frozen=True, slots=True)
    class Changed(MaskSet):
        def read(self, index: int) -> Sample:
            sample = MaskSet.read(self, index)
            return replace(sample, target=Mask(change(mask_of(sample.target, "").ids_HW, index)))

    return checked(Changed(num_images=4, size_hw=(90, 120), step=13))


def test_anomalies_belong_to_test_images() -> None:
    def with_anomalies(ids: Tensor, index: int) -> Tensor:
        if index == 1:
            ids[2:5, 2:4] = ANOMALY
        return ids

    found = changed(with_anomalies)
    [finding] = found.findings
    assert (finding.kind, finding.index) == ("anomaly_outside_test", 1)
    assert finding.detail == "6 pixels, to train on"
    assert found.masks is not None
    assert found.masks.anomalous == 6
    total = 4 * 90 * 120
    assert found.masks.labelled + found.masks.unlabelled + 6 == total
    assert any(f"{6 / total:.2%} anomalies" in line for line in summary_lines(found))


def test_a_class_on_one_side_of_the_split() -> None:
    def without_discs(ids: Tensor, index: int) -> Tensor:
        if index >= 2:
            ids[ids == 2] = 0
        return ids

    found = changed(without_discs)
    assert kinds_of(found) == {"class_one_sided": 1}
    assert "pixels to train on, 0 to validate on" in found.findings[0].detail


def test_masks_without_a_label() -> None:
    def unlabelled(ids: Tensor, index: int) -> Tensor:
        return ids.fill_(IGNORE) if index == 3 else ids

    assert kinds_of(changed(unlabelled)) == {"mask_empty": 1}
    assert kinds_of(changed(lambda ids, _: ids.fill_(IGNORE))) == {"mask_empty": 4, "no_labels": 1}


def test_masks_that_were_resized_with_interpolation_are_speckled() -> None:
    """Borders between the ids 0 and 9 become 1 to 8."""
    y, x = np.mgrid[:240, :320]
    ids = np.where((x + 2 * y) // 60 % 2, 9, 0).astype(np.uint8)
    good, bad = (
        np.array(Image.fromarray(ids).resize((213, 160), how))
        for how in (Image.Resampling.NEAREST, Image.Resampling.BILINEAR)
    )
    assert list(mask_findings(mask_counts(good, 10), 0, "a")) == []
    [finding] = mask_findings(mask_counts(bad, 10), 0, "a")
    assert finding.kind == "mask_speckled"


def test_everything_is_told() -> None:
    def noisy(ids: Tensor, index: int) -> Tensor:
        ids[2:-2:4, 2:-2:4] = 2 - index % 2
        return ids

    found = changed(noisy)
    assert kinds_of(found) == {"mask_speckled": 4}
    text = "\n".join(summary_lines(found))
    assert "4 masks, 3 classes: ground" in text
    assert "of the pixels without a label" in text
    assert "boxes" not in text
    tree = json.loads(json.dumps(as_json(found, Settings(classes=CLASSES), {})))
    assert tree["masks"]["masks"] == 4
    assert tree["classes"][0].keys() == {"class", "pixels", "share", "images", "train", "val"}
    page = render(found, Settings(classes=CLASSES), list(worst_cases(found, CLEAN)), title="masks")
    assert page.count("data:image/jpeg") == 4
    assert "labelled pixels" in page
    assert "Boxes per image" not in page


def test_workers_find_the_same() -> None:
    settings = Settings(classes=CLASSES)
    alone, together = (
        as_json(check_source(CLEAN, FirstSplit(num_train=2), settings, workers=workers), settings, {})
        for workers in (0, 2)
    )
    assert alone == together


def test_the_command_on_the_embedded_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(("data", "check", "tree?num_images=40&thermal=true", "--output", str(tmp_path), "--no-align"))
    out = capsys.readouterr().out
    assert caught.value.code == 0, out
    assert "40 masks, 9 classes: ground" in out
    assert (tmp_path / "check.html").is_file()

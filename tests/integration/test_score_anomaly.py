"""`raydet score anomaly`: maps of any tool, in both protocols."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from raydet.cli import main
from raydet.errors import EXIT_DATA, EXIT_USAGE
from raydet.metrics.anomaly_records import AnomalyRecords
from raydet.metrics.names import (
    AP,
    AUROC,
    FPR95,
    OFFICIAL_FPR95,
    PER_IMAGE_AP,
    PER_IMAGE_AUROC,
    PER_IMAGE_FPR95,
)
from raydet.metrics.records import RECORDS, read_records, score
from tests.image_bytes import png_16, tiff

ANOMALY = 14
Array = NDArray[Any]


class MapSet(NamedTuple):
    """Directories of masks and maps, and their pixels."""

    truth: Path
    maps: Path
    masks_HW: dict[str, Array]
    scores_HW: dict[str, Array]

    @property
    def folders(self) -> tuple[str, str]:
        return str(self.truth), str(self.maps)


def write_mask(path: Path, mask_HW: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask_HW.astype(np.uint8)).save(path)


def write_map(path: Path, scores_HW: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, scores_HW)


@pytest.fixture
def maps(tmp_path: Path) -> MapSet:
    """Two towns with the same file names; 1 of 5 images has no anomaly, and one nothing else."""
    generator = np.random.default_rng(0)
    found = MapSet(tmp_path / "truth", tmp_path / "maps", {}, {})
    for number, name in enumerate(("t5/1", "t5/2", "t5/3", "t6/1", "t6/2")):
        height, width = 9 + number, 12
        is_anomalous = generator.random((height, width)) < {2: 0.0, 4: 1.0}.get(number, 0.2)
        mask_HW = np.where(is_anomalous, ANOMALY, generator.integers(1, 14, (height, width)))
        scores_HW = generator.normal(is_anomalous + 0.3 * number, 1).round(2)
        scores_HW = scores_HW.astype((np.float32, np.float16, np.float64)[number % 3])
        write_mask(found.truth / f"{name}.png", mask_HW)
        write_map(found.maps / f"{name}.npy", scores_HW)
        found.masks_HW[name], found.scores_HW[name] = mask_HW, scores_HW
    for junk in (found.truth / "._1.png", found.maps / "__MACOSX" / "1.npy", found.truth / "notes.txt"):
        junk.parent.mkdir(exist_ok=True)
        junk.write_bytes(b"\0")
    return found


def scored(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["score", "anomaly", *arguments])
    output = capsys.readouterr()
    assert (caught.value.code or 0) == code, output.err
    if code:
        assert output.err.count("\n") == 1
        assert output.err.startswith("error: ")
        assert output.out == ""
    return output.err if code else output.out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(scored(capsys, *arguments, "--json"))
    return found


def sklearn_metrics(truth: Array, scores: Array) -> tuple[float, float, float]:
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    return (
        float(roc_auc_score(truth, scores)),
        float(average_precision_score(truth, scores)),
        float(fpr[np.argmax(tpr >= 0.95)]),
    )


def test_both_protocols_equal_scikit_learn(maps: MapSet, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, *maps.folders)
    pairs = [
        ((maps.masks_HW[name] == ANOMALY).ravel(), maps.scores_HW[name].ravel()) for name in maps.masks_HW
    ]
    truth = np.concatenate([truth for truth, _ in pairs])
    scores = np.concatenate([scores.astype(np.float16).astype(float) for _, scores in pairs])
    metrics = found["metrics"]
    assert [metrics[name] for name in (AUROC, AP, FPR95)] == pytest.approx(
        sklearn_metrics(truth, scores), abs=1e-12
    )
    images = [sklearn_metrics(truth, scores) for truth, scores in pairs if 0 < truth.mean() < 1]
    per_image = [metrics[name] for name in (PER_IMAGE_AUROC, PER_IMAGE_AP, PER_IMAGE_FPR95)]
    assert per_image == pytest.approx(np.mean(images, axis=0), abs=1e-12)
    protocol = found["protocol"]
    assert (protocol["images"], protocol["mixed_images"], protocol["resized_images"]) == (5, 3, 0)
    assert protocol["anomalous_pixels"] == truth.sum()
    assert protocol["prevalence"] == pytest.approx(truth.mean())
    assert (protocol["anomaly"], protocol["ignore"]) == ([14], [])
    assert protocol["normal"] == list(range(1, 14))
    assert protocol["sizes_hw"] == [[height, 12] for height in range(9, 14)]
    called = scores >= found["best_F1"]["threshold"]
    assert found["best_F1"]["value"] == pytest.approx(
        2 * (called & truth).sum() / (called.sum() + truth.sum()), abs=1e-12
    )


def test_the_text_states_the_protocol(maps: MapSet, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, *maps.folders)
    text = scored(capsys, *maps.folders)
    assert (
        "5 images, 5 sizes from 12 x 9 to 12 x 13, no map resized; 660 pixels, 0 more ignored (no value)"
        in text
    )
    assert "higher scores are more anomalous" in text
    assert "200 sets resampled from 2 directories" in text
    assert "pooled: all pixels are one set, scores in float16" in text
    assert "means over the 3 of 5 images with pixels of both kinds" in text
    assert "chosen on these pixels: optimistic" in text
    low, high = found["intervals"][OFFICIAL_FPR95]
    assert f"official_FPR95   {found['metrics'][OFFICIAL_FPR95]:.4f}  [{low:.4f}, {high:.4f}]" in text


def test_planted_answers(maps: MapSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The truth itself as the score, and one score for all."""
    for name, mask_HW in maps.masks_HW.items():
        write_map(tmp_path / "oracle" / f"{name}.npy", (mask_HW == ANOMALY).astype(np.float32))
        write_map(tmp_path / "constant" / f"{name}.npy", np.full(mask_HW.shape, 0.7, np.float32))
    oracle = as_json(capsys, str(maps.truth), str(tmp_path / "oracle"), "--components")
    expected = {AUROC: 1, AP: 1, FPR95: 0}
    of_images = {PER_IMAGE_AUROC: 1, PER_IMAGE_AP: 1, PER_IMAGE_FPR95: 0, OFFICIAL_FPR95: 0}
    assert oracle["metrics"] == expected | of_images
    assert oracle["intervals"][AUROC] == [1, 1]
    assert oracle["best_F1"] == {"value": 1, "threshold": 1}
    assert oracle["components"] == {"sIoU": 1, "PPV": 1, "mean_F1": 1}
    constant = as_json(capsys, str(maps.truth), str(tmp_path / "constant"))
    assert constant["metrics"][AUROC] == constant["metrics"][PER_IMAGE_AUROC] == 0.5
    assert constant["metrics"][AP] == pytest.approx(constant["protocol"]["prevalence"], rel=1e-12)
    assert constant["metrics"][FPR95] == constant["metrics"][OFFICIAL_FPR95] == 1
    assert constant["components"] is None


def test_low_scores_may_mean_anomalies(
    maps: MapSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, scores_HW in maps.scores_HW.items():
        write_map(tmp_path / "turned" / f"{name}.npy", -scores_HW)
    folders = str(maps.truth), str(tmp_path / "turned")
    high = as_json(capsys, *maps.folders, "--components")
    low = as_json(capsys, *folders, "--lower-is-anomalous", "--components")
    assert low["metrics"] == high["metrics"]
    assert low["components"] == high["components"]
    assert low["best_F1"]["threshold"] == -high["best_F1"]["threshold"]
    assert " down; chosen on these pixels" in scored(capsys, *folders, "--lower-is-anomalous")


def test_image_files_hold_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores_HW = np.array([[0, 3, 40000], [7, 40032, 65535]], np.uint16)
    truth, maps = tmp_path / "truth", tmp_path / "maps"
    maps.mkdir()
    for number in range(3):
        write_mask(truth / f"{number}.png", np.array([[1, 14, 1], [1, 14, 14]]))
    (maps / "0.png").write_bytes(png_16(scores_HW))
    (maps / "1.tif").write_bytes(tiff(scores_HW, photometric=1))
    write_mask(maps / "2.png", np.array([[0, 3, 10], [7, 11, 12]]))
    found = as_json(capsys, str(truth), str(maps))
    assert found["metrics"][PER_IMAGE_AUROC] == pytest.approx(7 / 9)
    assert found["metrics"][AUROC] == pytest.approx(7 / 9, abs=0.2)


def test_ignored_pixels_never_count(maps: MapSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = as_json(capsys, *maps.folders, "--components")
    for name, mask_HW in maps.masks_HW.items():
        edge_HW = np.full((1, mask_HW.shape[1]), 255)
        write_mask(tmp_path / "masks" / f"{name}.bmp", np.concatenate([mask_HW, edge_HW]))
        scores_HW = maps.scores_HW[name]
        nan_HW = np.full(edge_HW.shape, np.nan, scores_HW.dtype)
        write_map(tmp_path / "wide" / f"{name}.npy", np.concatenate([scores_HW, nan_HW]))
    folders = str(tmp_path / "masks"), str(tmp_path / "wide")
    found = as_json(capsys, *folders, "--ignore", "255,0", "--components")
    for key in ("metrics", "intervals", "best_F1", "components"):
        assert found[key] == before[key]
    assert found["protocol"]["ignored_pixels"] == 60
    assert "got NaN for 12" in scored(capsys, *folders, code=EXIT_DATA)


def test_maps_are_resized_on_request(
    maps: MapSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, mask_HW in maps.masks_HW.items():
        write_mask(tmp_path / "large" / f"{name}.png", mask_HW.repeat(2, axis=0).repeat(2, axis=1))
    folders = str(tmp_path / "large"), str(maps.maps)
    message = scored(capsys, *folders, code=EXIT_DATA)
    assert "1.npy: expected 24 x 18 like its mask" in message
    assert "got 12 x 9; export maps of the masks' size, or add --resize" in message
    assert "5 maps resized to it" in scored(capsys, *folders, "--resize")
    found = as_json(capsys, *folders, "--resize", "--components")
    assert found["protocol"]["resized_images"] == 5
    assert 0.5 < found["metrics"][AUROC] < 1
    scores_HW = maps.scores_HW["t5/1"].copy()
    scores_HW[0, 0] = np.inf
    write_map(maps.maps / "t5" / "1.npy", scores_HW)
    assert "1.npy: expected finite scores" in scored(capsys, *folders, "--resize", code=EXIT_DATA)


def test_groups(maps: MapSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    towns, images = (as_json(capsys, *maps.folders, *flag) for flag in ((), ("--groups", "image")))
    assert (towns["protocol"]["group_by"], towns["protocol"]["groups"]) == ("directory", 2)
    assert (images["protocol"]["group_by"], images["protocol"]["groups"]) == ("image", 5)
    assert towns["metrics"] == images["metrics"]
    for found in (towns, images):
        for name, (low, high) in found["intervals"].items():
            assert 0 <= low <= found["metrics"][name] <= high <= 1
    # The images of one town alone are groups for themselves; as one group they tell nothing.
    folders = str(maps.truth / "t5"), str(maps.maps / "t5")
    assert as_json(capsys, *folders)["protocol"]["groups"] == 3
    one = as_json(capsys, *folders, "--groups", "directory")
    assert set(one["intervals"].values()) == {None}
    assert one["protocol"]["resamples"] == 0
    assert "no intervals: all images are of one group" in scored(capsys, *folders, "--groups", "directory")


def test_no_image_has_both_kinds(maps: MapSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("t5/1", "t5/2", "t6/1"):
        (maps.truth / f"{name}.png").unlink()
        (maps.maps / f"{name}.npy").unlink()
    found = as_json(capsys, *maps.folders)
    assert found["metrics"][PER_IMAGE_AUROC] is None
    assert 0 < found["metrics"][AUROC] < 1
    text = scored(capsys, *maps.folders)
    assert "means over the 0 of 2 images" in text
    assert "per_image_AUROC  undefined\n" in text


def test_records(maps: MapSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / RECORDS
    found = as_json(capsys, *maps.folders, "--records", str(path))
    again = read_records(path.parent)
    assert isinstance(again, AnomalyRecords)
    assert again.image_ids.tolist() == list(maps.masks_HW)
    assert again.group_ids.tolist() == ["t5", "t5", "t5", "t6", "t6"]
    for name, value in found["metrics"].items():
        assert score(again, name) == value
    assert f"written: {path}" in scored(capsys, *maps.folders, "--records", str(path))


FIRST = "t5/1"
GOOD_HW = np.zeros((9, 12), np.float32)
NAN_HW, LARGE_HW = GOOD_HW.copy(), GOOD_HW.copy()
NAN_HW[2, 3] = np.nan
LARGE_HW[2, 3] = -1e6


def replace_map(scores_HW: Array) -> Callable[[MapSet], object]:
    return lambda maps: np.save(maps.maps / f"{FIRST}.npy", scores_HW)


def replace_by_image(array: Array) -> Callable[[MapSet], object]:
    def replace(maps: MapSet) -> None:
        (maps.maps / f"{FIRST}.npy").unlink()
        Image.fromarray(array).save(maps.maps / f"{FIRST}.png")

    return replace


def replace_masks(value: int) -> Callable[[MapSet], object]:
    def replace(maps: MapSet) -> None:
        for name, mask_HW in maps.masks_HW.items():
            write_mask(maps.truth / f"{name}.png", np.full(mask_HW.shape, value))

    return replace


def without_map(maps: MapSet) -> None:
    (maps.maps / f"{FIRST}.npy").unlink()


def without_mask(maps: MapSet) -> None:
    (maps.truth / f"{FIRST}.png").unlink()


def with_second_map(maps: MapSet) -> None:
    write_mask(maps.maps / f"{FIRST}.png", GOOD_HW)


def with_coloured_mask(maps: MapSet) -> None:
    write_mask(maps.truth / f"{FIRST}.png", np.zeros((9, 12, 3)))


def with_damaged_mask(maps: MapSet) -> None:
    (maps.truth / f"{FIRST}.png").write_bytes(b"no image")


def pipe(maps: MapSet) -> None:
    (maps.maps / f"{FIRST}.npy").unlink()
    os.mkfifo(maps.maps / f"{FIRST}.npy")


def truncated(maps: MapSet) -> None:
    path = maps.maps / f"{FIRST}.npy"
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            without_map,
            "maps: expected a map (.npy, .png, .tif, .tiff) for each mask, 1 of 5 names have none, the first",
        ),
        (without_mask, "the first is t5/1; add it below the same subdirectory, or remove the map"),
        (with_second_map, "maps/t5/1.npy: expected one file of the name t5/1, got another"),
        (replace_map(NAN_HW), "1.npy: expected a score for every pixel that counts, got NaN for 1; "),
        (replace_map(LARGE_HW), "expected scores of at most 65535 in amount"),
        (
            replace_map(GOOD_HW[None]),
            "expected [height, width] of float16, float32, float64, got [1, 9, 12] of",
        ),
        (replace_map(GOOD_HW.astype(int)), "float64, got [9, 12] of int64; save one score per pixel"),
        (
            replace_map(np.array([[{}]])),
            "got another or a damaged file (Array can't be memory-mapped: Python objects",
        ),
        (replace_map(GOOD_HW[:0]), "1.npy: expected"),
        (truncated, "expected a .npy array of floats, got another or a damaged file"),
        (pipe, "it is not a regular file"),
        (replace_by_image(np.zeros((9, 12, 3), np.uint8)), "one channel of 8 or 16 bits, got 3 of 8"),
        (with_coloured_mask, "expected a mask of one channel with values from 0, got colours"),
        (with_damaged_mask, "1.png is not an image"),
        (
            replace_masks(3),
            "got no anomalous ones: --anomaly is 14, --ignore is nothing, and the other values are 3;",
        ),
        (replace_masks(14), "truth: expected anomalous and normal pixels in the masks, got no normal ones"),
    ],
)
def test_bad_files(
    spoil: Callable[[MapSet], object], message: str, maps: MapSet, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(maps)
    assert message in scored(capsys, *maps.folders, code=EXIT_DATA)


def test_nothing_is_unpickled(maps: MapSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path / 'run'}",)

    np.save(maps.maps / f"{FIRST}.npy", np.array([Touch()], dtype=object), allow_pickle=True)
    assert "expected a .npy array" in scored(capsys, *maps.folders, code=EXIT_DATA)
    assert not (tmp_path / "run").exists()


def test_missing_and_empty_directories(
    maps: MapSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "missing: expected a directory, No such file" in scored(
        capsys, str(tmp_path / "missing"), str(maps.maps), code=EXIT_DATA
    )
    (tmp_path / "empty").mkdir()
    assert "empty: expected masks (.png, .tif, .tiff, .bmp), got none" in scored(
        capsys, str(tmp_path / "empty"), str(maps.maps), code=EXIT_DATA
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--anomaly", "x"), "--anomaly must be whole numbers from 0 to 65535 separated by commas, got 'x'"),
        (("--ignore", "65536"), "--ignore must be whole numbers"),
        (("--anomaly", ""), "--anomaly must name one value or more"),
        (("--ignore", "14"), "none of which is in --ignore"),
        (("--records", "."), "--records must be a file"),
    ],
)
def test_bad_options(
    arguments: tuple[str, str], message: str, maps: MapSet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in scored(capsys, *maps.folders, *arguments, code=EXIT_USAGE)


def test_real_masks(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Panels of StreetHazards, with ids from 0 and mixed colours at borders; the scores are made up."""
    masks = shared_data / "streethazards_panels" / "masks"
    generator = np.random.default_rng(0)
    for path in sorted(masks.glob("*.png")):
        with Image.open(path) as image:
            mask_HW = np.asarray(image)
        scores_HW = generator.normal(2.0 * (mask_HW == 13), 1)
        write_map(tmp_path / f"{path.stem}.npy", scores_HW.astype(np.float16))
    found = as_json(capsys, str(masks), str(tmp_path), "--anomaly", "13", "--ignore", "255")
    assert (found["protocol"]["images"], found["protocol"]["mixed_images"]) == (12, 8)
    # Two normal distributions two standard deviations apart.
    assert found["metrics"][AUROC] == pytest.approx(0.9214, abs=0.01)
    assert found["metrics"][PER_IMAGE_AUROC] == pytest.approx(0.9214, abs=0.02)

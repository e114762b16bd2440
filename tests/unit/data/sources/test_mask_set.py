"""Sets with masks: every layout, every kind of mask file, and what is refused."""

from __future__ import annotations

import pickle
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raydet.config import DataConfig, MasksSource
from raydet.data.build import (
    adopt_source,
    colours_of,
    detect_source,
    left_out_of,
    levels_of,
    notes_on,
    open_source,
)
from raydet.data.convert import convert
from raydet.data.shards.manifest import Manifest
from raydet.data.sources.base import Source
from raydet.errors import ConfigError, DataError
from raydet.recipes.demo import demo
from raydet.structures import IGNORE, mask_of
from tests.image_bytes import chunk, exif, png_16

CLASSES = """
classes:
  - {id: 1, name: road, parent: flat, color: [128, 64, 128]}
  - {id: 2, name: walk, parent: flat, color: [244, 35, 232]}
  - {id: 9, name: car, parent: vehicle, color: [0, 0, 142]}
  - {id: 0, name: void, ignore: true, color: [0, 0, 0]}
"""
VALUES = np.array([[0, 1, 2, 9], [1, 1, 2, 2], [9, 9, 9, 0]], np.uint8)
LABELS = torch.tensor([[IGNORE, 0, 1, 2], [0, 0, 1, 1], [2, 2, 2, IGNORE]], dtype=torch.uint8)
COLOURS = np.zeros((10, 3), np.uint8)
COLOURS[[1, 2, 9]] = [[128, 64, 128], [244, 35, 232], [0, 0, 142]]


def pixels(channels: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, (*VALUES.shape, channels)).astype(np.uint8)
    return values if channels > 1 else values[..., 0]


def save(array: np.ndarray, path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def plain(root: Path, names: tuple[str, ...] = ("a", "b")) -> Path:
    """A set of the plainest layout."""
    for seed, name in enumerate(names):
        save(pixels(3, seed), root / "images" / f"{name}.png")
        save(VALUES, root / "masks" / f"{name}.png")
    (root / "classes.yaml").write_text(CLASSES)
    return root


def data_of(spec: str) -> DataConfig:
    return adopt_source(demo(), detect_source(spec), any_task=True).data


def opened(spec: str) -> Source:
    return open_source(data_of(spec))


def ids(source: Source, index: int = 0) -> torch.Tensor:
    return mask_of(source.targets(index)[0], "").ids_HW


def test_the_plain_layout(tmp_path: Path) -> None:
    source = pickle.loads(pickle.dumps(opened(str(plain(tmp_path)))))
    assert source.classes == ("road", "walk", "car")
    assert source.modalities == ("rgb",)
    assert list(source.image_ids) == ["a", "b"]
    assert set(source.group_ids) == {""}
    sample = source.read(1)
    assert torch.equal(sample.modalities["rgb"], torch.from_numpy(pixels(3, 1).transpose(2, 0, 1).copy()))
    assert torch.equal(mask_of(sample.target, "").ids_HW, LABELS)
    assert [level.groups for level in levels_of(source)] == [("flat", "vehicle")]
    assert colours_of(source)[2] == (0, 0, 142)


def cityscapes(root: Path) -> None:
    for name in ("train/aachen/aachen_000000_000019", "val/ulm/ulm_000003_000019"):
        save(pixels(3), root / "leftImg8bit" / f"{name}_leftImg8bit.png")
        save(VALUES, root / "gtFine" / f"{name}_gtFine_labelIds.png")
        save(pixels(3), root / "gtFine" / f"{name}_gtFine_color.png")


def camvid(root: Path) -> None:
    for split, name in (("train", "0001TP_1"), ("val", "Seq05VD_1")):
        save(pixels(3), root / split / f"{name}.png")
        save(VALUES, root / f"{split}annot" / f"{name}.png")


def ade20k(root: Path) -> None:
    for split in ("training", "validation"):
        save(pixels(3), root / "images" / split / f"ADE_{split}_1.jpg")
        save(VALUES, root / "annotations" / split / f"ADE_{split}_1.png")


def pst900(root: Path) -> None:
    for split in ("train", "test"):
        save(pixels(3), root / split / "rgb" / "1.png")
        save(pixels(1), root / split / "thermal" / "1.png")
        save(VALUES, root / split / "labels" / "1.png")


def mfnet(root: Path) -> None:
    for name in ("00001D", "00002N"):
        save(pixels(4), root / "images" / f"{name}.png")
        save(VALUES, root / "labels" / f"{name}.png")


LAYOUTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...], list[str], list[str]]] = {
    "cityscapes": (
        cityscapes,
        ("rgb",),
        ["train/aachen_000000_000019", "val/ulm_000003_000019"],
        ["aachen_000000", "ulm_000003"],
    ),
    "camvid": (camvid, ("rgb",), ["train/0001TP_1", "val/Seq05VD_1"], ["", ""]),
    "ade20k": (
        ade20k,
        ("rgb",),
        ["training/ADE_training_1", "validation/ADE_validation_1"],
        ["", ""],
    ),
    "pst900": (pst900, ("rgb", "thermal"), ["train/1", "test/1"], ["", ""]),
    "mfnet": (mfnet, ("rgb", "thermal"), ["00001D", "00002N"], ["", ""]),
}
"""By name: its writer, modalities, image ids and groups."""


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("prefix", ["masks:", ""])
def test_a_layout_is_recognised(name: str, prefix: str, tmp_path: Path) -> None:
    write, modalities, image_ids, group_ids = LAYOUTS[name]
    write(tmp_path)
    (tmp_path / "classes.yaml").write_text(CLASSES)
    source = opened(f"{prefix}{tmp_path}")
    assert source.modalities == modalities
    assert list(source.image_ids) == image_ids
    assert list(source.group_ids) == group_ids
    for index in range(len(source)):
        assert torch.equal(ids(source, index), LABELS)
        assert source.read(index).modalities.keys() == set(modalities)


def test_one_part_of_a_split_and_groups_by_name(tmp_path: Path) -> None:
    camvid(tmp_path)
    (tmp_path / "classes.yaml").write_text(CLASSES)
    source = opened(f'masks:{tmp_path}?splits=["val"]&group_prefix=5')
    assert (list(source.image_ids), list(source.group_ids)) == (["val/Seq05VD_1"], ["Seq05"])
    with pytest.raises(ConfigError, match=r"splits: expected some of train, val, .* got 'test'"):
        opened(f'masks:{tmp_path}?splits=["test"]')


def test_sequences_are_directories(tmp_path: Path) -> None:
    plain(tmp_path, ("day/seq1/a", "day/seq2/b"))
    assert list(opened(str(tmp_path)).group_ids) == ["day/seq1", "day/seq2"]


def test_four_channels_are_rgb_and_thermal(tmp_path: Path) -> None:
    mfnet(tmp_path)
    (tmp_path / "classes.yaml").write_text(CLASSES)
    data = data_of(str(tmp_path))
    assert (data.source.rgbt, data.missing) == ("images", ("event",))
    four = torch.from_numpy(pixels(4).transpose(2, 0, 1).copy())
    found = open_source(data).read(0).modalities
    assert torch.equal(found["rgb"], four[:3])
    assert torch.equal(found["thermal"], four[3:])
    only = open_source(data.model_copy(update={"missing": ("rgb", "event")})).read(0).modalities
    assert only.keys() == {"thermal"}
    assert torch.equal(only["thermal"], four[3:])


def test_a_constant_transparency_is_no_thermal_image(tmp_path: Path) -> None:
    plain(tmp_path)
    opaque = pixels(4)
    opaque[..., 3] = 255
    for name in ("a", "b"):
        save(opaque, tmp_path / "images" / f"{name}.png")
    source = opened(str(tmp_path))
    assert source.modalities == ("rgb",)
    save(pixels(3), tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match=r"a\.png: expected 4 channels .*got 3"):
        opened(f"masks:{tmp_path}?rgbt=images")


def test_suffixes_pair_names_that_differ(tmp_path: Path) -> None:
    save(pixels(3), tmp_path / "all" / "a_rgb.png")
    save(pixels(1), tmp_path / "all" / "a_th.png")
    save(VALUES, tmp_path / "all" / "a_mask.png")
    (tmp_path / "classes.yaml").write_text(CLASSES)
    source = opened(
        f"masks:{tmp_path}?rgb=all&thermal=all&masks=all&rgb_suffix=_rgb&thermal_suffix=_th&mask_suffix=_mask"
    )
    assert (list(source.image_ids), source.modalities) == (["a"], ("rgb", "thermal"))


def palette(values: np.ndarray) -> Image.Image:
    """Indices, whose colours are those of other ids."""
    found = Image.frombytes("P", values.shape[::-1], values.tobytes())
    found.putpalette([255 - number // 3 for number in range(768)])
    return found


def grey_4_bits(values: np.ndarray) -> bytes:
    """Pillow reads these as 0, 17, 34, ..."""
    rows = b"".join(b"\0" + bytes((row[0::2] << 4 | row[1::2]).tolist()) for row in values)
    height, width = values.shape
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 4, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


MASK_FILES: dict[str, Callable[[Path], object]] = {
    "grey of 8 bits": lambda path: save(VALUES, path),
    "palette": lambda path: palette(VALUES).save(path),
    "palette of 4 bits": lambda path: palette(VALUES).save(path, bits=4),
    "grey of 4 bits": lambda path: path.write_bytes(grey_4_bits(VALUES)),
    "grey of 16 bits": lambda path: path.write_bytes(png_16(VALUES.astype(np.uint16))),
    "TIFF of 16 bits": lambda path: save(VALUES.astype(np.uint16), path, format="TIFF"),
    "BMP": lambda path: save(VALUES, path, format="BMP"),
    "colours": lambda path: save(COLOURS[VALUES], path),
    "opaque colours": lambda path: save(
        np.dstack([COLOURS[VALUES], np.full(VALUES.shape, 255, np.uint8)]), path
    ),
}


@pytest.mark.parametrize("kind", MASK_FILES)
def test_each_kind_of_mask_has_the_same_labels_in_shards_too(kind: str, tmp_path: Path) -> None:
    plain(tmp_path / "set")
    for name in ("a", "b"):
        MASK_FILES[kind](tmp_path / "set" / "masks" / f"{name}.png")
    data = data_of(str(tmp_path / "set"))
    assert torch.equal(ids(open_source(data)), LABELS)
    manifest = convert(data, str(tmp_path / "shards"))
    assert manifest.target == "masks"
    again = opened(str(tmp_path / "shards"))
    assert torch.equal(ids(again, 1), LABELS)
    assert torch.equal(again.read(1).modalities["rgb"], open_source(data).read(1).modalities["rgb"])
    assert levels_of(again) == levels_of(open_source(data)) != ()
    assert colours_of(again) == colours_of(open_source(data))


def test_values_of_16_bits(tmp_path: Path) -> None:
    plain(tmp_path)
    large = VALUES.astype(np.uint16) * 3640
    for name in ("a", "b"):
        (tmp_path / "masks" / f"{name}.png").write_bytes(png_16(large))
    text = CLASSES
    for value in (9, 2, 1):
        text = text.replace(f"id: {value},", f"id: {value * 3640},")
    (tmp_path / "classes.yaml").write_text(text)
    assert torch.equal(ids(opened(str(tmp_path))), LABELS)


def test_manifests_know_another_tree(tmp_path: Path) -> None:
    data = data_of(str(plain(tmp_path / "set")))
    manifest = convert(data, str(tmp_path / "shards"))
    assert Manifest.parsed(manifest.to_json().encode(), where="") == manifest
    assert convert(data, str(tmp_path / "shards")) == manifest
    (tmp_path / "set" / "classes.yaml").write_text(CLASSES.replace("vehicle", "machine"))
    with pytest.raises(ConfigError, match=r"other settings \(class_tree differ\)"):
        convert(data, str(tmp_path / "shards"))


def read_all(spec: str) -> None:
    source = opened(spec)
    for index in range(len(source)):
        source.read(index)


def one_line_error(spec: str) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        read_all(spec)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_value_that_has_no_class(tmp_path: Path) -> None:
    plain(tmp_path)
    values = VALUES.copy()
    values[0, :3] = 14
    save(values, tmp_path / "masks" / "b.png")
    text = one_line_error(str(tmp_path))
    assert text.startswith(f"{tmp_path}/masks/b.png: expected values of {tmp_path}/classes.yaml")
    assert "got value 14 (3 pixels); add them there (with ignore: true" in text


def test_a_colour_that_has_no_class(tmp_path: Path) -> None:
    plain(tmp_path)
    colours = COLOURS[VALUES]
    colours[0, :2] = (1, 2, 3)
    colours[0, 2] = (255, 255, 255)
    save(colours, tmp_path / "masks" / "a.png")
    text = one_line_error(str(tmp_path))
    assert "masks/a.png" in text
    assert "got values [1, 2, 3] (2 pixels) and [255, 255, 255] (1 pixel)" in text


def test_colours_without_a_table(tmp_path: Path) -> None:
    plain(tmp_path)
    save(COLOURS[VALUES], tmp_path / "masks" / "a.png")
    (tmp_path / "classes.yaml").write_text("classes: [{id: [0, 1, 2, 9], name: all}]")
    text = one_line_error(str(tmp_path))
    assert "masks/a.png: expected a mask of one channel, got colours, and" in text
    assert "give every class its color" in text


def test_another_size(tmp_path: Path) -> None:
    plain(tmp_path)
    save(VALUES.T.copy(), tmp_path / "masks" / "a.png")
    text = one_line_error(str(tmp_path))
    assert "image a: expected a mask of the image's size (width x height) 4 x 3, got 3 x 4 in" in text


def test_a_mask_that_is_missing(tmp_path: Path) -> None:
    plain(tmp_path)
    (tmp_path / "masks" / "b.png").unlink()
    text = one_line_error(str(tmp_path))
    assert "expected one file of each kind per image, got 2 rgb, 1 mask: 1 without mask (b)" in text
    source = open_source(data_of(str(plain(tmp_path))), on_bad="skip")
    assert left_out_of(source) == []
    (tmp_path / "masks" / "b.png").unlink()
    data = DataConfig(
        source=MasksSource(root=str(tmp_path), rgb="images"),
        classes=("road", "walk", "car"),
        canvas_hw=(32, 32),
    )
    source = open_source(data, on_bad="skip")
    assert (len(source), [item.name for item in left_out_of(source)]) == (1, ["b"])


def test_without_classes_the_values_are_told(tmp_path: Path) -> None:
    plain(tmp_path)
    (tmp_path / "classes.yaml").unlink()
    text = one_line_error(str(tmp_path))
    assert f"{tmp_path}/classes.yaml: expected a file that names the values of the masks" in text
    assert "2 of the masks have values 0 (4 pixels), 1 (6 pixels), 2 (6 pixels) and 9 (8 pixels)" in text
    assert "classes: [{id: 0, name: ...}, {id: 1, name: ...}, ...]" in text
    assert "camvid, cityscapes" in text


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda path: save(VALUES, path, format="JPEG"),
            r"expected a mask as PNG, TIFF, BMP, got JPEG, which changes",
        ),
        (
            lambda path: path.write_bytes(png_16(np.zeros((*VALUES.shape, 3), np.uint16))),
            r"expected a mask of one channel of at most 16 bits, or of colours of 8, got 3 channels of 16 bits",
        ),
        (
            lambda path: save(VALUES.astype(np.float32), path, format="TIFF"),
            r"expected a mask of one channel of at most 16 bits.* got 1 channels of 32 bits",
        ),
        (lambda path: path.write_bytes(b"PNG"), r"is not an image"),
        (
            lambda path: save(np.dstack([COLOURS[VALUES], VALUES]), path),
            r"expected a mask of colours without transparency",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:50]), r"truncated or damaged|not an image"),
    ],
)
def test_files_that_are_no_masks(write: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    plain(tmp_path)
    write(tmp_path / "masks" / "a.png")
    text = one_line_error(str(tmp_path))
    assert re.search(message, text), text
    assert "a.png" in text


def test_a_turned_image_and_its_mask(tmp_path: Path) -> None:
    """As boxes do, masks belong to the upright image; a mask is turned only by its own metadata."""
    plain(tmp_path)
    lying = Image.fromarray(pixels(3).transpose(1, 0, 2)[::-1].copy())
    lying.save(tmp_path / "images" / "a.png", exif=exif(6))
    source = opened(str(tmp_path))
    assert torch.equal(ids(source), LABELS)
    assert source.read(0).source_hw == VALUES.shape
    assert "1 images (the first is a) are turned" in notes_on(source)[0]
    Image.fromarray(VALUES.T[::-1].copy()).save(tmp_path / "masks" / "a.png", exif=exif(6))
    source = opened(str(tmp_path))
    assert torch.equal(ids(source), LABELS)
    assert notes_on(source) == ()
    Image.fromarray(VALUES.T[::-1].copy()).save(tmp_path / "masks" / "a.png")
    text = one_line_error(str(tmp_path))
    assert (
        "size (width x height) 4 x 3 (turned upright as its metadata say, which the mask must be, too)"
        in text
    )
    assert "got 3 x 4" in text


def test_an_image_upside_down_is_told(tmp_path: Path) -> None:
    plain(tmp_path)
    Image.fromarray(pixels(3)).save(tmp_path / "images" / "b.png", exif=exif(3))
    assert "1 images (the first is b) are turned or mirrored" in notes_on(opened(str(tmp_path)))[0]


def test_links_out_of_the_set_are_refused(tmp_path: Path) -> None:
    plain(tmp_path / "set")
    save(VALUES, tmp_path / "elsewhere.png")
    (tmp_path / "set" / "masks" / "a.png").unlink()
    (tmp_path / "set" / "masks" / "a.png").symlink_to(tmp_path / "elsewhere.png")
    assert "links are not followed" in one_line_error(str(tmp_path / "set"))
    with pytest.raises(DataError, match="expected a path below"):
        opened(f"masks:{tmp_path / 'set'}?classes=../classes.yaml")


def test_a_file_of_classes_elsewhere(tmp_path: Path) -> None:
    plain(tmp_path / "set")
    (tmp_path / "set" / "classes.yaml").rename(tmp_path / "mine.yaml")
    assert opened(f"masks:{tmp_path / 'set'}?classes={tmp_path / 'mine.yaml'}").classes[0] == "road"


def test_images_without_masks_can_be_predicted(tmp_path: Path) -> None:
    plain(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "masks" / f"{name}.png").unlink()
    (tmp_path / "classes.yaml").unlink()
    config = detect_source(f"masks:{tmp_path}", is_labelled=False)
    known = ("road", "walk", "car")
    data = adopt_source(demo(), config, classes=known, is_labelled=False, any_task=True).data
    source = open_source(data, is_labelled=False)
    assert (source.classes, len(source)) == (known, 2)
    assert set(ids(source).flatten().tolist()) == {IGNORE}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "name a directory of images: rgb, thermal, event or rgbt"),
        ({"rgb": "a", "rgbt": "b"}, "rgbt holds the images of rgb and thermal"),
        ({"rgb": "{split}/a"}, r"expected \{split\} once in every directory or in none"),
        ({"rgb": "{split}/{split}", "masks": "{split}"}, r"expected \{split\} once"),
    ],
)
def test_settings_that_contradict_one_another(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MasksSource(root="/data", **settings)


def test_an_unknown_layout(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"masks needs directories .* found none of them; name them"):
        detect_source(f"masks:{tmp_path}")

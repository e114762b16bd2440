"""Sets that are damaged or made to do harm, in every format: one line that names the file, or the image is left out.

Three images each, the middle one is spoiled.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from raydet.config import DataConfig, KaistSource
from raydet.data.build import adopt_source, detect_source, left_out_of, open_source
from raydet.data.sources.bad_samples import OnBad
from raydet.data.sources.base import Source
from raydet.data.sources.boxes import MAX_BOXES
from raydet.data.synthetic import SyntheticSet
from raydet.errors import ConfigError, DataError
from raydet.files.text import MAX_TEXT_BYTES
from raydet.recipes.demo import demo
from tests.contract.formats import FILE_FORMATS, Format, kaist_id

CLASSES = ("circle", "square", "triangle")
MIDDLE = "sequence_0001_0000"
FRAME = kaist_id(MIDDLE).replace("_", "/")
VIDEO, STEM = FRAME.rsplit("/", 1)

THERMAL = {
    "npy_yolo": f"images/{MIDDLE}.npy",
    "coco": f"thermal/{MIDDLE}.png",
    "voc": f"infrared/train/{MIDDLE}.jpg",
    "yolo": f"ir/{MIDDLE}.png",
    "flir": f"JPEGImages/{MIDDLE}_PreviewData.jpeg",
    "kaist": f"images/{VIDEO}/lwir/{STEM}.jpg",
}
"""The image to spoil."""
ANNOTATION = {
    "npy_yolo": f"labels/{MIDDLE}.txt",
    "coco": "annotations.json",
    "voc": f"Annotations/{MIDDLE}.xml",
    "yolo": f"labels_fusion/{MIDDLE}.txt",
    "flir": f"Annotations/{MIDDLE}_PreviewData.xml",
    "kaist": f"annotations/{VIDEO}/{STEM}.xml",
}
"""What holds its boxes."""

each_format = pytest.mark.parametrize("format_", FILE_FORMATS, ids=lambda f: f.name)
each_image_format = pytest.mark.parametrize(
    "format_", [f for f in FILE_FORMATS if f.name != "npy_yolo"], ids=lambda f: f.name
)
each_text_format = pytest.mark.parametrize(
    "format_", [f for f in FILE_FORMATS if f.name != "coco"], ids=lambda f: f.name
)


def written(format_: Format, root: Path) -> Path:
    missing = () if format_.has_event else ("event",)
    source = SyntheticSet(
        num_sequences=3,
        frames_per_sequence=1,
        size_hw=(32, 32),
        classes=CLASSES,
        seed=0,
        missing=missing,
    )
    format_.write(source, root)
    if format_.name == "kaist":  # the middle frame of three has a txt
        (root / ANNOTATION["kaist"]).with_suffix(".txt").unlink()
        (root / ANNOTATION["kaist"]).write_text("<annotation/>")
    return root


def opened(format_: Format, root: Path, on_bad: OnBad = "error") -> Source:
    config = detect_source(f"{format_.name}:{root}" + ("?labels=fused" if format_.name == "yolo" else ""))
    missing = () if format_.has_event and format_.name != "voc" else ("event",)
    data = DataConfig(source=config, classes=CLASSES, missing=missing, canvas_hw=(32, 32))
    return open_source(data, on_bad=on_bad)


def is_one_line(text: str) -> bool:
    """Also one that a terminal can show."""
    return len(text.splitlines()) == 1 and text.encode().find(b"\x1b") < 0


def check_refused(format_: Format, root: Path, *names: str) -> str:
    """One line that has all the names; and the other two images survive."""
    with pytest.raises(DataError) as caught:
        opened(format_, root)
    line = str(caught.value)
    assert is_one_line(line)
    assert len(line) < 1_200
    for name in names:
        assert name in line
    source = opened(format_, root, "skip")
    good = [format_.image_id(name) for name in ("sequence_0000_0000", "sequence_0002_0000")]
    assert list(source.image_ids) == good
    (left,) = left_out_of(source)
    assert left.name in (MIDDLE, kaist_id(MIDDLE))
    assert is_one_line(left.reason)
    assert [source.read(index).image_id for index in range(2)] == list(source.image_ids)
    return line


def huge_png() -> bytes:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def link_outside(path: Path) -> None:
    outside = path.parents[5] / f"outside{path.suffix}"
    path.rename(outside)
    path.symlink_to(outside)


SPOILT_IMAGES: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda path: path.write_bytes(b""),
    "cut in its header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "a text": lambda path: path.write_text("I am no image"),
    "60,000 x 60,000": lambda path: path.write_bytes(huge_png()),
    "another size": lambda path: Image.new("L", (32, 31)).save(path),
    "a link out of the root": link_outside,
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "16 bits": lambda path: Image.fromarray(np.zeros((32, 32), np.uint16)).save(path, format="PNG"),
}


@each_image_format
@pytest.mark.parametrize("case", SPOILT_IMAGES)
def test_a_spoilt_image(format_: Format, case: str, tmp_path: Path) -> None:
    root = written(format_, tmp_path / "some" / "where" / "deep" / "below" / "set")
    SPOILT_IMAGES[case](root / THERMAL[format_.name])
    check_refused(format_, root, MIDDLE if format_.name != "kaist" else STEM)


@each_format
def test_an_image_that_is_not_there(format_: Format, tmp_path: Path) -> None:
    root = written(format_, tmp_path)
    (root / THERMAL[format_.name]).unlink()
    check_refused(format_, root, kaist_id(MIDDLE) if format_.name == "kaist" else MIDDLE)


@each_format
def test_a_truncated_image_is_found_at_the_latest_on_reading(format_: Format, tmp_path: Path) -> None:
    root = written(format_, tmp_path)
    path = root / THERMAL[format_.name]
    path.write_bytes(path.read_bytes()[:-30])
    if format_.name == "npy_yolo":
        check_refused(format_, root, path.name, "truncated")
        return
    with pytest.raises(DataError, match=rf"{path.name}: the image is truncated or damaged"):
        opened(format_, root).read(1)


def spoil_boxes(format_: Format, root: Path, name: str, boxes: list[tuple[str, ...]]) -> None:
    """Give the middle image these boxes, four numbers each, in the format's own meaning."""
    path = root / ANNOTATION[format_.name]
    match format_.name:
        case "npy_yolo" | "yolo":
            path.write_text("".join(f"{name} {' '.join(box)}\n" for box in boxes))
        case "coco":
            tree = json.loads(path.read_text())
            bad = [
                f'{{"id": "x{i}", "image_id": "{MIDDLE}", "category_id": {name}, "bbox": [{", ".join(box)}]}}'
                for i, box in enumerate(boxes)
            ]
            tree["annotations"] = ["HERE"]
            path.write_text(json.dumps(tree).replace('"HERE"', ", ".join(bad)))
        case "kaist":
            path.unlink()
            path.with_suffix(".txt").write_text("".join(f"{name} {' '.join(box)}\n" for box in boxes))
        case _:
            tags = ("xmin", "ymin", "xmax", "ymax")
            objects = "".join(
                f"<object><name>{name}</name><bndbox>"
                + "".join(f"<{tag}>{number}</{tag}>" for tag, number in zip(tags, box, strict=True))
                + "</bndbox></object>"
                for box in boxes
            )
            path.write_text(f"<annotation>{objects}</annotation>")


def class_of(format_: Format, *, known: bool = True) -> str:
    if format_.name in ("npy_yolo", "yolo"):
        return "0" if known else "3"
    if format_.name == "coco":
        return "2" if known else "[2]"
    return "circle" if known else "dragon"


BAD_BOXES = {
    "not a number": ("1", "1", "NaN", "1"),
    "beyond float32": ("1", "1", "1e308", "4"),
    "beyond float64": ("-1e308", "1", "1e308", "4"),
    "infinite": ("1", "1", "1e999", "4"),
    "empty": ("1", "1", "0", "4"),
    "outside": ("1", "1", "500", "4"),
    "a very large integer": ("1", "1", "9" * 400, "4"),
}


@each_format
@pytest.mark.parametrize("case", BAD_BOXES)
def test_a_bad_box(format_: Format, case: str, tmp_path: Path) -> None:
    root = written(format_, tmp_path)
    spoil_boxes(format_, root, class_of(format_), [BAD_BOXES[case]])
    named = {"coco": "annotation x0", "voc": "object 1", "flir": "object 1"}.get(format_.name, "row 1")
    check_refused(format_, root, Path(ANNOTATION[format_.name]).stem, named)


@each_format
def test_an_unknown_class(format_: Format, tmp_path: Path) -> None:
    root = written(format_, tmp_path)
    spoil_boxes(format_, root, class_of(format_, known=False), [("1", "1", "4", "4")])
    check_refused(format_, root, Path(ANNOTATION[format_.name]).stem)


@each_format
def test_more_boxes_than_any_image_has(format_: Format, tmp_path: Path) -> None:
    root = written(format_, tmp_path)
    spoil_boxes(format_, root, class_of(format_), [("1", "1", "4", "4")] * (MAX_BOXES + 1))
    check_refused(format_, root, f"at most {MAX_BOXES} boxes", Path(ANNOTATION[format_.name]).stem)


def test_a_million_rows(tmp_path: Path) -> None:
    root = written(FILE_FORMATS[0], tmp_path)
    spoil_boxes(FILE_FORMATS[0], root, "0", [("1", "1", "4", "4")] * 10**6)
    check_refused(FILE_FORMATS[0], root, f"{MIDDLE}.txt", "at most")


@pytest.mark.slow
def test_a_million_annotations(tmp_path: Path) -> None:
    root = written(FILE_FORMATS[1], tmp_path)
    spoil_boxes(FILE_FORMATS[1], root, "2", [("1", "1", "4", "4")] * 10**6)
    check_refused(FILE_FORMATS[1], root, MIDDLE, f"at most {MAX_BOXES} boxes")


TEXTS: dict[str, bytes] = {
    "binary": bytes(range(256)),
    "latin-1": "<annotation>é</annotation>".encode("latin-1"),
    "UTF-16 without its mark": "0 0.5 0.5 0.1 0.1".encode("utf-16-le"),
    "too long": b"0" * (MAX_TEXT_BYTES + 1),
}


@each_text_format
@pytest.mark.parametrize("case", TEXTS)
def test_an_annotation_that_is_no_text(format_: Format, case: str, tmp_path: Path) -> None:
    root = written(format_, tmp_path)
    (root / ANNOTATION[format_.name]).write_bytes(TEXTS[case])
    check_refused(format_, root, Path(ANNOTATION[format_.name]).name)


@each_text_format
def test_class_names_from_outside_the_root(format_: Format, tmp_path: Path) -> None:
    root = written(format_, tmp_path / "set")
    (tmp_path / "secret.txt").write_text("\n".join(CLASSES))
    (root / "classes.txt").unlink(missing_ok=True)
    (root / "classes.txt").symlink_to(tmp_path / "secret.txt")
    config = detect_source(f"{format_.name}:{root}" + ("?labels=fused" if format_.name == "yolo" else ""))
    for on_bad in ("error", "skip"):
        with pytest.raises(DataError, match=r"classes\.txt is a link to .*secret\.txt") as caught:
            adopt_source(demo(), config, on_bad=on_bad)
        assert is_one_line(str(caught.value))


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
XMLS = {
    "a billion laughs": f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]><annotation>&l11;</annotation>',
    "another file": '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
    "a document type": '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd"><annotation/>',
    "deep": "<a>" * 100_000,
    "broad": "<annotation>" + "<a/>" * 151_000 + "</annotation>",
    "unclosed": "<annotation>",
    "an unknown entity": "<annotation>&nbsp;</annotation>",
    "an unknown encoding": '<?xml version="1.0" encoding="klingon"?><annotation/>',
    "an encoding of several bytes": '<?xml version="1.0" encoding="shift_jis"?><annotation/>',
    "no name": "<annotation><object><bndbox/></object></annotation>",
    "a name of two lines": "<annotation><object><name>a\nb</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax>"
    "<ymax>4</ymax></bndbox></object></annotation>",
    "no box": "<annotation><object><name>circle</name></object></annotation>",
    "half a box": "<annotation><object><name>circle</name><bndbox><xmin>1</xmin></bndbox></object></annotation>",
    "another size": "<annotation><size><width>31</width><height>32</height></size></annotation>",
}


@pytest.mark.parametrize("case", XMLS)
def test_xml_that_does_harm(case: str, tmp_path: Path) -> None:
    format_ = next(f for f in FILE_FORMATS if f.name == "voc")
    root = written(format_, tmp_path)
    (root / ANNOTATION["voc"]).write_text(XMLS[case])
    check_refused(format_, root, MIDDLE)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_xml_that_names_its_encoding_is_read(encoding: str, tmp_path: Path) -> None:
    format_ = next(f for f in FILE_FORMATS if f.name == "voc")
    root = written(format_, tmp_path)
    text = f'<?xml version="1.0" encoding="{encoding}"?><annotation><folder>é</folder></annotation>'
    (root / ANNOTATION["voc"]).write_bytes(text.encode(encoding))
    assert len(opened(format_, root).targets(1)[0].labels) == 0


class Explosive:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def npy_header(text: str) -> bytes:
    content = text.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content


def zipped_zeros(path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, a=np.zeros((4_000, 4_000), np.uint8))


NPYS: dict[str, Callable[[Path], Any]] = {
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Explosive(path.parents[1] / "boom"))),
    "an array of objects": lambda path: np.save(
        path, np.array([[[Explosive(path.parents[1] / "boom")] * 5]], dtype=object), allow_pickle=True
    ),
    "a zip": zipped_zeros,
    "60,000 x 60,000": lambda path: path.write_bytes(
        npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (60000, 60000, 5)}")
    ),
    "2^62 rows": lambda path: path.write_bytes(
        npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (4611686018427387904, 1, 5)}")
    ),
    "less than nothing": lambda path: path.write_bytes(
        npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-32, -32, 5)}")
    ),
    "a deep header": lambda path: path.write_bytes(npy_header("(" * 9_000)),
    "code in its header": lambda path: path.write_bytes(npy_header("__import__('os').mkdir('boom')")),
    "fields": lambda path: np.save(path, np.zeros((32, 32, 5), dtype=[("a", "u1")])),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link out of the root": link_outside,
}


@pytest.mark.parametrize("case", NPYS)
def test_arrays_that_do_harm(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = written(FILE_FORMATS[0], tmp_path / "some" / "where" / "deep" / "below" / "set")
    monkeypatch.chdir(root)
    NPYS[case](root / THERMAL["npy_yolo"])
    check_refused(FILE_FORMATS[0], root, f"{MIDDLE}.npy")
    assert not (root / "boom").exists(), "code was run"


@pytest.mark.parametrize("value", [1e308, -1e308, np.inf])
def test_values_beyond_float32(value: float, tmp_path: Path) -> None:
    root = written(FILE_FORMATS[0], tmp_path)
    for path in (root / "images").iterdir():
        np.save(path, np.full((32, 32, 5), value if path.stem == MIDDLE else 1.0))
    with pytest.raises(DataError, match=rf"{MIDDLE}\.npy: expected values in 0\.\.255"):
        opened(FILE_FORMATS[0], root).read(1)


PATHS = [
    "../../secret.png",
    "/etc/passwd",
    "thermal/../../a.png",
    "a\0b.png",
    "a\nb.png",
    "\ud800.png",
    ["a"],
    7,
]
"""Of an image, in the json."""
ENTRIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{f"the path {path!r}": lambda e, path=path: e.update(thermal=path) for path in PATHS},  # type: ignore[misc]
    "a width that is none": lambda e: e.update(width=[]),
    "a large width": lambda e: e.update(width=10**400),
    "a group that is none": lambda e: e.update(group_id={}),
    "a group of two lines": lambda e: e.update(group_id="a\nb"),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_entries_of_a_json_that_do_harm(case: str, tmp_path: Path) -> None:
    root = written(FILE_FORMATS[1], tmp_path / "set")
    Image.new("L", (32, 32)).save(tmp_path / "secret.png")
    path = root / "annotations.json"
    tree = json.loads(path.read_text())
    ENTRIES[case](tree["images"][1])
    path.write_text(json.dumps(tree))
    check_refused(FILE_FORMATS[1], root, "annotations.json", MIDDLE)


def test_ids_that_are_there_twice(tmp_path: Path) -> None:
    root = written(FILE_FORMATS[1], tmp_path)
    path = root / "annotations.json"
    tree = json.loads(path.read_text())
    tree["images"].append(tree["images"][1])
    tree["annotations"].append({"id": "lost", "image_id": "nowhere", "category_id": 2, "bbox": [1, 1, 2, 2]})
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=f"image ids must be unique, got {MIDDLE} twice"):
        opened(FILE_FORMATS[1], root)
    source = opened(FILE_FORMATS[1], root, "skip")
    assert list(source.image_ids) == ["sequence_0000_0000", "sequence_0002_0000"]
    assert [left.name for left in left_out_of(source)][:2] == [MIDDLE, MIDDLE]
    assert left_out_of(source)[2].name.endswith("annotation lost")


@pytest.mark.parametrize(
    "format_", [f for f in FILE_FORMATS if f.name in ("voc", "yolo")], ids=lambda f: f.name
)
def test_names_that_are_there_twice(format_: Format, tmp_path: Path) -> None:
    root = written(format_, tmp_path)
    path = root / THERMAL[format_.name]
    (path.parent / f"{MIDDLE}.tiff").write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=f"expected one file of the name {MIDDLE}, got another"):
        opened(format_, root)
    source = opened(format_, root, "skip")
    assert len(source) == 2
    assert [left.name for left in left_out_of(source)] == [MIDDLE]


BROKEN_TREES: list[Any] = [
    [],
    {"images": 1, "annotations": [], "categories": []},
    {"images": [{}], "annotations": [], "categories": [{"id": 1, "name": "a"}]},
    {"images": [{"id": 1, "rgb": "a.png"}], "annotations": [], "categories": [{"id": [], "name": {}}]},
    {"images": [{"id": 1, "rgb": "a.png"}], "annotations": [], "categories": [{"id": 1, "name": "a\nb"}]},
]


@pytest.mark.parametrize("on_bad", ["error", "skip"])
@pytest.mark.parametrize("tree", BROKEN_TREES, ids=range(len(BROKEN_TREES)))
def test_a_json_that_describes_nothing_stays_an_error(tree: Any, on_bad: OnBad, tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"annotations\.json"):
        opened(FILE_FORMATS[1], tmp_path, on_bad)


@each_format
def test_a_set_of_which_nothing_is_left(format_: Format, tmp_path: Path) -> None:
    root = written(format_, tmp_path)
    for path in sorted((root / THERMAL[format_.name]).parents[0].iterdir()):
        path.write_bytes(b"")
    if format_.name == "kaist":
        for path in sorted(root.glob("images/*/*/lwir/*")):
            path.write_bytes(b"")
    with pytest.raises(DataError, match=r"all 3 were left out, the first because: ") as caught:
        opened(format_, root, "skip")
    assert is_one_line(str(caught.value))


def test_a_list_of_what_is_not_there(tmp_path: Path) -> None:
    format_ = FILE_FORMATS[-1]
    root = written(format_, tmp_path)
    (root / "part.txt").write_text(f"{FRAME}\nset00/V009/I00000\n")
    config = KaistSource(root=str(root), subset="part.txt")
    data = DataConfig(source=config, classes=CLASSES, missing=("event",), canvas_hw=(32, 32))
    with pytest.raises(DataError, match=r"1 without rgb \(set00_V009_I00000\)"):
        open_source(data)
    source = open_source(data, on_bad="skip")
    assert list(source.image_ids) == [kaist_id(MIDDLE)]
    assert [left.name for left in left_out_of(source)] == ["set00_V009_I00000"]
    for name in ("../part.txt", "/etc/passwd", "a\0b"):
        bad = data.model_copy(update={"source": config.model_copy(update={"subset": name})})
        with pytest.raises(DataError, match="subset: expected a"):
            open_source(bad)


def outcome(format_: Format, root: Path, on_bad: OnBad) -> str | None:
    """The error's line; None where all is well."""
    try:
        source = opened(format_, root, on_bad)
        for index in range(len(source)):
            source.read(index)
    except DataError as error:
        return str(error)
    return None


@each_format
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_a_file_is_read_or_refused_on_one_line(
    format_: Format, tmp_path: Path, data: st.DataObject
) -> None:
    if not (tmp_path / "set").exists():
        written(format_, tmp_path / "set")
    which = data.draw(st.sampled_from([ANNOTATION, THERMAL]))
    path = tmp_path / "set" / which[format_.name]
    good = path.read_bytes()
    content = bytearray(good)
    for _ in range(data.draw(st.integers(0, 5))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    path.write_bytes(data.draw(st.sampled_from([bytes(content), data.draw(st.binary(max_size=64))])))
    try:
        for on_bad in ("error", "skip"):
            line = outcome(format_, tmp_path / "set", on_bad)
            assert line is None or is_one_line(line)
    finally:
        path.write_bytes(good)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_a_json_is_read_or_refused_on_one_line(tmp_path: Path, data: st.DataObject) -> None:
    if not (tmp_path / "set").exists():
        written(FILE_FORMATS[1], tmp_path / "set")
        (tmp_path / "good.json").write_text((tmp_path / "set" / "annotations.json").read_text())
    tree = json.loads((tmp_path / "good.json").read_text())
    entries = tree[data.draw(st.sampled_from(["images", "annotations", "categories"]))]
    entry = data.draw(st.sampled_from(entries))
    entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(VALUES)
    (tmp_path / "set" / "annotations.json").write_text(json.dumps(tree))
    for on_bad in ("error", "skip"):
        try:
            line = outcome(FILE_FORMATS[1], tmp_path / "set", on_bad)
        except ConfigError:  # other class names than the config's
            continue
        assert line is None or is_one_line(line)

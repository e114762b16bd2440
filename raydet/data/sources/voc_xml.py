"""Pascal VOC's xml of one image: its size, and objects with a name and a box.

The parser is expat. A document type, and with it every entity, is refused: they make xml dangerous.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from raydet.data.sources.boxes import check_count
from raydet.data.sources.named_boxes import Annotation, NamedBox
from raydet.errors import DataError
from raydet.files.text import one_line, read_bytes

MAX_DEPTH = 16
MAX_ELEMENTS = 150_000
"""Fifteen per object, for as many objects as an image may have."""
EXPECTED = "a Pascal VOC xml"


def read_voc(path: Path, *, first_pixel: int) -> Annotation:
    """The annotation of one image.

    A `bndbox` is xmin, ymin, xmax, ymax, or, as in KAIST, x, y, w, h.

    Args:
        first_pixel: the number of the first row and column; with 1, xmax and ymax are the last pixels of the box.

    Raises:
        DataError: the file is not valid xml, or an object lacks a name or a box.
    """
    root = read_xml(path)
    objects = root.findall("object")
    check_count(len(objects), str(path))
    return Annotation(
        objects=[
            _object(element, first_pixel, f"{path}, object {number}")
            for number, element in enumerate(objects, start=1)
        ],
        declared_hw=_size(root, path),
    )


def read_xml(path: Path) -> ElementTree.Element:
    """The root element of a small xml file.

    Raises:
        DataError: the file is not valid xml, or has a document type.
    """
    builder = ElementTree.TreeBuilder()
    depth = count = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth, count
        depth, count = depth + 1, count + 1
        if depth > MAX_DEPTH or count > MAX_ELEMENTS:
            raise DataError(
                f"{path}: expected {EXPECTED}, got one of more than {MAX_ELEMENTS} elements or {MAX_DEPTH} levels; "
                "write it again"
            )
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    def refuse(*_: object) -> None:
        raise DataError(f"{path}: expected {EXPECTED} without a document type, got a DOCTYPE; delete it")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    content = read_bytes(path, expected=EXPECTED)
    try:
        parser.Parse(content, True)
    except DataError:
        raise
    except (expat.ExpatError, ValueError, LookupError) as error:  # the latter two for unknown encodings
        raise DataError(
            f"{path}: expected {EXPECTED}, got a broken one ({one_line(error)}); write it again"
        ) from error
    return builder.close()


def _size(root: ElementTree.Element, path: Path) -> tuple[int, int] | None:
    """The declared size of the image, if any; many tools write zeros there."""
    size = root.find("size")
    if size is None or size.find("width") is None or size.find("height") is None:
        return None
    where = f"{path}, size"
    height, width = _number(size, "height", where), _number(size, "width", where)
    if not height or not width:
        return None
    return height, width  # type: ignore[return-value]  # fractions differ from the image's size


def _object(element: ElementTree.Element, first_pixel: int, where: str) -> NamedBox:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{where}: expected a name, got none; add it or delete the object")
    box = element.find("bndbox")
    if box is None:
        raise DataError(f"{where}: expected a bndbox, got none; add it or delete the object")
    if box.find("w") is not None:
        x, y, w, h = (_number(box, tag, where) for tag in ("x", "y", "w", "h"))
        return NamedBox(name, (x, y, x + w, y + h), where)
    x1, y1, x2, y2 = (_number(box, tag, where) for tag in ("xmin", "ymin", "xmax", "ymax"))
    return NamedBox(name, (x1 - first_pixel, y1 - first_pixel, x2, y2), where)


def _number(element: ElementTree.Element, tag: str, where: str) -> float:
    text = element.findtext(tag)
    try:
        return float(text or "")
    except ValueError:
        raise DataError(f"{where}: expected a number as {tag}, got {one_line(text)!r}; correct it") from None

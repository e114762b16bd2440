"""The text in front of Prophesee's files: lines that begin with a percent sign, a name and a value each.

The same lines open DAT files and raw files (EVT2, EVT3); which of them a file is follows from its fields.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raydet.errors import DataError
from raydet.files.events.recording import MAX_SIDE
from raydet.files.text import one_line, open_regular

MAX_HEADER_BYTES = 2**16
SENSORS = (
    (re.compile(r"genx320"), (320, 320)),
    (re.compile(r"gen41?_|imx636"), (720, 1280)),
    (re.compile(r"gen31?_"), (480, 640)),
)
"""Height and width by the name of the plugin that recorded, for files of before sizes were written."""


@dataclass(frozen=True, slots=True)
class TextHeader:
    """Fields by name in lower case, and where the data begin."""

    fields: Mapping[str, str]
    start: int

    @property
    def encoding(self) -> str | None:
        """Of raw files: "2.0", "2.1", "3.0"; None for files that name none."""
        if "format" in self.fields:
            name = self.fields["format"].partition(";")[0].upper()
            known = {"EVT2": "2.0", "EVT21": "2.1", "EVT3": "3.0"}
            return known.get(name, name)
        return self.fields.get("evt")

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """Height and width of the sensor, if the header tells them."""
        fields = dict(part.split("=", 1) for part in self.fields.get("format", "").split(";") if "=" in part)
        fields = {**self.fields, **fields}
        if match := re.fullmatch(r"(\d{1,5})x(\d{1,5})", fields.get("geometry", "")):
            return int(match[2]), int(match[1])
        height, width = fields.get("height", ""), fields.get("width", "")
        if re.fullmatch(r"\d{1,5}", height) and re.fullmatch(r"\d{1,5}", width):
            return int(height), int(width)
        plugin = fields.get("plugin_name", "")
        return next((size_hw for pattern, size_hw in SENSORS if pattern.search(plugin)), None)


def read_text_header(path: Path) -> TextHeader:
    """The header of a DAT or raw file.

    Raises:
        DataError: the file cannot be opened, or does not begin with a header.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MAX_HEADER_BYTES)
    except OSError as error:
        raise DataError(f"{path}: expected a recording, {error.strerror or error}; check the path") from error
    fields: dict[str, str] = {}
    start = 0
    while content.startswith(b"%", start):
        end = content.find(b"\n", start)
        if end < 0:
            raise DataError(
                f"{path}: expected a header of lines, its last one does not end; copy the file again"
            )
        name, _, value = content[start + 1 : end].decode("latin-1").strip().partition(" ")
        fields.setdefault(name.lower(), value.strip())
        start = end + 1
        if name == "end":
            break
    if not start:
        raise DataError(
            f"{path}: expected a DAT or raw file of Prophesee, which begins with '% ', got "
            f"{one_line(repr(content[:8]))}; check the file"
        )
    return TextHeader(fields, start)


def checked_size(
    path: Path, found_hw: tuple[int, int] | None, given_hw: tuple[int, int] | None
) -> tuple[int, int]:
    """Height and width of the sensor: what the file says, or else what the caller gives.

    Raises:
        DataError: neither tells, both differ, or the size is impossible.
    """
    if found_hw is None and given_hw is None:
        raise DataError(
            f"{path}: the file does not tell the size of its sensor; give size_hw (height, width)"
        )
    if found_hw is not None and given_hw is not None and found_hw != given_hw:
        raise DataError(
            f"{path}: the file says that its sensor has {found_hw[0]} x {found_hw[1]} pixels (height x width), got "
            f"size_hw {given_hw[0]} x {given_hw[1]}; leave size_hw out"
        )
    height, width = found_hw or given_hw or (0, 0)
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise DataError(
            f"{path}: expected a sensor of 1 to {MAX_SIDE} pixels a side, got {height} x {width}; correct its size"
        )
    return height, width

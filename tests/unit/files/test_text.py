from __future__ import annotations

import os
from pathlib import Path

import pytest

from raydet.errors import DataError
from raydet.files.text import MAX_TEXT_BYTES, one_line, read_json, read_names, read_text


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(DataError, match="it is not a regular file"):
        read_text(tmp_path / "a.txt", expected="rows")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("käse".encode("utf-16"), "an invalid byte at 0"),
        ("käse".encode("latin-1"), "an invalid byte at 1"),
        ("0 1".encode("utf-16-le"), "NUL"),
        (b"0" * (MAX_TEXT_BYTES + 1), "at most"),
    ],
    ids=["utf-16", "latin-1", "utf-16 without its mark", "large"],
)
def test_what_is_no_text(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.txt: expected rows .*{message}"):
        read_text(path, expected="rows")


def test_a_byte_order_mark_is_taken_off(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("0 1".encode("utf-8-sig"))
    assert read_text(tmp_path / "a.txt", expected="rows") == "0 1"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5_000, "{", ""])
def test_a_json_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json: expected a set, got (one nested too deeply|a broken one)"):
        read_json(tmp_path / "a.json", expected="a set")


@pytest.mark.parametrize("text", ["", "a\na\n", "a\nb\x1bc\n"])
def test_names_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(DataError, match=r"a\.txt: expected"):
        read_names(tmp_path / "a.txt", expected="names")


def test_messages_stay_on_one_line_and_short() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert one_line(deep) == "a value that is nested too deeply"
    while deep:  # taken apart by hand: freeing it at once would be deep, too
        deep = deep.pop()  # type: ignore[assignment]
    assert len(one_line("x" * 10_000)) == 120
    assert one_line("a\r\n\x1b[31mb\u2028c") == "a   [31mb c"

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from raydet.data.sources.files import IMAGES, Root, directories_in, files_in
from raydet.errors import DataError
from raydet.files.text import checked_name


def test_a_path_below_the_root(tmp_path: Path) -> None:
    assert Root(tmp_path).inside("a/b.png", "here") == tmp_path / "a" / "b.png"
    assert Root(tmp_path).inside("a/..b", "here") == tmp_path / "a" / "..b"


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("a")
    (tmp_path / "link").symlink_to("real")
    root = Root(tmp_path / "link")
    assert root.inside("a.txt", "here").read_text() == "a"
    assert list(files_in(root, root.path, {".txt"})) == ["a"]


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a", "a/../../b", "a/..", "", None, 7, "a\0b", "a\nb", "\ud800"]
)
def test_no_path_leaves_the_root(tmp_path: Path, name: object) -> None:
    with pytest.raises(DataError, match="here: expected a") as caught:
        Root(tmp_path).inside(name, "here")
    assert str(caught.value).isprintable()


def test_links_must_not_lead_out(tmp_path: Path) -> None:
    root = Root(tmp_path / "set")
    root.path.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.txt").write_text("secret")
    (root.path / "dir").symlink_to(tmp_path / "outside")
    (root.path / "a.txt").symlink_to(tmp_path / "outside" / "a.txt")
    (root.path / "good.txt").write_text("")
    (root.path / "inner.txt").symlink_to("good.txt")
    for name in ("a.txt", "dir/a.txt", "dir"):
        with pytest.raises(DataError, match=r"is a link to .*outside"):
            root.inside(name, "here")
    assert root.inside("inner.txt", "here").read_text() == ""
    found = files_in(root, root.path, {".txt"})
    assert list(found) == ["a", "dir", "good", "inner"]
    assert "is a link to" in str(found["a"])
    assert "dir is a link to" in str(found["dir"])
    assert (found["good"], found["inner"]) == (root.path / "good.txt", root.path / "inner.txt")


def test_files_are_found_by_their_names(tmp_path: Path) -> None:
    for name in ("b.PNG", "deep/er/a.jpg", "c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    root = Root(tmp_path)
    assert files_in(root, tmp_path, IMAGES) == {
        "a": tmp_path / "deep" / "er" / "a.jpg",
        "b": tmp_path / "b.PNG",
    }
    (tmp_path / "a.png").write_bytes(b"")
    twins = files_in(root, tmp_path, IMAGES)
    assert list(twins) == ["a", "b"]
    assert re.search(
        r"a\.png: expected one file of the name a, got another, .*a\.jpg; rename", str(twins["a"])
    )


def test_a_name_that_breaks_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a\nb.png").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(b"")  # latin-1
    found = files_in(Root(tmp_path), tmp_path, IMAGES)
    assert [str(error).split(": ", 1)[1] for error in found.values()] == [
        f"expected a name without control characters, got {name}; rename it"
        for name in (r"'a\nb.png'", r"'caf\udce9.png'")
    ]
    assert checked_name("Straße 7", "here") == "Straße 7"


def test_the_name_of_a_directory_that_breaks_lines_is_refused(tmp_path: Path) -> None:
    for name in (b"a\nb", b"caf\xe9"):  # the latter is latin-1
        place = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"deep", name)))
        place.mkdir(parents=True)
        (place / f"{len(name)}.png").write_bytes(b"")
    found = files_in(Root(tmp_path), tmp_path, IMAGES)
    assert [str(error) for error in found.values()] == [
        f"{tmp_path}/deep: expected a name without control characters, got {name}; rename it"
        for name in (r"'a\nb'", r"'caf\udce9'")
    ]


def test_a_directory_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a directory, No such file"):
        files_in(Root(tmp_path), tmp_path / "nowhere", IMAGES)


def test_what_systems_leave_is_passed_over(tmp_path: Path) -> None:
    """Of a Mac, of a notebook, of a network drive."""
    for name in (
        "a.png",
        "._a.png",
        ".ipynb_checkpoints/a-checkpoint.png",
        "__MACOSX/a.png",
        "@eaDir/a.png/b.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert files_in(Root(tmp_path), tmp_path, IMAGES) == {"a": tmp_path / "a.png"}
    (tmp_path / "seen").mkdir()
    assert directories_in(tmp_path) == ["seen"]


def test_a_backslash_in_a_name_is_the_names_own(tmp_path: Path) -> None:
    (tmp_path / "a\\b.png").write_text("")
    assert Root(tmp_path).inside("a\\b.png", "here") == tmp_path / "a\\b.png"
    assert Root(tmp_path).inside("a\\c.png", "here") == tmp_path / "a" / "c.png"


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A set with a link to a directory, to a file, and back to itself."""
    (tmp_path / "store" / "deep").mkdir(parents=True)
    (tmp_path / "store" / "deep" / "a.png").write_text("")
    (tmp_path / "store" / "b.png").write_text("")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "deep").symlink_to(tmp_path / "store" / "deep")
    (tmp_path / "set" / "b.png").symlink_to(tmp_path / "store" / "b.png")
    (tmp_path / "store" / "deep" / "loop").symlink_to(tmp_path / "set")
    return tmp_path / "set"


def test_links_are_followed_where_that_is_allowed(linked: Path) -> None:
    root = Root(linked, str(linked.parent / "store"))
    assert files_in(root, linked, IMAGES) == {"a": linked / "deep" / "a.png", "b": linked / "b.png"}
    assert root.inside("deep/a.png", "here") == linked / "deep" / "a.png"


def test_links_lead_nowhere_else(linked: Path) -> None:
    root = Root(linked, str(linked.parent / "store" / "deep"))
    found = files_in(root, linked, IMAGES)
    assert found["a"] == linked / "deep" / "a.png"
    assert "is a link to" in str(found["b"])
    for name in ("../store/b.png", str(linked.parent / "store" / "deep" / "a.png")):
        with pytest.raises(DataError, match="expected a path below"):
            root.inside(name, "here")

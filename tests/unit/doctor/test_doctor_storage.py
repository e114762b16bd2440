"""Whether storage can be written from every node and is shared, with nodes that are directories of this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raydet.data.storage import Store
from raydet.doctor.nodes import Answer, NoAnswer, ThisMachine
from raydet.doctor.storage import check_storage


class Elsewhere(ThisMachine):
    """Two nodes; on one of them the storage is another directory with the same name."""

    names = ("near", "far")  # type: ignore[assignment]

    def __init__(self, other: Path) -> None:
        self._other = other

    def ask(
        self, question: Callable[..., Answer], arguments: Mapping[str, tuple[Any, ...]], *, timeout_s: float
    ) -> dict[str, Answer | NoAnswer]:
        stores = {"near": arguments["near"][0], "far": Store(str(self._other))}
        return {name: question(stores[name], *values[1:]) for name, values in arguments.items()}


def test_a_directory(tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    assert check_storage(str(storage), ThisMachine())[0].level == "ok"
    assert not storage.exists()
    storage.mkdir()
    (storage / "mine").write_text("kept")
    assert check_storage(str(storage), ThisMachine())[0].level == "ok"
    assert [path.name for path in storage.iterdir()] == ["mine"]


def test_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (finding,) = check_storage(str(tmp_path / "file" / "runs"), ThisMachine())
    assert finding.level == "failure"
    assert "Not a directory" in finding.text
    (finding,) = check_storage("ftp://host/runs", ThisMachine())
    assert finding.level == "failure"


def test_a_directory_that_is_not_shared(tmp_path: Path) -> None:
    findings = check_storage(str(tmp_path / "runs"), Elsewhere(tmp_path / "other"))
    assert [finding.level for finding in findings if finding.check == "storage"] == ["failure"]
    assert findings[0].text.startswith("far: the file written by this machine is not there")
    assert "that all nodes share" in findings[0].remedy

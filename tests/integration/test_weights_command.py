"""`raydet weights convert`: what is taken, what is listed, and what is refused with one line."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raydet.cli import main


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["weights", "convert", *map(str, arguments)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_what_was_taken_is_listed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shared = torch.arange(6.0).view(2, 3)
    weights = {"fc.weight": shared, "tied": shared, "turned": shared.t(), "half": torch.ones(2).half()}
    content = {
        "epoch": 3,
        "best": torch.tensor(71.0),
        "optimizer": {"lr": 0.1},
        "model": {"state_dict": weights, "arch": "net"},
    }
    torch.save(content, tmp_path / "w.pth")
    assert run(tmp_path / "w.pth") == 0
    output = tmp_path / "w.safetensors"
    found = load_file(output)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path / 'w.pth'}: 4 tensors in its entry model.state_dict"
    assert [line.split() for line in lines[1:5]] == [
        ["fc.weight", "float32", "[2,", "3]"],
        ["tied", "float32", "[2,", "3]"],
        ["turned", "float32", "[3,", "2]"],
        ["half", "float16", "[2]"],
    ]
    assert lines[5] == "left out: epoch, best, optimizer, model.arch"
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    assert lines[6:] == [f"{output}: 0.0 MiB, sha256 {digest}"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.pth", "w.safetensors"]


@pytest.mark.parametrize(
    ("entry", "is_zip"), [(None, False), ("state_dict", True), ("model_state_dict", True)]
)
def test_entries_and_formats(entry: str | None, is_zip: bool, tmp_path: Path) -> None:
    weights = {"w": torch.nn.Parameter(torch.ones(3))}
    content = weights if entry is None else {entry: weights, "epoch": 1}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=is_zip)
    assert run(tmp_path / "w.pt", "-o", tmp_path / "new.safetensors") == 0
    assert load_file(tmp_path / "new.safetensors")["w"].tolist() == [1.0, 1.0, 1.0]


class Hostile:
    """Unpickling it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_nothing_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save({"w": torch.ones(1), "x": Hostile(tmp_path / "made")}, tmp_path / "w.pth")
    assert run(tmp_path / "w.pth") == 2
    error = capfd.readouterr().err
    assert "holds more than tensors and would run code when read (it holds posix.mkdir): refused" in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_whole_models_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save(torch.nn.Linear(1, 1), tmp_path / "w.pth")
    assert run(tmp_path / "w.pth") == 2
    error = capfd.readouterr().err
    assert "it holds torch.nn.modules.linear.Linear" in error
    assert "torch.save(model.state_dict(), FILE)" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [torch.ones(1)],
            "expected tensors by name, at the top or in state_dict, model_state_dict, model; it is a list",
        ),
        ({"epoch": 3, "model": {"lr": 1}}, "model; it has epoch, model.lr; save the weights alone"),
        ({"s": torch.eye(2).to_sparse()}, "tensor s is sparse or quantized; expected dense numbers"),
    ],
    ids=["a list", "no tensors", "sparse"],
)
def test_files_without_usable_tensors(
    content: object, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert run(tmp_path / "w.pth") == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "w.safetensors").exists()


def test_paths(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "junk.pth").write_bytes(b"no weights at all")
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:-100])
    (tmp_path / "w.safetensors").touch()
    for arguments, message in {
        (tmp_path / "none.pth",): "none.pth cannot be read: No such file or directory",
        (tmp_path / "junk.pth",): "junk.pth is not a PyTorch file: expected a zip file or a pickle",
        (tmp_path / "cut.pth",): "cut.pth is not an intact PyTorch file",
        (tmp_path / "w.h5",): "expected a file that ends in .pth, .pt, .bin, got w.h5",
        (tmp_path / "w.pth",): "w.safetensors exists; remove it, or choose another by --output",
        (tmp_path / "w.pth", "-o", tmp_path / "w.pkl"): "w.pkl must end in .safetensors",
        (
            tmp_path / "w.pth",
            "-o",
            tmp_path / "no" / "w.safetensors",
        ): "w.safetensors: No such file or directory; choose",
    }.items():
        assert run(*arguments) == 2
        error = capfd.readouterr().err
        assert message in error
        assert error.count("\n") == 1

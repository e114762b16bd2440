"""A checkpoint is a directory of tensors and JSON; nothing in it can run code.

model.safetensors       parameters and buffers
optimizer.safetensors   momenta, named "<parameter index>.<state name>"
state.json              everything that is not a tensor
manifest.json           sha256 of every other file; written last, so a directory without it is not a checkpoint
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raydet.errors import CheckpointError

MANIFEST = "manifest.json"


def save_checkpoint(
    directory: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write a checkpoint into an existing, empty directory.

    Args:
        directory: where to write.
        model: bare, not wrapped for several workers.
        optimizer: its hyper-parameters are not stored: they follow from the config and the step.
        state: plain JSON.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    tensors = {name: _on_host(x) for name, x in model.state_dict().items()}
    try:
        save_file(tensors, directory / "model.safetensors")
        save_file(_optimizer_tensors(optimizer), directory / "optimizer.safetensors")
        (directory / "state.json").write_text(json.dumps(state, indent=2) + "\n")
        digests = {path.name: _sha256(path) for path in sorted(directory.iterdir())}
        (directory / MANIFEST).write_text(json.dumps({"sha256": digests}, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(
            f"cannot write the checkpoint {directory}: {error}; free some disk space"
        ) from error


def load_checkpoint(
    directory: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Any]:
    """Put a verified checkpoint into the model and, if given, the optimizer.

    Returns:
        The `state` that was saved.

    Raises:
        CheckpointError: a file is missing or differs from the manifest, or the model is another one.
    """
    verify_checkpoint(directory)
    _load_model(directory, model)
    if optimizer is not None:
        _load_optimizer(directory, optimizer)
    state: dict[str, Any] = json.loads((directory / "state.json").read_text())
    return state


def verify_checkpoint(directory: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: the manifest is missing or unreadable, or a file is missing or differs.
    """
    try:
        digests = json.loads((directory / MANIFEST).read_text())["sha256"]
        found = {name: _sha256(directory / name) for name in digests}
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{directory} is not a complete checkpoint: {error}") from error
    for name, digest in digests.items():
        if found[name] != digest:
            raise CheckpointError(
                f"{directory / name}: wanted sha256 {digest}, got {found[name]}: file damaged"
            )


def _load_model(directory: Path, model: nn.Module) -> None:
    tensors = load_file(directory / "model.safetensors")
    wanted = model.state_dict()
    differing = sorted(
        name
        for name in wanted.keys() | tensors.keys()
        if name not in wanted or name not in tensors or wanted[name].shape != tensors[name].shape
    )
    if differing:
        raise CheckpointError(
            f"{directory} belongs to another model: {len(differing)} tensors differ in name or shape, "
            f"first {differing[0]}; use the config.json of its own run"
        )
    model.load_state_dict(tensors)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": _on_host(value)
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
        if value is not None
    }


def _load_optimizer(directory: Path, optimizer: torch.optim.Optimizer) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(directory / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

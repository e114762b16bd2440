"""Weights in PyTorch's own formats (.pth, .pt, .bin) become safetensors files, in a process of their own.

The process reads with `weights_only=True`, which builds tensors and plain containers and refuses everything else.
A file that breaks its reader, or does not fit into memory, does not take the caller along.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydet.errors import EXIT_USAGE, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

ENTRIES = ("state_dict", "model_state_dict", "model")
"""Where training scripts put the weights of a model, beside the optimizer's state and other things."""
STARTS = (b"PK", b"\x80")
"""How PyTorch files start: zip files, and pickles before release 1.6."""
NUM_SHOWN = 6


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Name, shape and type of a tensor of a file."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was taken from a file, and what was not."""

    entry: str
    """Where in the file the tensors were found, such as `state_dict`; empty: at its top."""
    tensors: tuple[StoredTensor, ...]
    left_out: tuple[str, ...]
    """Entries that are not tensors, or not among the weights."""


def convert_weights(source: Path, destination: Path) -> Conversion:
    """Write the tensors of a .pth, .pt or .bin file as a safetensors file.

    Args:
        destination: replaced atomically if it exists.

    Raises:
        ConfigError: the file cannot be read, holds anything that would have to be unpickled, or holds no tensors; or
            the destination cannot be written.
    """
    command = [sys.executable, "-m", __name__, str(source.absolute()), str(destination.absolute())]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == EXIT_USAGE:
        raise ConfigError(done.stderr.strip().splitlines()[-1])
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(
            f"the process that reads {source} failed (exit code {done.returncode}: {last}); "
            "is the file intact, and is there enough memory?"
        )
    content = json.loads(done.stdout)
    tensors = tuple(StoredTensor(name, tuple(shape), dtype) for name, shape, dtype in content["tensors"])
    return Conversion(entry=content["entry"], tensors=tensors, left_out=tuple(content["left_out"]))


def _convert(source: Path, destination: Path) -> Conversion:
    """The work of the process."""
    # Not at the top: the process that asks for the conversion does without torch.
    import torch
    from safetensors.torch import save_file

    entry, tensors, left_out = _weights_of(_read(source), source)
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise ConfigError(
                f"{source}: tensor {name} is sparse or quantized; expected dense numbers: convert it in PyTorch first"
            )
    # Copies, since safetensors refuses tensors that share memory.
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    try:
        with tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=destination.parent) as drafts:
            draft = Path(drafts) / destination.name
            save_file(tensors, draft, metadata={"format": "pt"})
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            draft.replace(destination)
    except OSError as error:
        raise ConfigError(f"cannot write {destination}: {error.strerror or error}; choose another") from error
    stored = tuple(
        StoredTensor(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in tensors.items()
    )
    return Conversion(entry, stored, left_out)


def _read(source: Path) -> object:
    import torch

    try:
        with source.open("rb") as file:
            if not file.read(2).startswith(STARTS):
                raise ConfigError(
                    f"{source} is not a PyTorch file: expected a zip file or a pickle; get it again"
                )
        return torch.load(source, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # of zip files, of the restricted unpickler, of storages
        text = " ".join(str(error).split())
        if match := re.search(r"\bGLOBAL (\S+)", text):
            found = f"it holds {match[1]}"
        elif "TorchScript" in text:
            found = "it is a TorchScript program"
        elif type(error).__name__ == "UnpicklingError":
            found = "the restricted reader of PyTorch stopped"
        else:
            raise ConfigError(
                f"{source} is not an intact PyTorch file ({type(error).__name__}: {text[:120]}); get it again"
            ) from error
        raise ConfigError(
            f"{source} holds more than tensors and would run code when read ({found}): refused; where you trust it, "
            "save its weights alone: torch.save(model.state_dict(), FILE)"
        ) from error


def _weights_of(content: object, source: Path) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """The entry that holds the tensors, the tensors by name, and the names of all else."""
    import torch

    entries: list[str] = []
    left_out: list[str] = []
    while isinstance(content, Mapping):
        inner = next((name for name in ENTRIES if isinstance(content.get(name), Mapping)), None)
        # Beside such an entry there may be tensors that are no weights, e.g. the best accuracy so far.
        tensors: dict[str, Any] = {
            name: value
            for name, value in content.items()
            if inner is None and isinstance(name, str) and isinstance(value, torch.Tensor)
        }
        taken = tensors.keys() if tensors else {inner}
        left_out += [".".join((*entries, str(name))) for name in content if name not in taken]
        if tensors:
            return ".".join(entries), tensors, tuple(left_out)
        if inner is None:
            break
        entries.append(inner)
        content = content[inner]
    has = f"has {', '.join(left_out[:NUM_SHOWN])}" if left_out else f"is a {type(content).__name__}"
    raise ConfigError(
        f"{source}: expected tensors by name, at the top or in {', '.join(ENTRIES)}; it {has}; "
        "save the weights alone: torch.save(model.state_dict(), FILE)"
    )


if __name__ == "__main__":
    try:
        converted = _convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(EXIT_USAGE)
    fields = asdict(converted)
    fields["tensors"] = [list(tensor.values()) for tensor in fields["tensors"]]
    sys.stdout.write(json.dumps(fields))

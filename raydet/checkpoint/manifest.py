"""The manifest of a checkpoint: its files and their hashes, and whether they are intact."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from raydet.errors import CheckpointError, OtherFormatError

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 3
"""Incremented when this and an older raydet cannot read each other's checkpoints."""
HASH_THREADS = 4


class FileInfo(TypedDict):
    """What identifies the content of a file."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a checkpoint."""

    world_size: int
    """Ranks that wrote it."""
    optimizer: str
    """Class name of the optimizer whose state is in the shards."""
    score: float | None
    """The higher the better; None: the model was not evaluated."""
    files: Mapping[str, FileInfo]
    """All files but the manifest."""

    @property
    def num_bytes(self) -> int:
        """Total size of the files, without the manifest."""
        return sum(file["bytes"] for file in self.files.values())

    def as_text(self) -> str:
        """JSON with its own sha256."""
        body = {
            "format": FORMAT,
            "world_size": self.world_size,
            "optimizer": self.optimizer,
            "score": self.score,
            "files": self.files,
        }
        digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
        return json.dumps({**body, "sha256": digest}, indent=2) + "\n"


def write_durably(path: Path, text: str) -> FileInfo:
    """Write a new file and flush it to the disk."""
    content = text.encode()
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def sync_directory(path: Path) -> None:
    """Flush the entries of a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: the manifest is missing, damaged or of another version.
    """
    path = directory / MANIFEST
    try:
        text = path.read_text()
        content = json.loads(text)
        if content.get("format") != FORMAT:
            raise OtherFormatError(
                f"{path}: expected format {FORMAT}, got {content.get('format')}: written by another version of raydet; "
                "continue with that version, or in another run directory"
            )
        manifest = Manifest(
            world_size=content["world_size"],
            optimizer=content["optimizer"],
            score=content["score"],
            files=content["files"],
        )
        is_intact = manifest.as_text() == text
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{directory} is not a complete checkpoint: {MANIFEST}: {error}") from error
    if not is_intact:
        raise CheckpointError(f"{path}: its content differs from its own sha256: file damaged")
    return manifest


def damaged_files(directory: Path) -> list[str]:
    """One line for every file that is missing or damaged."""
    try:
        files = read_manifest(directory).files
    except OtherFormatError:
        raise
    except CheckpointError as error:
        return [str(error)]
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        found = pool.map(lambda name: _damage(directory / name, **files[name]), files)
        return [line for line in found if line]


def verify_checkpoint(directory: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: the manifest is missing or unreadable, or a file is missing or differs.
    """
    if damaged := damaged_files(directory):
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise CheckpointError(damaged[0] + more)


def _damage(path: Path, *, sha256: str, bytes: int) -> str:
    try:
        size = path.stat().st_size
        if size != bytes:
            return f"{path}: expected {bytes} bytes, got {size}: file damaged"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {error}"
    return "" if digest == sha256 else f"{path}: expected sha256 {sha256}, got {digest}: file damaged"


def read_state(directory: Path) -> Mapping[str, Any]:
    """The part of a checkpoint that is not a tensor.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return json.loads((directory / STATE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / STATE}: {error}") from error

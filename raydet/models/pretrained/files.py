"""Weights from a file or the web. Nothing is ever unpickled: safetensors only, which cannot run code."""

from __future__ import annotations

import hashlib
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from raydet.errors import ConfigError

SUFFIX = ".safetensors"
TIMEOUT_S = 30.0
"""Without a byte from the other side."""
SETTING = "model.backbone.pretrained.path"


@dataclass(frozen=True, slots=True)
class WeightFile:
    """Everything that a file holds."""

    path: str
    """As it was asked for."""
    sha256: str
    """Its first twelve digits."""
    tensors: dict[str, Tensor]
    """In the order of their names."""


def read_weights(path: str) -> WeightFile:
    """Read a safetensors file.

    Args:
        path: on this machine, or a URI that begins with file:// or https://; the latter is fetched anew every time.

    Raises:
        ConfigError: it is of another kind, cannot be had, or is damaged.
    """
    parts = urlsplit(path)
    file = Path(url2pathname(parts.path) if parts.scheme else path)
    _check_suffix(path, file)
    match parts.scheme:
        case "" | "file":
            content = _local(file)
        case "https":
            content = _fetched(path)
        case other:
            raise ConfigError(f"{SETTING}={path}: wants a local path, file:// or https://, got {other}://")
    try:
        tensors = dict(sorted(load(content).items()))
    except SafetensorError as error:
        raise ConfigError(
            f"{SETTING}={path} is no intact safetensors file ({error}); get it again, or convert it"
        ) from error
    return WeightFile(path, hashlib.sha256(content).hexdigest()[:12], tensors)


def _check_suffix(path: str, file: Path) -> None:
    if file.suffix == SUFFIX:
        return
    command = (
        "from torch import load; from safetensors.torch import save_file; "
        f"w = load('{file.name}', map_location='cpu', weights_only=True); "
        "w = {k: v.contiguous().clone() for k, v in w.get('state_dict', w.get('model', w)).items()}; "
        f"save_file(w, '{file.stem}{SUFFIX}')"
    )
    raise ConfigError(
        f"{SETTING}={path} wants a {SUFFIX} file: other kinds may run code when they are read; convert it where you "
        f'trust it: python -c "{command}"'
    )


def _local(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{SETTING}={path}: {error.strerror}; it must be readable where the first worker runs"
        ) from error


def _fetched(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            content: bytes = answer.read()
    except (OSError, HTTPException) as error:
        raise ConfigError(
            f"{SETTING}={url} cannot be fetched ({error}); get it where the web can be reached, and give its path"
        ) from error
    return content

"""Weights from a local file, the web or a hub, in the safetensors format: nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import tempfile
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
from raydet.models.pretrained.convert import convert_weights
from raydet.models.pretrained.hub import SCHEMES, HubFile, fetch

SUFFIX = ".safetensors"
TIMEOUT_S = 30.0
"""Longest wait for the next byte of a download."""
SETTING = "model.backbone.pretrained.path"


@dataclass(frozen=True, slots=True)
class WeightFile:
    """The contents of a file: tensors sorted by name, and its hash."""

    path: str
    sha256: str
    tensors: dict[str, Tensor]
    origin: str | None = None
    """Repository, commit and file that a name of the hub stood for; None for a path."""


def read_weights(path: str) -> WeightFile:
    """Read a file of weights.

    Args:
        path: a local path or a URI with file:// or https:// of a safetensors file, which is downloaded every time; or a
            name, hf://OWNER/NAME or timm://MODEL, whose file is kept in the cache of the Hugging Face hub.

    Raises:
        ConfigError: it is not a safetensors file, cannot be read or downloaded, or is damaged.
    """
    scheme = urlsplit(path).scheme
    if scheme in SCHEMES:
        try:
            found = fetch(path)
            return WeightFile(path, _sha256(found.path.read_bytes()), _hub_tensors(found), found.origin)
        except ConfigError as error:
            raise ConfigError(f"{SETTING}={path}: {error}") from error
    content = _read(path, scheme)
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ConfigError(
            f"{SETTING}={path} is not an intact safetensors file ({error}); get it again, or convert it"
        ) from error
    return WeightFile(path, _sha256(content), dict(sorted(tensors.items())))


def _read(path: str, scheme: str) -> bytes:
    file = Path(url2pathname(urlsplit(path).path) if scheme else path)
    if file.suffix != SUFFIX:
        raise ConfigError(
            f"{SETTING}={path} must be a {SUFFIX} file: other formats may run code when read; "
            f"`raydet weights convert {file.name}` takes the tensors, and nothing else, out of one"
        )
    if scheme not in ("", "file", "https"):
        raise ConfigError(
            f"{SETTING}={path}: must be a local path, file://, https://, hf:// or timm://, got {scheme}://"
        )
    try:
        if scheme == "https":
            with urllib.request.urlopen(path, timeout=TIMEOUT_S) as response:
                return response.read()
        return file.read_bytes()
    except (OSError, HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error)
        remedy = (
            "download it on a machine with web access, and set the local path"
            if scheme == "https"
            else "it must be readable where the first worker runs"
        )
        raise ConfigError(f"{SETTING}={path} cannot be read ({reason}); {remedy}") from error


def _hub_tensors(file: HubFile) -> dict[str, Tensor]:
    """The tensors of a file in the cache; one that is not safetensors is converted on the way."""
    with tempfile.TemporaryDirectory() as directory:
        path = file.path
        if path.suffix != SUFFIX:
            path = Path(directory) / f"converted{SUFFIX}"
            convert_weights(file.path, path)
        try:
            return dict(sorted(load(path.read_bytes()).items()))
        except SafetensorError as error:
            raise ConfigError(
                f"{file.path} is not an intact safetensors file ({error}); remove it from the cache"
            ) from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

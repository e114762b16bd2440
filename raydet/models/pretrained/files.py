"""Weights from a local file or the web, in the safetensors format only: nothing is ever unpickled."""

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
"""Longest wait for the next byte of a download."""
SETTING = "model.backbone.pretrained.path"


@dataclass(frozen=True, slots=True)
class WeightFile:
    """The contents of a file: tensors sorted by name, and the first twelve digits of its hash."""

    path: str
    sha256: str
    tensors: dict[str, Tensor]


def read_weights(path: str) -> WeightFile:
    """Read a safetensors file.

    Args:
        path: a local path, or a URI with file:// or https://; the latter is downloaded every time.

    Raises:
        ConfigError: it is not a safetensors file, cannot be read, or is damaged.
    """
    parts = urlsplit(path)
    file = Path(url2pathname(parts.path) if parts.scheme else path)
    _check_suffix(path, file)
    if parts.scheme not in ("", "file", "https"):
        raise ConfigError(
            f"{SETTING}={path}: must be a local path, file:// or https://, got {parts.scheme}://"
        )
    try:
        if parts.scheme == "https":
            with urllib.request.urlopen(path, timeout=TIMEOUT_S) as response:
                content = response.read()
        else:
            content = file.read_bytes()
        tensors = dict(sorted(load(content).items()))
    except SafetensorError as error:
        raise ConfigError(
            f"{SETTING}={path} is not an intact safetensors file ({error}); get it again, or convert it"
        ) from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error)
        remedy = (
            "download it on a machine with web access, and set the local path"
            if parts.scheme == "https"
            else "it must be readable where the first worker runs"
        )
        raise ConfigError(f"{SETTING}={path} cannot be read ({reason}); {remedy}") from error
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
        f"{SETTING}={path} must be a {SUFFIX} file: other formats may run code when read; convert it where you "
        f'trust it: python -c "{command}"'
    )

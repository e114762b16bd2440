"""`python -m raydet.doctor.cuda`: what torch says of the GPUs of this machine, as one line of JSON."""

from __future__ import annotations

import ctypes
import json
import sys
import warnings
from typing import Any


def ask_torch() -> dict[str, Any]:
    """The fields of `raydet.doctor.facts.Cuda`."""
    said: dict[str, Any] = {
        "built_for": None,
        "driver_takes": None,
        "devices": [],
        "nccl": None,
        "error": "",
    }
    try:
        import torch
    except ImportError as error:
        return said | {"error": str(error)}
    said["built_for"] = torch.version.cuda
    if torch.version.cuda is None:
        return said
    said["driver_takes"] = _driver_takes()
    said["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    try:
        torch.cuda.init()
        said["devices"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        for index in range(torch.cuda.device_count()):  # a GPU that has fallen off the bus still has a name
            torch.ones(1, device=f"cuda:{index}").item()
    except (RuntimeError, AssertionError) as error:
        said["error"] = str(error).splitlines()[0]
    return said


def _driver_takes() -> int | None:
    """See `Cuda.driver_takes`."""
    version = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return version.value or None


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # torch's, of an old driver: the error says the same
    sys.stdout.write(f"{json.dumps(ask_torch())}\n")

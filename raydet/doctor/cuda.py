"""`python -m raydet.doctor.cuda`: what torch reports about the GPUs of this machine, as one line of JSON."""

from __future__ import annotations

import ctypes
import json
import sys
import warnings


def ask_torch() -> dict[str, object]:
    """The fields of `raydet.doctor.facts.Cuda`."""
    report: dict[str, object] = dict.fromkeys(("built_for", "driver_takes", "nccl"))
    report |= {"devices": [], "error": ""}
    try:
        import torch
    except ImportError as error:
        return report | {"error": str(error)}
    report["built_for"] = torch.version.cuda
    if torch.version.cuda is None:
        return report
    report["driver_takes"] = _driver_takes()
    report["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    try:
        torch.cuda.init()
        report["devices"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        for index in range(torch.cuda.device_count()):  # a GPU that has failed still has a name
            torch.ones(1, device=f"cuda:{index}").item()
    except (RuntimeError, AssertionError) as error:
        report["error"] = str(error).splitlines()[0]
    return report


def _driver_takes() -> int | None:
    version = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return version.value or None


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # torch's warning about an old driver: the error says the same
    sys.stdout.write(f"{json.dumps(ask_torch())}\n")

"""Warm starts for the workers of a local Ray: they are forked from a process that has imported everything already.

Importing torch and torchvision costs every fresh process several CPU seconds, and a trial takes three or more of them
(trial, controller, workers). Ray lets a job name the program that starts its workers (`runtime_env["py_executable"]`);
ours is `warm_client.py`, which asks the server of this module to fork instead. Where no server answers, the client
starts a plain Python, so a broken server costs time, never a trial.

Ray itself is not imported before the fork: its native part keeps random state that children must not share.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PRELOADED = ("raydet.engine.process", "torch.distributed", "torch._dynamo", "pandas")
CLIENT = Path(__file__).with_name("warm_client.py")
CLIENT_TIMEOUT_S = 5
PR_SET_PDEATHSIG = 1


@contextmanager
def warm_workers() -> Iterator[str]:
    """Run a fork server while the block runs.

    Yields:
        What `runtime_env["py_executable"]` wants. The server may still be importing; workers start plainly until
        it answers.
    """
    with tempfile.TemporaryDirectory(prefix="raydet-warm-") as directory:  # readable by this user alone
        path = Path(directory) / "socket"
        server = subprocess.Popen(
            [sys.executable, "-m", __name__, str(path)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the driver
        )
        try:
            yield f"{sys.executable} -I -S {CLIENT} {path}"
        finally:
            server.terminate()
            server.wait()


def serve(path: Path) -> None:
    """Import, then fork a worker for every client, until the driver dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    for module in PRELOADED:
        importlib.import_module(module)
    assert not any(name.split(".")[0] == "ray" for name in sys.modules), "see the module's docstring"
    gc.collect()
    gc.freeze()  # the collector of a child would copy every page that it touches
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    draft = path.with_suffix(".draft")
    listener.bind(str(draft))
    listener.listen(64)
    draft.rename(path)
    while True:
        client, _ = listener.accept()
        client.settimeout(CLIENT_TIMEOUT_S)
        try:
            request, descriptors = _receive(client)
        except (OSError, ValueError):  # killed, or not ours
            client.close()
            continue
        client.settimeout(None)
        if os.fork() == 0:
            listener.close()
            _become(request, descriptors, client)
        client.close()
        for descriptor in descriptors:
            os.close(descriptor)


def _receive(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """One line of JSON, and the client's standard streams."""
    descriptors = array.array("i")
    data, ancillary, _, _ = client.recvmsg(1 << 20, socket.CMSG_SPACE(3 * descriptors.itemsize))
    for _, _, content in ancillary:
        descriptors.frombytes(content)
    while not data.endswith(b"\n"):
        more = client.recv(1 << 20)
        if not more:
            raise ConnectionError("the client has gone")
        data += more
    request: dict[str, Any] = json.loads(data)
    return request, list(descriptors)


def _become(request: dict[str, Any], descriptors: list[int], client: socket.socket) -> None:
    """Turn this process into the program that the client was asked to run; does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = request["argv"]
    search = [os.path.dirname(sys.argv[0]), *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]
    sys.path[:] = list(dict.fromkeys([*search, *sys.path]))
    _reseed()
    client.sendall(b"1")
    threading.Thread(target=_die_with, args=(client,), daemon=True).start()
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _reseed() -> None:
    """Children must not draw the same random numbers."""
    import numpy as np
    import torch

    random.seed()
    np.random.seed()
    torch.seed()


def _die_with(client: socket.socket) -> None:
    """Ray knows the client's process: where that one is killed, this one ends."""
    client.recv(1)
    os._exit(1)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))

"""Warm starts for the workers of a local Ray: they are forked from a process that has already imported everything.

Importing torch and torchvision costs every fresh process several CPU seconds, and a trial takes three or more of them
(trial, controller, workers). Ray starts its workers with a script; ours is `fork_client.py`, which asks the server of
this module to fork instead. Without an answer the client starts a plain Python, so a broken server costs time, never
a trial.

Ray itself is not imported before the fork: its native part has random state that children must not share.
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
from typing import TypedDict

from raydet.cpu import has_gpu
from raydet.launch.fork_client import SERVER
from raydet.launch.ray_settings import IS_LOCAL

PRELOADED = ("raydet.engine.process", "torch.distributed", "torch._dynamo", "pandas")
REQUIRED_BY_RAY = ("click", "fsspec", "google.protobuf.json_format", "jsonschema", "msgpack", "requests")
"""What Ray itself imports in every worker; a third of the time of that."""
CLIENT = Path(__file__).with_name("fork_client.py")
CLIENT_TIMEOUT_S = 5
PR_SET_PDEATHSIG = 1


class Request(TypedDict):
    """The program that a client was asked to run."""

    env: dict[str, str]
    cwd: str
    argv: list[str]


@contextmanager
def warm_workers() -> Iterator[None]:
    """Run a fork server while the block runs, and name it to `CLIENT` in the environment.

    Within another such block, and where workers cannot be forked, nothing happens. A cluster starts its own server; a
    command that has something else to do first can start it earlier.
    """
    # A process that has touched CUDA must not be forked.
    if not IS_LOCAL or has_gpu() or SERVER in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="raydet-warm-") as directory:  # readable by this user only
        path = Path(directory) / "socket"
        server = subprocess.Popen(
            [sys.executable, "-m", __name__, str(path)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C goes to the driver
        )
        os.environ[SERVER] = f"{server.pid}:{path}"
        try:
            yield
        finally:
            del os.environ[SERVER]
            server.terminate()
            server.wait()


def serve(path: Path) -> None:
    """Import, then fork a worker for every client, until the driver dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    for module in (*PRELOADED, *REQUIRED_BY_RAY):
        importlib.import_module(module)
    assert not any(name.split(".")[0] == "ray" for name in sys.modules), "see the module's docstring"
    gc.collect()
    gc.freeze()  # garbage collection in a child would copy every page
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
        except (OSError, ValueError):  # the client was killed, or is not ours
            client.close()
            continue
        client.settimeout(None)
        if os.fork() == 0:
            listener.close()
            _become(request, descriptors, client)
        client.close()
        for descriptor in descriptors:
            os.close(descriptor)


def _receive(client: socket.socket) -> tuple[Request, list[int]]:
    """The request, one line of JSON, and the client's standard streams."""
    descriptors = array.array("i")
    data, ancillary, _, _ = client.recvmsg(1 << 20, socket.CMSG_SPACE(3 * descriptors.itemsize))
    for _, _, content in ancillary:
        descriptors.frombytes(content)
    while not data.endswith(b"\n"):
        more = client.recv(1 << 20)
        if not more:
            raise ConnectionError("the client is gone")
        data += more
    return json.loads(data), list(descriptors)


def _become(request: Request, descriptors: list[int], client: socket.socket) -> None:
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
    # Children must not draw the same random numbers.
    import numpy as np
    import torch

    random.seed()
    np.random.seed()
    torch.seed()
    client.sendall(b"1")
    threading.Thread(target=_exit_with, args=(client,), daemon=True).start()
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


def _exit_with(client: socket.socket) -> None:
    """Exit when the client does: Ray kills the process that it knows, the client."""
    client.recv(1)
    os._exit(1)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))

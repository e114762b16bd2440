"""Replaces the script with which Ray sets up a worker: asks the server of `fork_server.py` to fork one.

    fork_client.py SCRIPT [ARGUMENT ...] --serialized-runtime-env-context=JSON --language=PYTHON

Ray's own script imports all of Ray before it turns into the worker, two thirds of a CPU second each time. This one
imports little, and only from the standard library: this part of a worker's start is not forked. What it does not know
(containers, other languages, another interpreter) it leaves to Ray's.
"""

import array
import json
import os
import re
import socket
import sys
import time

SERVER = "RAYDET_FORK_SERVER"
"""Environment variable: process id and socket of the server, separated by a colon."""
IMPORT_S = 40
"""How long a server may import; Ray waits for a worker for a minute."""
TIMEOUT_S = 15
"""A server that does not answer within this time counts as dead."""


def main() -> None:
    """Run as long as the forked worker does; without a server, become a plain Python."""
    command, settings, is_known = [], {}, "--language=PYTHON" in sys.argv
    for argument in sys.argv[1:]:
        name, _, value = argument.partition("=")
        if name == "--serialized-runtime-env-context":
            settings = json.loads(value or "{}")
        elif name != "--language":
            command.append(argument)
    variables = settings.pop("env_vars", None) or {}
    is_known &= settings.pop("py_executable", None) in (None, sys.executable)
    script = next(argument for argument in command if not argument.startswith("-"))
    if not is_known or any(settings.values()):
        own = os.path.join(os.path.dirname(script), "setup_worker.py")
        os.execv(sys.executable, [sys.executable, own, *sys.argv[1:]])
    for name, value in variables.items():  # as Ray does: ${NAME} of an unknown name is empty
        os.environ[name] = re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))
    server = None if script is not command[0] else _forked(command)  # flags of the interpreter come first
    if server is None:
        os.execv(sys.executable, [sys.executable, *command])
    while server.recv(1):
        pass


def _forked(command: list[str]) -> socket.socket | None:
    """The connection to a forked worker, which ends with it; None: nobody answers."""
    pid, _, path = os.environ.get(SERVER, "").partition(":")
    deadline = time.monotonic() + IMPORT_S
    while not os.path.exists(path):  # it is still importing
        if time.monotonic() > deadline or not os.path.exists(f"/proc/{pid or '-'}"):
            return None
        time.sleep(0.05)
    server = socket.socket(socket.AF_UNIX)
    server.settimeout(TIMEOUT_S)
    request = json.dumps({"env": dict(os.environ), "cwd": os.getcwd(), "argv": command}).encode() + b"\n"
    streams = array.array("i", [0, 1, 2])
    try:
        server.connect(path)
        sent = server.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        server.sendall(request[sent:])
        answer = server.recv(1)
    except OSError:
        return None
    server.settimeout(None)
    return server if answer else None


if __name__ == "__main__":
    main()

"""Replaces `python` when Ray starts a worker: asks the server of `fork_server.py` to fork one.

    fork_client.py SOCKET SCRIPT [ARGUMENT ...]

Imports little, and only from the standard library: this part of a worker's start is not forked.
"""

import array
import json
import os
import socket
import sys

TIMEOUT_S = 15
"""A server that does not answer within this time counts as dead."""


def main() -> None:
    """Run as long as the forked worker does; without a server, become a plain Python."""
    path, *argv = sys.argv[1:]
    server = socket.socket(socket.AF_UNIX)
    server.settimeout(TIMEOUT_S)
    request = json.dumps({"env": dict(os.environ), "cwd": os.getcwd(), "argv": argv}).encode() + b"\n"
    streams = array.array("i", [0, 1, 2])
    try:
        server.connect(path)
        sent = server.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        server.sendall(request[sent:])
        answer = server.recv(1)
    except OSError:
        answer = b""
    if not answer:
        os.execv(sys.executable, [sys.executable, *argv])
    server.settimeout(None)
    while server.recv(1):
        pass


if __name__ == "__main__":
    main()

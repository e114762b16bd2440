"""Forked workers: warm if the server answers, plain if it does not, dead when their client is."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raydet.launch.fork_client import SERVER
from raydet.launch.fork_server import CLIENT, warm_workers

REPORT = """
import json, os, random, sys
import numpy as np
print(json.dumps({
    "is_warm": "torch" in sys.modules, "argv": sys.argv[1:], "cwd": os.getcwd(), "env": os.environ.get("RAYDET_TEST"),
    "draws": [random.random(), float(np.random.random())],
}))
sys.exit(7)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The server's address, once it has imported everything."""
    with warm_workers():
        if SERVER not in os.environ:
            pytest.skip("workers are not forked on a machine with a GPU")
        deadline = time.monotonic() + 120
        while not Path(os.environ[SERVER].partition(":")[2]).exists():
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.1)
        yield os.environ[SERVER]


def command(script: Path, context: dict[str, object] | None = None, *, language: str = "PYTHON") -> list[str]:
    """How Ray starts a worker."""
    return [
        *(sys.executable, str(CLIENT), str(script), "one", "two words"),
        *(f"--serialized-runtime-env-context={json.dumps(context or {})}", f"--language={language}"),
    ]


def report(
    server: str, tmp_path: Path, context: dict[str, object] | None = None
) -> tuple[int, dict[str, object]]:
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    done = subprocess.run(
        command(script, context),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "RAYDET_TEST": "yes", SERVER: server},
        timeout=120,
    )
    return done.returncode, json.loads(done.stdout)


def test_a_worker_is_the_program_it_was_asked_to_be(server: str, tmp_path: Path) -> None:
    code, first = report(server, tmp_path)
    _, second = report(server, tmp_path)
    assert code == 0  # that of the worker is lost: Ray asks for none
    assert first["is_warm"]
    assert first["argv"] == ["one", "two words"]
    assert (first["cwd"], first["env"]) == (str(tmp_path), "yes")
    assert not set(first["draws"]) & set(second["draws"])  # type: ignore[call-overload]


def test_variables_are_those_of_the_runtime_environment(server: str, tmp_path: Path) -> None:
    context = {
        "env_vars": {"RAYDET_TEST": "${RAYDET_TEST}/${RAYDET_NOT_SET}/more"},
        "py_executable": sys.executable,
    }
    _, found = report(server, tmp_path, context)
    assert (found["is_warm"], found["env"]) == (True, "yes//more")


@pytest.mark.parametrize(
    ("context", "language"),
    [
        ({"command_prefix": ["nice"]}, "PYTHON"),
        ({"override_worker_entrypoint": "other.py"}, "PYTHON"),
        ({"py_executable": "/usr/bin/other"}, "PYTHON"),
        ({}, "JAVA"),
    ],
)
def test_what_it_does_not_know_is_left_to_rays_own_script(
    context: dict[str, object], language: str, server: str, tmp_path: Path
) -> None:
    (tmp_path / "setup_worker.py").write_text("import sys; print(sys.argv[1:])")
    worker = command(tmp_path / "default_worker.py", context, language=language)
    done = subprocess.run(
        worker, capture_output=True, text=True, env={**os.environ, SERVER: server}, timeout=60, check=True
    )
    assert done.stdout.strip() == str(worker[2:])


def test_a_client_that_dies_early_does_no_harm(server: str, tmp_path: Path) -> None:
    for message in (b"", b"not json\n", b'{"env": '):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(server.partition(":")[2])
            client.sendall(message)
    _, found = report(server, tmp_path)
    assert found["is_warm"]


def test_a_server_that_is_still_importing_is_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as late, ThreadPoolExecutor(1) as pool:
        found = pool.submit(report, f"{os.getpid()}:{tmp_path / 'socket'}", tmp_path)
        time.sleep(0.5)
        late.bind(str(tmp_path / "socket"))
        late.listen()
        late.settimeout(60)
        client, _ = late.accept()
        client.close()  # no answer after all
        assert found.result()[0] == 7


@pytest.mark.parametrize("server", ["", f"{2**22 + 1}:/no/socket"])
def test_without_a_server_the_worker_starts_plainly(server: str, tmp_path: Path) -> None:
    code, found = report(server, tmp_path)
    assert (code, found["is_warm"], found["argv"]) == (7, False, ["one", "two words"])


def test_a_worker_dies_with_its_client(server: str, tmp_path: Path) -> None:
    script = tmp_path / "sleep.py"
    script.write_text(
        "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
    )
    client = subprocess.Popen(command(script), cwd=tmp_path, env={**os.environ, SERVER: server})
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker = int((tmp_path / "pid").read_text())
    client.send_signal(signal.SIGKILL)
    client.wait()
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < deadline, "the worker is still alive"
        time.sleep(0.05)

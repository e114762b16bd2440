"""MLflow's server and PostgreSQL on the loopback interface, as processes that tests start and kill."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

NOT_MUCH = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Environment of a server without telemetry and job workers."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class MlflowServer:
    """`mlflow server` with its files in a directory, which also serves artifacts."""

    directory: Path
    store: str
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server and wait until it responds."""
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.store]
        command += ["--serve-artifacts", "--artifacts-destination", str(self.directory / "artifacts")]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **NOT_MUCH, **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end = time.monotonic() + 400
        while not self._answers():
            assert self._process.poll() is None, (self.directory / "server.log").read_text()
            assert time.monotonic() < end, "the MLflow server does not respond"
            time.sleep(0.5)

    def kill(self) -> None:
        """Kill the server and all of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def postgres(password: str) -> Iterator[str]:
    """PostgreSQL with a password for user raydet; yields the URI of a database without the password."""
    owner = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    directory = Path(tempfile.mkdtemp(prefix="raydet-pg-"))  # paths of Unix sockets must be short
    try:
        (directory / "password").write_text(password)
        if owner is not None:
            for path in (directory, directory / "password"):
                shutil.chown(path, owner)
        data, port = directory / "data", free_port()
        init = ["initdb", "-D", str(data), "-U", "raydet", "-A", "scram-sha-256", "-E", "UTF8", "--no-sync"]
        subprocess.run(
            [*init, f"--pwfile={directory / 'password'}"],
            check=True,
            capture_output=True,
            user=owner,
            cwd="/",
        )
        serve = ["postgres", "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", str(directory)]
        server = subprocess.Popen(
            serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=owner, cwd="/"
        )
        try:
            environment = os.environ | {"PGPASSWORD": password}
            create = ["createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "raydet", "mlflow"]
            end = time.monotonic() + 60
            while subprocess.run(create, capture_output=True, env=environment).returncode:
                assert server.poll() is None, "PostgreSQL has ended"
                assert time.monotonic() < end, "PostgreSQL does not respond"
                time.sleep(0.3)
            yield f"postgresql+psycopg2://raydet@127.0.0.1:{port}/mlflow"
        finally:
            server.send_signal(signal.SIGINT)  # fast shutdown
            server.wait(timeout=60)
    finally:
        shutil.rmtree(directory, ignore_errors=True)

"""A real Ray head on the loopback interface with token authentication and, optionally, an autoscaler."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from tests.study.conftest import environment, names, tune_command

RAY = Path(sys.executable).with_name("ray")
PATIENCE = dict.fromkeys(
    ("RAY_DASHBOARD_STARTUP_TIMEOUT_S", "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT"), "240"
)
"""Timeouts for a busy machine."""
COMMANDS = [f"{kind}_commands" for kind in ("initialization", "setup", "head_setup", "worker_setup")]
COMMANDS += ["head_start_ray_commands", "worker_start_ray_commands"]
"""Keys of commands, which are empty but must be present."""
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


@dataclass(frozen=True)
class Head:
    """A running head, and how to connect to it."""

    env: dict[str, str]
    """Environment with the address of the dashboard, and a home directory with the token."""
    address: str
    """Value for RAY_ADDRESS."""
    dashboard: str
    token: str

    def without_token(self, home: Path) -> dict[str, str]:
        """The environment of a user without a token."""
        home.mkdir(exist_ok=True)
        return self.env | {"HOME": str(home)}

    def get(self, path: str) -> Any:
        """Query the dashboard."""
        request = urllib.request.Request(
            self.dashboard + path, headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.load(reply)

    def refused(self, storage: Path, *arguments: str) -> str:
        """The error message of a study that is refused before any trial."""
        done = subprocess.run(
            tune_command(storage, *arguments),
            env=self.env | {"RAY_ADDRESS": self.address},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 2, done.stdout + done.stderr
        assert not names(storage, "started")
        return done.stderr


@contextmanager
def ray_head(
    directory: Path,
    *,
    cpus: int = 2,
    workers: Mapping[str, Any] | None = None,
    extra: Mapping[str, str] | None = None,
) -> Iterator[Head]:
    """Run a head while the block runs.

    Args:
        workers: a node type that the cluster may scale to, as in Ray's cluster config; None: it does not scale.
    """
    port, dashboard, agent = free_ports(3)
    home, token = directory / "home", secrets.token_hex(32)
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(token)
    # As in an activated virtual environment: jobs run the `python` that the head finds.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    client = environment() | {"HOME": str(home), "PATH": path, "RAY_AUTH_MODE": "token"}
    env = client | {"RAY_USAGE_STATS_ENABLED": "0"} | PATIENCE | dict(extra or {})
    command = [str(RAY), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--num-cpus={cpus}"]
    command += [f"--dashboard-agent-listen-port={agent}", "--object-store-memory=200000000"]
    if workers is not None:
        config = directory / "autoscaling.json"
        config.write_text(json.dumps(_autoscaling(f"127.0.0.1:{port}", cpus, workers)))
        command += [f"--autoscaling-config={config}"]
        env |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1"}
        env |= dict.fromkeys(("RAY_CLOUD_INSTANCE_ID", "RAY_OVERRIDE_NODE_ID_FOR_TESTING"), FAKE_HEAD_NODE_ID)
    with (directory / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 240
        while not answers(f"{address}/api/version"):
            assert process.poll() is None, (directory / "head.log").read_text()
            assert time.monotonic() < deadline, "the head does not answer"
            time.sleep(0.5)
        yield Head(client | {"RAY_API_SERVER_ADDRESS": address}, f"127.0.0.1:{port}", address, token)
    finally:
        _end(process)


def _autoscaling(address: str, cpus: int, workers: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "cluster_name": "test",
        "max_workers": workers["max_workers"],
        "idle_timeout_minutes": 0.5,
        "upscaling_speed": 10,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": cpus}, "node_config": {}, "max_workers": 0},
            "worker": {"node_config": {}, "min_workers": 0, **workers},
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        **{kind: [] for kind in COMMANDS},
    }


def _end(head: subprocess.Popen[bytes]) -> None:
    """End a head and all of its processes: added nodes are not in its process group."""
    if head.poll() is not None:
        return  # it has ended its own processes
    below = psutil.Process(head.pid).children(recursive=True)
    os.killpg(head.pid, signal.SIGTERM)
    try:
        head.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
    _, left = psutil.wait_procs(below, timeout=10)
    for process in left:
        process.kill()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:  # it requires a token, so it is up
        return True
    except OSError:
        return False

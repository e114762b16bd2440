"""A study on a cluster without GPU nodes: the autoscaler adds nodes, trials use all of them, it removes them again."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.study.conftest import events, tune_command
from tests.study.heads import Head, ray_head

pytestmark = [pytest.mark.ray, pytest.mark.slow]

GPU_NODE = {"resources": {"CPU": 1, "GPU": 1, "object_store_memory": 80_000_000}, "max_workers": 2}
"""A node type with a fictitious GPU: the trials train on the CPU."""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head shared by tests that do not change it."""
    with ray_head(tmp_path_factory.mktemp("head"), cpus=0, workers=GPU_NODE) as started:
        yield started


@dataclass
class Timeline:
    """The state of cluster and trials over time, a row per change."""

    head: Head
    storage: Path
    rows: list[tuple[float, int, int, int]] = field(default_factory=list)
    """Seconds, worker nodes, running trials, finished trials."""
    started: float = field(default_factory=time.monotonic)

    def update(self) -> tuple[int, int, int]:
        nodes = self.head.get("/api/v0/nodes?detail=1")["data"]["result"]["result"]
        alive = sum(node["state"] == "ALIVE" and not node["is_head_node"] for node in nodes)
        kinds = [entry["event"] for entry in events(self.storage)]
        ended = kinds.count("finished")
        now = (alive, kinds.count("started") - ended, ended)
        if not self.rows or self.rows[-1][1:] != now:
            self.rows.append((time.monotonic() - self.started, *now))
        return now

    def __str__(self) -> str:
        head = "seconds  nodes  running  ended"
        return "\n".join([head, *(f"{s:7.1f}  {n:5}  {r:7}  {e:5}" for s, n, r, e in self.rows)])


def test_nodes_are_added_for_a_study_and_removed_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ray_head(tmp_path, cpus=0, workers=GPU_NODE) as head:
        timeline = Timeline(head, tmp_path / "runs")
        assert timeline.update() == (0, 0, 0)
        driver = subprocess.Popen(
            tune_command(tmp_path / "runs", "--max-trials", "3"),
            env=head.env | {"RAY_ADDRESS": head.address, "RAYDET_CPU_FOR_GPU": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        deadline = time.monotonic() + 500
        while driver.poll() is None:
            timeline.update()
            assert time.monotonic() < deadline, timeline
            time.sleep(0.5)
        output = driver.communicate()[0]
        assert driver.returncode == 0, f"{output}\n{timeline}"
        while timeline.update()[0]:
            assert time.monotonic() < deadline, timeline
            time.sleep(0.5)
    with capsys.disabled():
        sys.stdout.write(f"\n{timeline}\n")
    assert "waiting for 1 worker of 1 GPU and 1 CPU, " in output
    assert "1 x worker starting" in output or "no node has been requested yet" in output
    assert "the cluster has 3 nodes: up to 2 trials at a time" in output
    assert max(row[1] for row in timeline.rows) == 2
    assert max(row[2] for row in timeline.rows) == 2
    assert timeline.rows[-1][1:] == (0, 0, 3)


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        (
            ["--cpus-per-worker", "4"],
            "1 worker of 1 GPU and 4 CPUs needs 4 CPUs on one node, the largest node of the cluster with all that "
            "it may scale to has 1 CPU; nearest that fits: --cpus-per-worker 1",
        ),
        (
            ["--workers", "3", "--set", "train.global_batch=3"],
            "3 workers of 1 GPU and 1 CPU each need 3 GPUs, the cluster has 0 and may scale to 2; nearest that fits: "
            "--workers 1",
        ),
    ],
)
def test_requests_beyond_the_limits_of_the_autoscaler_are_refused(
    head: Head, tmp_path: Path, arguments: list[str], refusal: str
) -> None:
    assert refusal in head.refused(tmp_path, *arguments)


ASK = """
import ray
from raydet.launch.autoscaler import wait_for_nodes
from raydet.launch.capacity import Capacity, Request
from raydet.launch.cluster import cluster

with cluster():
    unknown = Capacity([node["Resources"] for node in ray.nodes()], is_open=True)
    wait_for_nodes(Request(3, {"CPU": 1, "GPU": 1}), unknown, timeout_s=600, say=print, remedy="none")
"""


def test_the_autoscaler_is_queried_if_its_limits_are_unknown(head: Head) -> None:
    asked = subprocess.run(
        [sys.executable, "-c", ASK],
        env=head.env | {"RAY_ADDRESS": head.address},
        capture_output=True,
        text=True,
        timeout=120,
    )
    refusal = "3 workers of 1 GPU and 1 CPU each: the autoscaler has no such nodes"
    assert refusal in asked.stderr, asked.stdout
    nodes = head.get("/api/v0/nodes")["data"]["result"]
    assert nodes["num_after_truncation"] == 1  # no node was added

"""The undocumented parts of Ray that raydet uses: one test per symbol, which says what breaks without it."""

from __future__ import annotations

import ast
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import raydet.launch.ray_settings  # noqa: F401  # isort: skip  -- before ray, which reads the environment at import

import psutil
import pytest
import ray
import ray.tune
from packaging.requirements import Requirement
from packaging.version import Version

from raydet.cpu import has_gpu
from raydet.launch import ray_private
from raydet.launch.cluster import cluster

ROOT = Path(__file__).parents[3]
PRIVATE = re.compile(
    r"\bray(\.\w+)*\._(?!_)\w+|\bray\.core\.generated\b|\bray\.train\._internal\b|\bclass_cache\b"
)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with cluster():
        yield


def test_nothing_private_is_used_elsewhere() -> None:
    offenders = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in (ROOT / "raydet").rglob("*.py")
        if path.name != "ray_private.py"
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if PRIVATE.search(line)
    ]
    assert offenders == []


def test_ray_has_an_upper_bound_and_this_release_is_below_it() -> None:
    """With a newer release, run this file and tests/study with it, then raise the bound in pyproject.toml."""
    listed = re.findall(r'"(ray\[[^"]*)"', (ROOT / "pyproject.toml").read_text())
    (requirement,) = [Requirement(text) for text in listed]
    assert any(clause.operator == "<" for clause in requirement.specifier)
    assert requirement.specifier.contains(Version(ray.__version__))


def test_every_symbol_has_a_test_here() -> None:
    tree = ast.parse(Path(ray_private.__file__).read_text())
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    constants = {"HEAD_RESOURCE", "TRIAL_TITLE"}
    text = Path(__file__).read_text()
    missing = [
        name for name in (*ray_private.__all__, *defined, *constants) if f"ray_private.{name}" not in text
    ]
    assert missing == []


def test_tokens_are_found_and_forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A local Ray has its own token; a cluster's is checked before Ray retries for a minute."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    try:
        ray_private.forget_token()
        assert ray_private.is_token_auth_enabled()
        assert not ray_private.has_token()
        monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
        ray_private.forget_token()
        assert ray_private.has_token()
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        ray_private.forget_token()
        assert not ray_private.is_token_auth_enabled()
    finally:
        monkeypatch.undo()
        ray_private.forget_token()


def test_addresses_are_completed() -> None:
    """RAY_ADDRESS may be HOST:PORT or auto."""
    assert ray_private.canonicalize_bootstrap_address("127.0.0.1:6379") == "127.0.0.1:6379"


@pytest.mark.ray
def test_a_head_answers_who_has_its_token(local_ray: None) -> None:
    """`find_head`: which Ray a head runs, which nodes it has, whether it is open."""
    address = ray.get_runtime_context().gcs_address
    stub = ray_private.NodeInfoGcsServiceStub(ray_private.head_channel(address))
    assert stub.CheckAlive(ray_private.CheckAliveRequest(), timeout=10).ray_version == ray.__version__
    nodes = stub.GetAllNodeInfo(ray_private.GetAllNodeInfoRequest(), timeout=10).node_info_list
    assert [node.node_id.hex() for node in nodes] == [node["NodeID"] for node in ray.nodes()]
    assert set(ray_private.find_node_ids()) >= {node["NodeID"] for node in ray.nodes()}
    with ray_private.head_channel(address, has_token=False) as channel:
        assert hasattr(ray_private.NodeInfoGcsServiceStub(channel), "CheckAlive")


@pytest.mark.ray
def test_free_resources_are_known_by_node(local_ray: None) -> None:
    """Runs that have lost workers continue with as many as fit."""
    (node,) = ray.nodes()
    assert ray_private.available_resources_per_node()[node["NodeID"]]["CPU"] > 0


@pytest.mark.ray
def test_the_head_is_a_resource(local_ray: None) -> None:
    """Trials run on the head, which is not pre-empted."""
    assert ray_private.HEAD_RESOURCE in ray.nodes()[0]["Resources"]


@pytest.mark.ray
def test_the_cluster_says_what_its_autoscaler_does(local_ray: None) -> None:
    """Waiting for nodes says why; capacity counts the nodes that may join."""
    status = ray_private.cluster_status(10)
    assert isinstance(status, ray_private.GetClusterStatusReply)
    (node,) = status.cluster_resource_state.node_states
    assert node.status != ray_private.NodeStatus.DEAD
    assert {"autoscaler_state_version", "pending_instances", "infeasible_gang_resource_requests"} <= {
        field.name for field in status.autoscaling_state.DESCRIPTOR.fields
    }


@pytest.mark.ray
def test_trials_are_known_by_the_title_of_their_process(local_ray: None, tmp_path: Path) -> None:
    """`raydet chaos` kills them."""

    def trial(config: dict[str, str]) -> None:
        ray.tune.report({"title": " ".join(psutil.Process().cmdline())})

    tuner = ray.tune.Tuner(trial, run_config=ray.tune.RunConfig(storage_path=str(tmp_path), verbose=0))
    (result,) = tuner.fit()
    assert result.metrics is not None
    assert result.metrics["title"].startswith(ray_private.TRIAL_TITLE)


def test_keys_stay_in_the_driver() -> None:
    """No AWS key is written into Ray's logs."""
    code = (
        "from raydet.launch import ray_private; ray_private.keep_keys_out_of_trials()\n"
        "from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE as names\n"
        "assert names and not [name for name in names if name.startswith('AWS_')], names"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Data, in Ray's own code
def test_a_run_starts_no_process_that_it_does_not_need() -> None:
    """And ends without waiting for one: each costs a trial about a second."""
    from ray.train.torch import TorchTrainer

    def callbacks(trainer: type[TorchTrainer]) -> dict[str, object]:
        return {type(each).__name__: each for each in trainer(lambda: None)._create_default_callbacks()}

    everything = callbacks(TorchTrainer)
    sets, cleaner = "DatasetsCallback", "PlacementGroupCleanerCallback"
    assert {sets, cleaner} < everything.keys()
    for is_local, interval_s in ((True, 0.2), (False, 1.0)):
        found = callbacks(ray_private.lean_trainer(is_local=is_local))
        assert found.keys() == everything.keys() - {sets}
        assert found[cleaner]._check_interval_s == interval_s  # type: ignore[attr-defined]


def test_workers_of_one_machine_meet_on_the_loopback() -> None:
    """Torch's store has no authentication: on a laptop it must not listen on every interface."""
    import inspect

    function, backend = ray_private.rendezvous_function(), ray_private.torch_backend()
    address, port = function()
    with socket.socket() as listener:
        listener.bind(("", port))
    assert address
    assert function.__name__ in inspect.getsource(sys.modules[backend.__module__])
    assert "execute_single" in inspect.getsource(backend.on_start)


@ray.remote
def _parent() -> list[str]:
    parent = psutil.Process().parent()
    return parent.cmdline() if parent else []


@pytest.mark.skipif(has_gpu(), reason="workers are not forked on a machine with a GPU")
def test_workers_of_a_local_ray_are_forked(local_ray: None) -> None:
    """`ray_private.starting_workers_with`: without it every worker imports Ray twice, and torch."""
    assert "raydet.launch.fork_server" in ray.get(_parent.remote())

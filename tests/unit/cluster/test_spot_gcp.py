"""Spot machines on Compute Engine, and what happens where there are none.

Ray's own provider and Google's own client, with its description of the API; the answers are put onto the wire here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("googleapiclient", reason="google-api-python-client is absent")

from googleapiclient.discovery import build
from googleapiclient.http import HttpMock
from ray.autoscaler._private.gcp.node import GCPCompute
from ray.autoscaler._private.providers import _get_node_provider

pytestmark = pytest.mark.slow  # the clouds' own clients take long to start

Config = dict[str, Any]
Refusal = Callable[[Config], Config | None]
LABELS = {"ray-node-name": "ray-raydet-worker", "ray-node-type": "worker", "ray-user-node-type": "a100"}
EXHAUSTED = {"errors": [{"code": "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "message": "no"}]}


class Zone(HttpMock):
    """Compute Engine: starts every machine, but for those that `refusal` names an error for."""

    def __init__(self) -> None:
        super().__init__(headers={"status": "200"})
        self.credentials = None
        self.asked: list[Config] = []
        self.refusal: Refusal = lambda _: None

    def request(
        self, uri: str, method: str = "GET", body: Any = None, *args: object, **kwargs: object
    ) -> Any:
        if method == "POST":
            self.asked.append(json.loads(body))
            answer: Config = {"name": f"operation-{len(self.asked)}"}
        else:
            error = self.refusal(self.asked[-1])
            answer = {"status": "DONE"} | ({"error": error} if error else {})
        self.data = json.dumps(answer).encode()
        return super().request(uri, method, body)


@pytest.fixture(scope="module")
def connected(documents: Callable[[str], list[Config]]) -> Iterator[tuple[Any, Zone, Config]]:
    """The provider of gcp.yaml in such a zone; built once: reading Google's description takes seconds."""
    zone = Zone()
    compute = build("compute", "v1", http=zone, static_discovery=True)
    (config,) = documents("gcp.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "ray.autoscaler._private.gcp.node_provider.construct_clients_from_provider_config",
            lambda _: (None, None, compute, None),
        )
        patch.setattr(GCPCompute, "get_new_authorized_http", lambda _, http: http)
        provider = _get_node_provider(config["provider"], "raydet", use_cache=False)
        yield provider, zone, config["available_node_types"]["a100"]["node_config"]


@pytest.fixture
def start(connected: tuple[Any, Zone, Config]) -> Callable[[Refusal], tuple[Any, Zone, Config]]:
    """The provider, the zone with these refusals, and the config of an A100 node."""

    def start(refusal: Refusal) -> tuple[Any, Zone, Config]:
        connected[1].asked.clear()
        connected[1].refusal = refusal
        return connected

    return start


def model(request: Config) -> str:
    return str(request["scheduling"]["provisioningModel"])


def test_spot_comes_first(start: Any) -> None:
    provider, zone, node = start(lambda _: None)
    assert len(provider.create_node(node, LABELS, 2)) == 2
    assert [model(request) for request in zone.asked] == ["SPOT", "SPOT"]
    assert zone.asked[0]["labels"]["ray-cluster-name"] == "raydet"


def test_without_spot_capacity_the_same_machine_comes_on_demand(start: Any) -> None:
    provider, zone, node = start(lambda request: EXHAUSTED if model(request) == "SPOT" else None)
    assert len(provider.create_node(node, LABELS, 2)) == 2
    assert [model(request) for request in zone.asked] == ["SPOT", "STANDARD"] * 2
    assert zone.asked[0]["machineType"] == zone.asked[1]["machineType"]
    assert "instanceTerminationAction" not in zone.asked[1]["scheduling"]  # refused for on-demand machines
    assert model(node) == "SPOT"  # the next one is asked for as spot again


def test_a_refusal_that_is_not_about_spot_is_passed_on(start: Any) -> None:
    provider, zone, node = start(lambda _: {"errors": [{"code": "PERMISSIONS_ERROR"}]})
    with pytest.raises(Exception, match="PERMISSIONS_ERROR"):
        provider.create_node(node, LABELS, 2)
    assert [model(request) for request in zone.asked] == ["SPOT"]


def test_no_capacity_at_all_is_passed_on(start: Any) -> None:
    provider, zone, node = start(lambda _: EXHAUSTED)
    with pytest.raises(Exception, match="ZONE_RESOURCE_POOL_EXHAUSTED"):
        provider.create_node(node, LABELS, 1)
    assert [model(request) for request in zone.asked] == ["SPOT", "STANDARD"]

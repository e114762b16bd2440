"""Spot machines on EC2, and what happens where there are none.

Ray's own provider and Amazon's own client; EC2's answers are put onto the wire here.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs

import pytest
from filled import VALUES
from ray.autoscaler._private.providers import _get_node_provider, _get_node_provider_cls
from ray.autoscaler.node_launch_exception import NodeLaunchException

boto3 = pytest.importorskip("boto3", reason="moto[server] brings boto3")

from botocore.awsrequest import AWSResponse  # noqa: E402 -- comes with boto3

pytestmark = pytest.mark.slow  # the clouds' own clients take long to start

Config = dict[str, Any]
TAGS = {"ray-node-name": "ray-raydet-worker", "ray-node-type": "worker", "ray-user-node-type": "h100"}
IS_SPOT = "InstanceMarketOptions.MarketType"


class Ec2:
    """Starts every machine, but for the requests that `refusal` names an error code for."""

    def __init__(self, client: Any) -> None:
        self.asked: list[dict[str, str]] = []
        self.refusal: Callable[[dict[str, str]], str | None] = lambda _: None
        client.meta.events.register_first("before-send.ec2.RunInstances", self._answer)

    def _answer(self, request: Any, **_: object) -> AWSResponse:
        fields = {key: values[0] for key, values in parse_qs(request.body).items()}
        self.asked.append(fields)
        code = self.refusal(fields)
        count = int(fields["MaxCount"])
        machines = "".join(
            f"<item><instanceId>i-{len(self.asked)}{number}</instanceId>"
            "<instanceState><code>0</code><name>pending</name></instanceState></item>"
            for number in range(count)
        )
        started = f"<RunInstancesResponse><instancesSet>{machines}</instancesSet></RunInstancesResponse>"
        error = (
            f"<Response><Errors><Error><Code>{code}</Code><Message>no</Message></Error></Errors></Response>"
        )
        raw = SimpleNamespace(stream=lambda: iter([(error if code else started).encode()]))
        return AWSResponse(request.url, 400 if code else 200, {}, raw)


@pytest.fixture(scope="module")
def connected(documents: Callable[[str], list[Config]]) -> tuple[Any, Ec2]:
    """Built once: reading Amazon's model of EC2 takes a second."""
    (config,) = documents("aws.yaml")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        provider = _get_node_provider(config["provider"], "raydet", use_cache=False)
        return provider, Ec2(provider.ec2_fail_fast.meta.client)


@pytest.fixture
def ec2(connected: tuple[Any, Ec2]) -> Ec2:
    connected[1].asked.clear()
    connected[1].refusal = lambda _: None
    return connected[1]


@pytest.fixture
def create(connected: tuple[Any, Ec2], documents: Callable[[str], list[Config]]) -> Callable[[int], Config]:
    """Starts so many H100 nodes of aws.yaml."""
    (config,) = documents("aws.yaml")
    node = config["available_node_types"]["h100"]["node_config"]

    def create(count: int) -> Config:
        created: Config = connected[0].create_node(node, TAGS, count)
        assert "InstanceMarketOptions" in node  # the next one is asked for as spot again
        return created

    return create


def test_spot_comes_first(ec2: Ec2, create: Callable[[int], Config]) -> None:
    assert create(2).keys() == {"i-10", "i-11"}
    (request,) = ec2.asked
    assert request[IS_SPOT] == "spot"
    assert request["InstanceType"] == "p5.4xlarge"
    # what the head's role asks for
    assert request["TagSpecification.1.Tag.1.Key"] == "ray-cluster-name"
    assert request["TagSpecification.1.Tag.1.Value"] == "raydet"


@pytest.mark.parametrize("code", ["InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded"])
def test_without_spot_the_same_machine_comes_on_demand(
    code: str, ec2: Ec2, create: Callable[[int], Config]
) -> None:
    ec2.refusal = lambda request: code if IS_SPOT in request else None
    assert len(create(2)) == 2
    assert [IS_SPOT in request for request in ec2.asked] == [True] * (len(ec2.asked) - 1) + [False]
    assert len(ec2.asked) >= 2
    spot, on_demand = ec2.asked[-2:]
    different = {key for key in spot.keys() | on_demand.keys() if spot.get(key) != on_demand.get(key)}
    assert {key.split(".")[0] for key in different} <= {"InstanceMarketOptions", "ClientToken"}


def test_a_refusal_that_is_not_about_spot_is_passed_on(ec2: Ec2, create: Callable[[int], Config]) -> None:
    ec2.refusal = lambda _: "UnauthorizedOperation"
    with pytest.raises(NodeLaunchException, match="UnauthorizedOperation"):
        create(1)
    assert all(IS_SPOT in request for request in ec2.asked)


def test_no_capacity_at_all_is_passed_on(ec2: Ec2, create: Callable[[int], Config]) -> None:
    ec2.refusal = lambda _: "InsufficientInstanceCapacity"
    with pytest.raises(NodeLaunchException, match="InsufficientInstanceCapacity"):
        create(1)
    assert {IS_SPOT in request for request in ec2.asked} == {True, False}


@pytest.mark.slow
def test_nothing_is_created_for_the_cluster(
    monkeypatch: pytest.MonkeyPatch, documents: Callable[[str], list[Config]]
) -> None:
    """`ray up` in an account that has what aws.yaml names, and no more."""
    moto = pytest.importorskip("moto")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with moto.mock_aws():
        account = boto3.client("ec2", region_name=VALUES["RAYDET_AWS_REGION"])
        subnet = account.describe_subnets()["Subnets"][0]
        group = account.create_security_group(GroupName="raydet", Description="raydet", VpcId=subnet["VpcId"])
        (config,) = documents("aws.yaml")
        for node_type in config["available_node_types"].values():
            node_type["node_config"]["SubnetIds"] = [subnet["SubnetId"]]
            node_type["node_config"]["SecurityGroupIds"] = [group["GroupId"]]
        before = account.describe_security_groups()["SecurityGroups"]
        bootstrapped = _get_node_provider_cls(config["provider"]).bootstrap_config(config)
        assert bootstrapped == config | {"head_node": {}}
        assert account.describe_security_groups()["SecurityGroups"] == before
        assert account.describe_key_pairs()["KeyPairs"] == []
        assert boto3.client("iam").list_roles()["Roles"] == []

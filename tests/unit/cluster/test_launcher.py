"""aws.yaml and gcp.yaml against Ray's own loader and schema, and against the clouds' own descriptions of their APIs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fill import fill
from filled import CLUSTER, VALUES
from ray.autoscaler._private.providers import _get_node_provider_cls
from ray.autoscaler._private.util import prepare_config, validate_config

Read = Callable[[str], list[dict[str, Any]]]
Config = dict[str, Any]

LAUNCHED = ("aws.yaml", "gcp.yaml")


def load_as_ray(config: Config) -> Config:
    prepared: Config = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_loads_it(name: str, documents: Read) -> None:
    (config,) = documents(name)
    prepared = load_as_ray(config)
    assert prepared["available_node_types"].keys() == config["available_node_types"].keys()


@pytest.mark.parametrize("name", LAUNCHED)
@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ([], "max_worker", 8),
        ([], "idle_timeout_minutes", "ten"),
        ([], "head_node_type", "heads"),
        (["docker"], "imag", "raydet"),
        (["auth"], "ssh_usr", "ubuntu"),
        (["provider"], "use_internal_ips", "yes"),
        (["available_node_types", "a100"], "min_worker", 0),
        (["available_node_types", "a100"], "resources", {"GPU": 0.5}),
        (["available_node_types", "a100"], "node_config", []),
    ],
)
def test_ray_refuses_a_wrong_field(
    name: str, place: list[str], key: str, value: object, documents: Read
) -> None:
    (config,) = documents(name)
    part = config
    for step in place:
        part = part[step]
    part[key] = value
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        load_as_ray(config)


@pytest.mark.parametrize("name", LAUNCHED)
def test_workers_start_from_none_and_spot_comes_first(name: str, documents: Read) -> None:
    (config,) = documents(name)
    types = dict(config["available_node_types"])
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert "scheduling" not in head["node_config"]
    assert types.keys() == {"a100", "h100"}
    for node_type in types.values():
        assert node_type["min_workers"] == 0
        assert 0 < node_type["max_workers"] <= config["max_workers"]
        assert node_type["resources"]["GPU"] >= 1
        node = node_type["node_config"]
        market = node.get("InstanceMarketOptions", {}).get("MarketType")
        assert "SPOT" in (str(market).upper(), node.get("scheduling", {}).get("provisioningModel"))
    assert config["idle_timeout_minutes"] <= 15
    assert config["provider"]["cache_stopped_nodes"] is False


@pytest.mark.parametrize("name", LAUNCHED)
def test_nothing_is_open(name: str, documents: Read) -> None:
    (config,) = documents(name)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "--env RAY_AUTH_TOKEN_PATH=/opt/raydet/auth_token" in config["docker"]["run_options"]
    assert config["file_mounts"]["/opt/raydet/auth_token"] == "~/.ray/auth_token"
    assert "@sha256:" in config["docker"]["image"]
    starts = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 1
    assert "--dashboard-host=127.0.0.1" in starts[0]
    text = json.dumps(config)
    assert "0.0.0.0" not in text
    assert "--host 127.0.0.1" in text  # MLflow
    assert "accessConfigs" not in text  # a public address on Google's machines
    assert config["auth"]["ssh_proxy_use_node_id"] is True


@pytest.mark.parametrize("name", LAUNCHED)
def test_files_that_go_to_the_nodes_exist(name: str, documents: Read) -> None:
    (config,) = documents(name)
    local = [path for path in config["file_mounts"].values() if not path.startswith("~")]
    assert local == ["cluster/launcher"]
    module = config["provider"]["module"].split(".")[0]
    assert (CLUSTER.parent / local[0] / f"{module}.py").exists()


# Amazon's own model of RunInstances, which botocore carries.


@pytest.fixture(scope="module")
def run_instances() -> Any:
    """The shape of the request, with the names of machine types."""
    loaders = pytest.importorskip("botocore.loaders", reason="moto[server] brings botocore")
    from botocore.model import ServiceModel

    return ServiceModel(loaders.Loader().load_service_model("ec2", "service-2")).operation_model(
        "RunInstances"
    )


def faults_of_ec2(node: Config, operation: Any) -> list[str]:
    from botocore.validate import ParamValidator

    request = {key: value for key, value in node.items() if key != "SubnetIds"}  # a key of Ray's
    request |= {"MinCount": 1, "MaxCount": 1, "SubnetId": node["SubnetIds"][0]}
    report = ParamValidator().validate(request, operation.input_shape)
    faults = [report.generate_report()] if report.has_errors() else []
    members = operation.input_shape.members
    if node["InstanceType"] not in members["InstanceType"].enum:
        faults.append(f"InstanceType {node['InstanceType']}")
    market = node.get("InstanceMarketOptions", {})
    if market and market["MarketType"] not in members["InstanceMarketOptions"].members["MarketType"].enum:
        faults.append(f"MarketType {market['MarketType']}")
    return faults


def test_ec2_knows_every_field(documents: Read, run_instances: Any) -> None:
    (config,) = documents("aws.yaml")
    for node_type in config["available_node_types"].values():
        assert faults_of_ec2(node_type["node_config"], run_instances) == []


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("InstanceTyp", "p4d.24xlarge", "InstanceTyp"),
        ("InstanceType", "p4d.48xlarge", "p4d.48xlarge"),
        ("InstanceMarketOptions", {"MarketType": "cheap"}, "cheap"),
        ("InstanceMarketOptions", {"MarketType": "spot", "SpotOption": {}}, "SpotOption"),
        ("BlockDeviceMappings", [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": "150"}}], "VolumeSize"),
        ("IamInstanceProfile", "raydet-worker", "IamInstanceProfile"),
    ],
)
def test_ec2_refuses_a_wrong_field(
    key: str, value: object, fault: str, documents: Read, run_instances: Any
) -> None:
    (config,) = documents("aws.yaml")
    node = config["available_node_types"]["a100"]["node_config"] | {key: value}
    assert fault in "".join(faults_of_ec2(node, run_instances))


# Google's own description of an instance, which its client carries.


@pytest.fixture(scope="module")
def instance_schema() -> jsonschema.Draft7Validator:
    """JSON Schema of compute.instances.insert, in which an unknown field is an error."""
    cache = pytest.importorskip(
        "googleapiclient.discovery_cache", reason="google-api-python-client is absent"
    )
    path = Path(cache.__file__).parent / "documents" / "compute.v1.json"
    described = json.loads(path.read_text())["schemas"]
    needed: Config = {}
    waiting = ["Instance"]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed[name] = closed(described[name])
            waiting += [ref.removeprefix("#/definitions/") for ref in references(needed[name])]
    return jsonschema.Draft7Validator({"$ref": "#/definitions/Instance", "definitions": needed})


def closed(node: Any) -> Any:
    """Google's discovery format as JSON Schema."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return {"$ref": f"#/definitions/{node['$ref']}"}
    if node.get("format") in ("int64", "uint64"):
        return {"type": ["string", "integer"]}
    kept = {key: closed(node[key]) for key in ("type", "enum", "items") if key in node}
    if "properties" in node:
        kept["properties"] = {key: closed(value) for key, value in node["properties"].items()}
        kept["additionalProperties"] = False
    return kept


def references(node: Any) -> list[str]:
    if isinstance(node, list):
        return [ref for item in node for ref in references(item)]
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [ref for value in node.values() for ref in references(value)]
    return []


def test_compute_engine_knows_every_field(
    documents: Read, instance_schema: jsonschema.Draft7Validator
) -> None:
    (config,) = documents("gcp.yaml")
    for node_type in config["available_node_types"].values():
        instance_schema.validate(node_type["node_config"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("machinType", "a2-highgpu-1g"),
        ("scheduling", {"provisioningModel": "CHEAP"}),
        ("scheduling", {"provisioningMode": "SPOT"}),
        ("scheduling", [{"preemptible": True}]),
        ("disks", [{"boot": "yes"}]),
        ("serviceAccounts", [{"mail": "raydet-worker"}]),
    ],
)
def test_compute_engine_refuses_a_wrong_field(
    key: str, value: object, documents: Read, instance_schema: jsonschema.Draft7Validator
) -> None:
    (config,) = documents("gcp.yaml")
    node = config["available_node_types"]["a100"]["node_config"] | {key: value}
    assert not instance_schema.is_valid(node)


# Rights.


@pytest.mark.parametrize("path", sorted((CLUSTER / "iam").glob("aws-*.json")), ids=lambda path: path.name)
def test_amazons_roles_are_narrow(path: Path) -> None:
    policy = json.loads(fill(path.read_text(), VALUES, source=path.name))
    for statement in policy["Statement"]:
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            assert "*" not in action
            reads = action.split(":")[1].startswith("Describe") or action == "ecr:GetAuthorizationToken"
            assert reads or statement.get("Resource") != "*"


def test_the_head_may_start_exactly_its_worker_types(documents: Read) -> None:
    (config,) = documents("aws.yaml")
    policy = json.loads((CLUSTER / "iam" / "aws-head.json").read_text())
    (start,) = [part for part in policy["Statement"] if part["Sid"] == "StartWorkersOfThisCluster"]
    types = [
        node_type["node_config"]["InstanceType"]
        for name, node_type in config["available_node_types"].items()
        if name != config["head_node_type"]
    ]
    condition = start["Condition"]["StringEquals"]
    assert sorted(condition["ec2:InstanceType"]) == sorted(types)
    assert condition["aws:RequestTag/ray-cluster-name"] == config["cluster_name"]


@pytest.mark.parametrize(("name", "key"), [("aws.yaml", "SecurityGroupIds"), ("gcp.yaml", "serviceAccounts")])
def test_what_ray_would_create_must_be_named(name: str, key: str, documents: Read) -> None:
    pytest.importorskip("googleapiclient" if name == "gcp.yaml" else "boto3")
    (config,) = documents(name)
    provider = _get_node_provider_cls(config["provider"])
    del config["available_node_types"]["h100"]["node_config"][key]
    with pytest.raises(ValueError, match=rf"available_node_types\.h100\.node_config: {key} is missing"):
        provider.bootstrap_config(config)
    config["auth"].pop("ssh_private_key")
    with pytest.raises(ValueError, match="auth: ssh_private_key is missing"):
        provider.bootstrap_config(config)


def test_google_config_needs_no_look_at_the_account(documents: Read) -> None:
    pytest.importorskip("googleapiclient")
    (config,) = documents("gcp.yaml")
    provider = _get_node_provider_cls(config["provider"])
    assert provider.bootstrap_config(config) == config | {"head_node": {}}

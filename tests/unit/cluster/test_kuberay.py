"""The manifests for Kubernetes against KubeRay's published definitions, Kubernetes' own, and Ray's autoscaler."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from filled import CLUSTER

Read = Callable[[str], list[dict[str, Any]]]
Document = dict[str, Any]

DEFINITIONS = Path(__file__).parents[4] / "shared" / "schemas" / "kuberay"
KUBERNETES = "1.34"
CORE = ("kuberay/namespace.yaml", "kuberay/redis.yaml", "kuberay/network.yaml", "mlflow/mlflow.yaml")
RAY = {"RayCluster": "kuberay/raycluster.yaml", "RayJob": "kuberay/rayjob.yaml"}


# KubeRay.


@pytest.fixture(scope="module")
def definitions() -> dict[str, jsonschema.Draft7Validator]:
    """JSON Schema by kind, in which an unknown field is an error."""
    if not DEFINITIONS.is_dir():
        pytest.skip("KubeRay's definitions are not beside this clone")
    found = {}
    for path in DEFINITIONS.glob("*.yaml"):
        definition = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        kind = definition["spec"]["names"]["kind"]
        (version,) = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
        schema = closed(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        found[kind] = jsonschema.Draft7Validator(schema)
    return found


def closed(node: Any) -> Any:
    """A definition's schema as JSON Schema without room for unknown fields."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if node.get("x-kubernetes-preserve-unknown-fields"):
        return {}
    kept = {key: closed(value) for key, value in node.items() if not key.startswith("x-kubernetes-")}
    kept.pop("format", None)
    if isinstance(kept.get("properties"), dict):
        kept.setdefault("additionalProperties", False)
    return kept


@pytest.mark.parametrize(("kind", "name"), RAY.items())
def test_kuberay_knows_every_field(
    kind: str, name: str, documents: Read, definitions: dict[str, jsonschema.Draft7Validator]
) -> None:
    (document,) = documents(name)
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", kind)
    definitions[kind].validate(document)


@pytest.mark.parametrize("kind", RAY)
@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ([], "rayVersio", "2.60.0"),
        ([], "headGroupSpec", None),
        (["autoscalerOptions"], "version", "v3"),
        (["autoscalerOptions"], "idleTimeoutSeconds", "600"),
        (["authOptions"], "mode", "password"),
        (["gcsFaultToleranceOptions"], "redisAddres", "redis:6379"),
        (["headGroupSpec", "rayStartParams"], "num-cpus", 0),
        (["headGroupSpec", "template", "spec", "containers", 0], "imag", "raydet"),
        (["workerGroupSpecs", 0], "minReplica", 0),
        (["workerGroupSpecs", 0], "maxReplicas", "8"),
        (["workerGroupSpecs", 0, "template", "spec", "containers", 0, "resources"], "limit", {}),
        (["workerGroupSpecs", 0, "template", "spec", "securityContext"], "runAsNonRoot", "yes"),
        (["workerGroupSpecs", 0, "template", "spec", "tolerations", 0], "operators", "Exists"),
    ],
)
def test_kuberay_refuses_a_wrong_field(
    kind: str,
    place: list[str | int],
    key: str,
    value: object,
    documents: Read,
    definitions: dict[str, jsonschema.Draft7Validator],
) -> None:
    document = copy.deepcopy(documents(RAY[kind])[0])  # aliases in YAML are one object, written twice
    part: Any = cluster_spec(document)
    for step in place:
        part = part[step]
    part[key] = value
    assert not definitions[kind].is_valid(document)


@pytest.mark.parametrize(
    ("key", "value"), [("entrypoints", "x"), ("backoffLimit", "3"), ("shutdownAfterJobFinishes", 1)]
)
def test_kuberay_refuses_a_wrong_job(
    key: str, value: object, documents: Read, definitions: dict[str, jsonschema.Draft7Validator]
) -> None:
    (document,) = documents(RAY["RayJob"])
    document["spec"][key] = value
    assert not definitions["RayJob"].is_valid(document)


def cluster_spec(document: Document) -> Document:
    spec: Document = document["spec"]
    return spec.get("rayClusterSpec", spec)


def test_the_job_has_the_cluster_of_the_other_manifest(documents: Read) -> None:
    assert cluster_spec(documents(RAY["RayJob"])[0]) == documents(RAY["RayCluster"])[0]["spec"]


# Ray's autoscaler.


@pytest.fixture
def autoscaling(documents: Read) -> Any:
    """What the autoscaler makes of the RayCluster, with its own checks."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    (document,) = documents(RAY["RayCluster"])
    return AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(document), skip_content_hash=True)


def chosen(autoscaling: Any, availability: dict[str, float], gpus: int) -> dict[str, int]:
    """Which groups the autoscaler starts nodes of, for so many requests of one GPU."""
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    wanted = [ResourceRequestUtil.make({"GPU": 1, "CPU": 10})] * gpus
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            node_type_configs=autoscaling.get_node_type_configs(),
            disable_launch_config_check=True,
            max_num_nodes=autoscaling.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(wanted),
            recoverable_resource_availabilities=availability,
        )
    )
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def test_gpu_groups_start_from_none(autoscaling: Any) -> None:
    groups = autoscaling.get_node_type_configs()
    assert groups["headgroup"].resources["CPU"] == 0
    for name in ("gpu-spot", "gpu-on-demand"):
        assert groups[name].min_worker_nodes == 0
        assert groups[name].resources["GPU"] == 1
    assert chosen(autoscaling, {}, gpus=0) == {}


def test_spot_comes_first_and_on_demand_where_there_is_none(autoscaling: Any) -> None:
    assert chosen(autoscaling, {}, gpus=3) == {"gpu-spot": 3}
    # what is left of a group whose pods found no machine in time
    assert chosen(autoscaling, {"gpu-spot": 0.0}, gpus=3) == {"gpu-on-demand": 3}


# Kubernetes' own kinds.


@pytest.mark.parametrize("name", CORE)
def test_kubernetes_knows_every_field(name: str, documents: Read) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is absent").validate
    for document in documents(name):
        validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("name", "number", "place", "key", "value"),
    [
        ("kuberay/namespace.yaml", 3, ["spec"], "accessMode", ["ReadWriteMany"]),
        ("kuberay/network.yaml", 1, ["spec"], "podSelectors", {}),
        ("kuberay/network.yaml", 2, ["spec", "ingress", 0, "ports", 0], "port", []),
        ("kuberay/redis.yaml", 0, ["spec", "template", "spec", "containers", 0], "imag", "redis"),
        ("mlflow/mlflow.yaml", 0, ["spec"], "replicas", "1"),
        ("mlflow/mlflow.yaml", 0, ["spec", "template", "spec", "securityContext"], "runAsNotRoot", True),
        ("mlflow/mlflow.yaml", 2, ["spec", "volumeClaimTemplates", 0, "spec"], "resource", {}),
    ],
)
def test_kubernetes_refuses_a_wrong_field(
    name: str, number: int, place: list[str | int], key: str, value: object, documents: Read
) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is absent")
    document = documents(name)[number]
    part: Any = document
    for step in place:
        part = part[step]
    part[key] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


# What the project promises of them.


def pods(node: Any) -> Iterator[Document]:
    """Every pod's spec within a document."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pods(value)
    elif isinstance(node, list):
        for item in node:
            yield from pods(item)


@pytest.mark.parametrize("name", [*CORE[1:], *RAY.values()])
def test_pods_have_no_more_rights_than_they_need(name: str, documents: Read) -> None:
    for pod in pods(documents(name)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "@sha256:" in container["image"]
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        # Ray's head asks the API for pods; nobody else does
        is_head = pod["containers"][0]["name"] == "ray-head"
        assert is_head or pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", RAY.values())
def test_ray_is_reached_with_its_token_only(name: str, documents: Read) -> None:
    spec = cluster_spec(documents(name)[0])
    assert spec["authOptions"] == {"mode": "token", "secretName": "raydet-ray-token"}
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_every_pod_is_closed_but_for_named_peers(documents: Read) -> None:
    policies = {
        document["metadata"]["name"]: document["spec"] for document in documents("kuberay/network.yaml")
    }
    everything = policies.pop("nothing-comes-in")
    assert everything == {"podSelector": {}, "policyTypes": ["Ingress"]}
    for spec in policies.values():
        assert spec["podSelector"] != {}
        for rule in spec["ingress"]:
            assert rule["from"]
            assert all(peer.get("podSelector") for peer in rule["from"])


def test_services_are_internal_and_lead_to_pods(documents: Read) -> None:
    found = [document for name in CORE for document in documents(name)]
    labels = [
        document["spec"]["template"]["metadata"]["labels"]
        for document in found
        if document["kind"] in ("Deployment", "StatefulSet")
    ]
    services = [document["spec"] for document in found if document["kind"] == "Service"]
    assert len(services) == 3
    for service in services:
        assert service["selector"] in labels
        assert "type" not in service


def test_no_secret_stands_in_a_manifest() -> None:
    for path in CLUSTER.rglob("*.yaml"):
        text = path.read_text()
        assert "kind: Secret\n" not in text
        assert "stringData" not in text


def test_mlflow_answers_to_the_names_of_its_service_and_runs_no_jobs(documents: Read) -> None:
    (container,) = documents("mlflow/mlflow.yaml")[0]["spec"]["template"]["spec"]["containers"]
    (hosts,) = [word for word in container["args"] if word.startswith("--allowed-hosts=")]
    names = hosts.removeprefix("--allowed-hosts=").split(",")
    assert {"mlflow:5000", "mlflow.raydet.svc:5000", "localhost:5000"} <= set(names)
    assert not any("*" in name for name in names)
    values = {one["name"]: one.get("value") for one in container["env"]}
    assert values["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    # Kubernetes puts a variable into another only where it stands before it
    order = [one["name"] for one in container["env"]]
    assert order.index("POSTGRES_PASSWORD") < order.index("MLFLOW_BACKEND_STORE_URI")

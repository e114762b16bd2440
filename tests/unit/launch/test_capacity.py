"""What a cluster may scale to: which requests are refused, with which message, and what is offered instead."""

from __future__ import annotations

import pytest

from raydet.launch.capacity import Capacity, NodeType, Request, refusal

HEAD = {"CPU": 2.0}
A100 = NodeType("a100", {"CPU": 16, "GPU": 8}, more=2)
T4 = NodeType("t4", {"CPU": 4, "GPU": 1}, more=10)
CLOUD = Capacity([HEAD], [A100, T4], most_new=4)
"""At most 2 x 8 + 2 x 1 GPUs."""


def of(cpus: int, gpus: int = 1) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}


def said(request: Request, capacity: Capacity, sizes: list[int], where: str = "the cluster") -> str | None:
    return refusal(request, capacity, sizes=sizes, where=where)


def test_the_best_nodes_count_up_to_the_limit_of_the_cluster() -> None:
    assert CLOUD.slots(of(2)) == 18
    assert CLOUD.slots(of(4)) == 10  # four on each A100 node, one on each T4
    assert CLOUD.slots(of(8)) == 4
    assert (CLOUD.now("GPU"), CLOUD.most("GPU"), CLOUD.largest("CPU")) == (0, 18, 16)


@pytest.mark.parametrize("workers", [1, 18])
def test_what_it_may_scale_to_is_not_refused(workers: int) -> None:
    assert said(Request(workers, of(2)), CLOUD, []) is None


def test_too_many_workers() -> None:
    assert said(Request(32, of(2)), CLOUD, [32, 16, 8]) == (
        "32 workers of 1 GPU and 2 CPUs each need 32 GPUs, the cluster has 0 and may scale to 18; "
        "nearest that fits: --workers 16"
    )


def test_fewer_threads_are_offered_before_fewer_workers() -> None:
    assert said(Request(16, of(4)), CLOUD, [16, 8]) == (
        "16 workers of 1 GPU and 4 CPUs each need 64 CPUs, the cluster has 2 and may scale to 42; "
        "nearest that fits: --cpus-per-worker 2"
    )


def test_a_worker_larger_than_any_node() -> None:
    assert said(Request(1, of(32)), CLOUD, [1]) == (
        "1 worker of 1 GPU and 32 CPUs needs 32 CPUs on one node, the largest node of the cluster with all that "
        "it may scale to has 16 CPUs; nearest that fits: --cpus-per-worker 16"
    )


def test_no_gpu_at_all() -> None:
    assert said(Request(4, of(2)), Capacity([HEAD]), [4, 2, 1]) == (
        "4 workers of 1 GPU and 2 CPUs each need 4 GPUs, the cluster has 0 and does not scale; "
        "nearest that fits: --cpu --workers 2 --cpus-per-worker 1"
    )


def test_gpus_and_cpus_on_different_nodes() -> None:
    apart = Capacity([{"CPU": 8}, {"CPU": 1, "GPU": 2}])
    assert said(Request(2, of(1)), apart, [2, 1]) == (
        "2 workers of 1 GPU and 1 CPU each need 2 slots, the nodes of the cluster have only 1 of that shape; "
        "nearest that fits: --workers 1"
    )


def test_nothing_fits() -> None:
    refused = said(Request(2, of(1, gpus=0)), Capacity([{"CPU": 0.0}]), [2, 1])
    assert refused is not None
    assert refused.endswith("the cluster has 0 and does not scale; nothing of the kind fits; add nodes")


def test_trials_at_a_time_on_this_machine() -> None:
    assert said(Request(2, of(1, gpus=0), trials=3), Capacity([{"CPU": 4}]), [2, 1], "this machine") == (
        "3 trials x 2 workers of 1 CPU each need 6 CPUs, this machine has 4; nearest that fits: --concurrency 2"
    )


def test_only_the_autoscaler_knows() -> None:
    assert said(Request(1000, of(1)), Capacity([HEAD], is_open=True), []) is None

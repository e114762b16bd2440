"""A step has the same losses, gradients and weights every time, at any number of CPU threads, on a busy machine.

A race shows itself by chance only, so it is looked for twice: by asking every operation of a step whether it adds in
any order, and by hashing what several processes come to while another one keeps a core busy.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.numerics.conftest import busy_core
from tests.numerics.step_hashes import CASES, FUSION_CASES, experiment_of, hashes_of, micro_batches

LARGE = (
    "mit_b2",
    "mit_b3",
    "mit_b4",
    "mit_b5",
    "resnet101",
    "segformer_b5",
    "hiera_base",
    "hiera_large",
    "rvt_base",
)
"""Of the operations of smaller ones."""
SMALL_CASES = [
    case
    for case in CASES
    if not (case.startswith(("rgbte_", "streethazards_", "rvt_")) and any(name in case for name in LARGE))
]
PRECISIONS = ["fp32", "bf16"]
Z1_CASES = ["demo", "rgbte_mit_b0", "gaff", "gaff_guided", "cssa"]


class Accumulations(TorchDispatchMode):
    """Notes indexed puts that add several values to one place: atomically, in the order in which threads come."""

    def __init__(self) -> None:
        super().__init__()
        self.races: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if "index_put" in name and len(args) > 3 and args[3] and args[0].is_floating_point():
            places = torch.broadcast_tensors(*(index for index in args[1] if index is not None))
            rows = torch.stack([place.flatten() for place in places], dim=1)
            if len(rows.unique(dim=0)) < len(rows):
                self.races.append(f"{name} into {tuple(args[0].shape)}")
        return func(*args, **(kwargs or {}))


@contextmanager
def only_deterministic_kernels() -> Iterator[None]:
    """PyTorch raises where an operation has none."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", SMALL_CASES)
def test_no_operation_adds_in_any_order(case: str, precision: str) -> None:
    with only_deterministic_kernels(), Accumulations() as seen:
        hashes_of(experiment_of(case, precision=precision), steps=1)
    assert seen.races == []


def test_a_race_would_be_seen() -> None:
    rows = torch.ones(4, 2, requires_grad=True)
    with Accumulations() as seen:
        rows[torch.tensor([1, 1])].sum().backward()
    assert seen.races == ["aten.index_put.default into (4, 2)"]


def hashes_of_processes(
    *, processes: int, threads: int, steps: int, cases: list[str]
) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.numerics.step_hashes", str(threads), str(steps), *cases]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with busy_core():
        outputs = [
            subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
            for _ in range(processes)
        ]
    return [json.loads(output) for output in outputs]


@pytest.mark.parametrize("threads", [2, 3])
def test_processes_agree_beside_a_busy_one(threads: int) -> None:
    first, *others = hashes_of_processes(processes=3, threads=threads, steps=4, cases=["gaff", "cssa"])
    assert len(first["gaff"]["gradients"]) == 4
    assert len(set(first["gaff"]["gradients"])) == 4
    for other in others:
        assert other == first


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 3])
def test_ten_processes_agree_beside_a_busy_one(threads: int) -> None:
    first, *others = hashes_of_processes(processes=10, threads=threads, steps=12, cases=Z1_CASES)
    assert all(other == first for other in others)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_recipe_and_fusion_agrees(precision: str, threads: int) -> None:
    cases = [f"{case}:{precision}" for case in CASES if case in FUSION_CASES or case not in Z1_CASES]
    first, other = hashes_of_processes(processes=2, threads=threads, steps=2, cases=cases)
    assert other == first


def test_batches_are_the_same_every_time() -> None:
    """What the hashes of losses rest on."""
    experiment = experiment_of("gaff", precision="fp32")
    (one,), (other,) = next(micro_batches(experiment)), next(micro_batches(experiment))
    assert one.image_ids == other.image_ids
    assert all(torch.equal(one.modalities[name], other.modalities[name]) for name in one.modalities)

from __future__ import annotations

import logging

import pytest
import torch
import torch.utils.deterministic

from raydet.parallel.determinism import deterministic_kernels

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_on_while_the_block_runs() -> None:
    fills_memory = torch.utils.deterministic.fill_uninitialized_memory
    with deterministic_kernels(GPU, exact=False):
        assert not torch.are_deterministic_algorithms_enabled()
    for device, exact in ((GPU, True), (CPU, True), (CPU, False)):
        with deterministic_kernels(device, exact=exact):
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.utils.deterministic.fill_uninitialized_memory  # it would cost, and we read none
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory == fills_memory


def test_operations_without_such_a_kernel_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "raydet"), deterministic_kernels(CPU, exact=False):
        for _ in range(2):
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    assert [record.getMessage() for record in caplog.records] == [
        "put_ has no deterministic kernel on this device: two runs may differ in the last bits"
    ]

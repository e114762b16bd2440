from __future__ import annotations

import logging

import pytest
import torch

from raydet.parallel.determinism import deterministic_kernels


def test_on_while_the_block_runs() -> None:
    with deterministic_kernels(enabled=False):
        assert not torch.are_deterministic_algorithms_enabled()
    with deterministic_kernels(enabled=True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_operations_without_such_a_kernel_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "raydet"), deterministic_kernels(enabled=True):
        for _ in range(2):
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    assert [record.getMessage() for record in caplog.records] == [
        "train.exact: put_ has no deterministic kernel on this device"
    ]

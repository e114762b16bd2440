"""The sum over all ranks, on gloo if there are no GPUs."""

from __future__ import annotations

import pytest

from raydet.doctor.ranks import free_port, run_ranks

pytestmark = pytest.mark.slow  # each rank imports torch


def test_a_sum_over_two_ranks() -> None:
    assert run_ranks(["cpu", "cpu"], 0, 2, f"tcp://127.0.0.1:{free_port()}", "gloo") == ""


def test_a_rank_that_cannot() -> None:
    errors = run_ranks(["cuda:99"], 0, 1, f"tcp://127.0.0.1:{free_port()}", "gloo")
    assert errors.startswith("cuda:99: ")

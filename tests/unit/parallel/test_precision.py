from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raydet import cpu
from raydet.config import TrainConfig
from raydet.errors import ConfigError
from raydet.parallel.precision import autocast, check_precision

CPU = torch.device("cpu")


def test_autocast_lowers_products_and_keeps_norms() -> None:
    x = torch.ones(2, 3)
    with autocast("bf16", CPU):
        assert (x @ x.T).dtype == torch.bfloat16
        assert torch.nn.functional.cross_entropy(x, torch.tensor([0, 1])).dtype == torch.float32
    with autocast("fp32", CPU):
        assert (x @ x.T).dtype == torch.float32


@pytest.mark.parametrize("has_bf16", [True, False])
def test_an_old_gpu_is_refused_by_name(has_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    fp32, bf16 = TrainConfig(), TrainConfig(precision="bf16")
    check_precision(fp32, torch.device("cuda"))
    if has_bf16:
        check_precision(bf16, torch.device("cuda"))
        return
    with pytest.raises(ConfigError, match=r"expected a GPU with bf16 .*, got Tesla V100; use fp32"):
        check_precision(bf16, torch.device("cuda"))


def test_a_cpu_without_bf16_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("model name\t: Some CPU\nflags\t\t: avx2\n")
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "cpuinfo")
    check_precision(TrainConfig(), CPU)
    with pytest.raises(ConfigError, match="got Some CPU"):
        check_precision(TrainConfig(precision="bf16"), CPU)

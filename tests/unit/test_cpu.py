from __future__ import annotations

import os
from pathlib import Path

import pytest

from raydet import cpu
from raydet.config import TrainConfig
from raydet.errors import ConfigError

AVX2 = "processor\t: 0\nmodel name\t: AMD EPYC 7763 64-Core Processor\nflags\t\t: fpu sse avx avx2 fma\n"


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "num_cores", lambda: 2)


def has_cpu(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(cpu, "CPU_INFO", path)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512bw", False),
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", True),
        ("flags\t\t: fpu avx2 amx_bf16 amx_tile", True),
        ("Features\t: fp asimd sve", False),
        ("Features\t: fp asimd sve bf16", True),
        ("", True),
    ],
)
def test_bf16_by_the_flags_of_the_kernel(
    flags: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_cpu(f"processor\t: 0\nmodel name\t: bf16 in a name means nothing\n{flags}\n", tmp_path, monkeypatch)
    assert cpu.has_bf16() is expected


def test_an_unknown_cpu_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "none")
    assert cpu.has_bf16()
    assert cpu.cpu_name()


def test_bf16_is_refused_with_the_cpu_and_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_cpu(AVX2, tmp_path, monkeypatch)
    monkeypatch.setattr(cpu, "GPU_DRIVERS", (tmp_path / "none", tmp_path / "driver"))
    monkeypatch.delenv(cpu.EMULATE_BF16, raising=False)
    bf16 = TrainConfig(precision="bf16")
    for use_gpu in (False, None):
        with pytest.raises(
            ConfigError, match=r"got AMD EPYC 7763 64-Core Processor, .* set RAYDET_EMULATE_BF16=1"
        ):
            cpu.refuse_slow_bf16(bf16, use_gpu=use_gpu)
    cpu.refuse_slow_bf16(bf16, use_gpu=True)
    cpu.refuse_slow_bf16(TrainConfig())
    (tmp_path / "driver").touch()
    cpu.refuse_slow_bf16(bf16, use_gpu=None)
    monkeypatch.setenv(cpu.EMULATE_BF16, "1")
    cpu.refuse_slow_bf16(bf16)


@pytest.mark.parametrize(
    ("limit", "expected"), [("150000 100000", 1), ("300000 100000", 3), ("max 100000", 8)]
)
def test_cores_of_a_container(
    limit: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    monkeypatch.setattr(cpu, "CPU_LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert cpu.num_cores() == expected


@pytest.mark.parametrize(("quota", "expected"), [("250000", 2), ("50000", 1), ("-1", 8)])
def test_cores_of_an_older_container(
    quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quota").write_text(quota)
    (tmp_path / "period").write_text("100000")
    monkeypatch.setattr(cpu, "CPU_LIMIT", tmp_path / "none")
    monkeypatch.setattr(cpu, "OLD_CPU_LIMIT", (tmp_path / "quota", tmp_path / "period"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert cpu.num_cores() == expected


@pytest.mark.usefixtures("two_cores")
def test_threads_are_never_more_than_cores() -> None:
    assert cpu.threads_per_process(None, processes=1, default=4) == 2
    assert cpu.threads_per_process(None, processes=4, default=4) == 1
    assert cpu.threads_per_process(2, processes=1, default=1) == 2
    with pytest.raises(ConfigError, match=r"at most 1 with 2 worker\(s\) on 2 cores, got 2"):
        cpu.threads_per_process(2, processes=2, default=2)


@pytest.mark.usefixtures("two_cores")
def test_a_node_that_declares_more_than_it_has() -> None:
    assert cpu.thread_share(2, declared=2) == 2
    assert cpu.thread_share(4, declared=8) == 1
    assert cpu.thread_share(1, declared=1) == 1  # one that declares less keeps to it
    assert cpu.thread_share(2, declared=0) == 2

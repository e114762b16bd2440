"""On a CPU without bf16 instructions every command that would train in bf16 refuses and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydet import cpu
from raydet.cli import main
from raydet.errors import EXIT_USAGE

BF16 = ["--recipe", "demo", "--set", "train.precision=bf16"]
COMMANDS = {
    "train": ["train", *BF16, "--workers", "0", "--cpu", "--tracking-uri", "none", "--run-dir", "out"],
    "train-on-ray": ["train", *BF16, "--workers", "1", "--cpu", "--tracking-uri", "none", "--run-dir", "out"],
    "tune": ["tune", "--space", "gaff_phase2", *BF16, "--cpu", "--storage", "out"],
    "tune-by-a-factor": ["tune", "--space", "memory", "--recipe", "demo", "--cpu", "--storage", "out"],
    "bench": ["bench", "train-step", "--recipe", "demo", "--cpu", "--precision", "bf16"],
    "verify": ["verify", "resume", *BF16],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_refused_in_one_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cpuinfo").write_text("model name\t: AVX2 CPU\nflags\t\t: fpu avx avx2\n")
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(cpu, "GPU_DRIVERS", ())
    monkeypatch.delenv(cpu.EMULATE_BF16, raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == EXIT_USAGE
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: train.precision=bf16 expected a CPU with bf16 instructions")
    assert "got AVX2 CPU" in line
    assert not (tmp_path / "out").exists()

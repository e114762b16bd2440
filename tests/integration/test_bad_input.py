"""Bad input: one clear line, the right exit code, nothing started."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from raydet.cli import main
from raydet.errors import EXIT_DATA, EXIT_USAGE
from raydet.track.runs import SQLITE, open_tracker

Spoil = Callable[[Path], object]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Ten images of 64 x 96 with one box each, as npy_yolo with one class."""
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    (root / "classes.txt").write_text("person\n")
    for number in range(10):
        np.save(root / "images" / f"{number:03d}.npy", np.full((64, 96, 5), number, dtype=np.uint8))
        (root / "labels" / f"{number:03d}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    return root


def outcome(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Exit code and the error line."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code, capsys.readouterr().err.strip()


def label(text: str) -> Spoil:
    return lambda root: (root / "labels" / "003.txt").write_text(text)


def cut_image(root: Path) -> None:
    path = root / "images" / "003.npy"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root / "labels"), "labels"),
        (cut_image, "003.npy"),
        (label("0 0.5 0.5 0.25\n"), "003.txt"),
        (label("7 0.5 0.5 0.25 0.25\n"), "003.txt"),
        (label("-1 0.5 0.5 0.25 0.25\n"), "003.txt"),
        (label("0 0.95 0.5 0.25 0.25\n"), "003.txt"),
        (label("0 0.5 0.5 0.0 0.25\n"), "003.txt"),
        (label("0 0.5 nan 0.25 0.25\n"), "003.txt"),
        (label("zero 0.5 0.5 0.25 0.25\n"), "003.txt"),
        (lambda root: (root / "labels" / "003.txt").unlink(), "003"),
        (lambda root: (root / "images" / "003.npy").unlink(), "003"),
        (lambda root: np.save(root / "images" / "003.npy", np.zeros((4, 4), np.uint8)), "003.npy"),
    ],
    ids=[
        "no-labels",
        "truncated-npy",
        "four-numbers",
        "class-too-large",
        "class-negative",
        "box-outside",
        "box-without-width",
        "box-not-a-number",
        "class-not-a-number",
        "label-missing",
        "image-missing",
        "wrong-shape",
    ],
)
@pytest.mark.parametrize("command", ["train", "tune"])
def test_bad_data(
    command: str,
    spoil: Spoil,
    message: str,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil(images)
    arguments = [command, "--recipe", "demo", "--data", str(images)]
    code, error = outcome(arguments + (["--space", "gaff_phase1"] if command == "tune" else []), capsys)
    assert code == EXIT_DATA, error
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "runs").exists(), "something was started"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune", "--space", "gaf_phase1"], "unknown space 'gaf_phase1'; did you mean gaff_phase1"),
        (["tune", "--space", "gaff_phase1", "--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["tune", "--space", "gaff_phase1", "--max-trials", "0"], "--max-trials must be at least 1"),
        (["tune", "--space", "gaff_phase1", "--set", "optim.lrr=1"], "did you mean optim.lr?"),
        (
            ["tune", "--space", "gaff_phase1", "--set", "model.fusion_stages=[1]"],
            "varies model.fusion_stages",
        ),
        (
            ["tune", "--space", "gaff_phase1", "--set", 'model.fusion={"kind": "gaff"}'],
            "varies model.fusion.",
        ),
        (
            ["tune", "--space", "gaff_phase1", "--recipe", "demo", "--workers", "3"],
            "does not divide among 3 workers",
        ),
        (["tune", "--space", "gaff_phase1", "--backbone", "mit_b9"], "model.backbone.variant"),
        (["tune", "--space", "gaff_phase1", "--json"], "--json requires --dry-run"),
        (
            ["train", "--recipe", "demo", "--set", "train.global_batch=500"],
            "train.global_batch is 500",
        ),
        (["train", "--recipe", "demo", "--config", "c.json"], "exclude each other"),
        (["train", "--recipe", "demos"], "unknown recipe 'demos'; did you mean demo?"),
        (
            ["tune", "--space", "gaff_phase1", "--storage", "s3://bucket/runs"],
            "--storage must be a directory",
        ),
        (["train", "--set", "optim.lr"], "--set expects path=value"),
        (
            ["train", "--recipe", "demo", "--workers", "3", "--tracking-uri", "none"],
            "does not divide among 3 workers",
        ),
        (["train", "--recipe", "demo", "--workers", "-1"], "--workers must be 0 or more"),
        (["train", "--config", "nowhere.json"], "expected a run's config.json"),
        (["train", "--data", "coco:"], "--data must be"),
        (
            ["train", "--recipe", "demo", "--set", "train.strategy=fsdp"],
            "fsdp requires several workers, got 1",
        ),
        (
            ["train", "--recipe", "demo", "--set", "train.strategy=single", "--workers", "2"],
            "single requires one worker, got 2",
        ),
        (
            ["train", "--recipe", "demo", "--set", "train.shard_ranks=2", "--workers", "2"],
            "train.shard_ranks requires train.strategy=hsdp",
        ),
        (["train", "--recipe", "demo", "--set", "train.micro_batch=some"], "train.micro_batch"),
        (
            ["tune", "--space", "gaff_phase1", "--recipe", "demo", "--set", "train.micro_batch=auto"],
            "train.micro_batch=auto may differ between trials",
        ),
        (["plan", "--gpu-memory", "80"], "--gpu-memory must be a size with its unit"),
        (["plan", "--gpus", "3"], "does not divide among 3 workers"),
        (["plan", "--gpus", "0"], "number of workers must be 1 or more, got 0"),
        (["plan", "--set", "train.strategy=fsdp"], "fsdp requires several workers, got 1"),
        (["ckpt", "ls", "nowhere"], "no checkpoints in nowhere"),
        (
            ["data", "convert", "synthetic", "x", "--encoding", "jpeg"],
            "--encoding must be one of raw, zstd, got 'jpeg'",
        ),
        (
            ["data", "convert", "synthetic", "x", "--on-bad", "keep"],
            "--on-bad must be one of error, skip, got 'keep'",
        ),
        (["data", "convert", "synthetic", "ftp://host/x"], "expected a directory, file://PATH, s3://"),
        (["data", "convert", "synthetic", "s3://KEY:SECRET@bucket/x"], "expected a URI without keys"),
        (["bench", "train-step", "--precision", "fp8"], "--precision must be"),
        (["bench", "inference", "nowhere"], "is no run directory"),
        (["evaluate", "nowhere"], "is no run directory"),
        (["predict", "nowhere", "--output", "boxes"], "is no run directory"),
        (["robustness", "nowhere"], "is no run directory"),
        (["robustness", "nowhere", "--kinds", "fog"], "--kinds: unknown 'fog'; known: noise, blur"),
        (["verify", "resume", "--recipe", "demo", "--steps", "2"], "--steps must be 4 or more, got 2"),
        (
            ["verify", "resume", "--recipe", "demo", "--workers", "2;3"],
            "--workers must be numbers of at least 1",
        ),
        (
            ["verify", "resume", "--recipe", "demo", "--phases", "lunch"],
            "--phases: unknown 'lunch'; known: load",
        ),
        (["verify", "resume", "--recipe", "demo", "--workers", "5"], "does not divide among 5 workers"),
        (["train", "--recipe", "demo", "--workers", "2", "--min-workers", "3"], "--min-workers must be 1 to"),
        (
            ["tune", "--space", "gaff_phase1", "--min-workers", "2"],
            "--min-workers must be 1 to --workers 1",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, error = outcome(arguments, capsys)
    assert code == EXIT_USAGE, error
    assert message in error
    assert "\n" not in error


@pytest.mark.parametrize("flag", ["--storage", "--run-dir"])
def test_a_place_that_cannot_be_written(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    command = ["tune", "--space", "gaff_phase1"] if flag == "--storage" else ["train"]
    code, error = outcome([*command, "--recipe", "demo", flag, str(tmp_path / "file" / "x")], capsys)
    assert code == EXIT_USAGE, error
    assert "cannot write" in error
    assert "choose another" in error


@pytest.mark.parametrize("command", [["train", "--run-dir", "run"], ["tune", "--space", "gaff_phase1"]])
@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        ("http://127.0.0.1:9", "start the server"),
        ("./mlruns", "use sqlite:///PATH"),
        ("file:mlruns", "use sqlite:///PATH"),
        ("sqlite:///a?b.db", "sqlite:///a%3Fb.db"),
    ],
)
def test_a_tracking_uri_that_cannot_be_used(
    command: list[str],
    uri: str,
    remedy: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, error = outcome([*command, "--recipe", "demo", "--tracking-uri", uri], capsys)
    assert code == EXIT_USAGE, error
    assert error.startswith(f"error: cannot use the tracking URI {uri}")
    assert remedy in error
    assert "\n" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--run-dir", "--storage"])
def test_a_deleted_experiment(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, command = (
        ("raydet", ["train"]) if flag == "--run-dir" else ("gaff", ["tune", "--space", "gaff_phase1"])
    )
    open_tracker(None, directory=tmp_path, experiment=name)
    client = MlflowClient(f"sqlite:///{tmp_path / SQLITE}")
    client.delete_experiment(client.get_experiment_by_name(name).experiment_id)
    before = set(tmp_path.iterdir())
    where = tmp_path / "run" if flag == "--run-dir" else tmp_path
    code, error = outcome([*command, "--recipe", "demo", flag, str(where)], capsys)
    assert code == EXIT_USAGE, error
    assert error.startswith(f'error: the experiment "{name}" (id 1) was deleted in MLflow')
    assert "\n" not in error
    assert set(tmp_path.iterdir()) == before


def test_a_run_directory_of_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run" / "config.json"
    main_dry = ["train", "--recipe", "demo", "--dry-run", "--json"]
    main_code = None
    try:
        main(main_dry)
    except SystemExit as exit_:
        main_code = exit_.code
    assert not main_code
    plan = json.loads(capsys.readouterr().out)
    assert set(plan) == {"config", "parameters"}
    assert plan["parameters"]["total"] == sum(n for part, n in plan["parameters"].items() if part != "total")
    config.parent.mkdir()
    config.write_text(json.dumps(plan["config"]))
    code, error = outcome(
        ["train", "--recipe", "demo", "--epochs", "9", "--run-dir", str(config.parent)], capsys
    )
    assert code == EXIT_USAGE
    assert "holds a run with another config" in error

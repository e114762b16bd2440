"""Convert to an S3 server and train from it, while it is dead for a while; credentials that are refused."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raydet.cli import main
from raydet.config import Experiment, apply_overrides
from raydet.data.build import adopt_source, detect_source, open_source
from raydet.data.digest import expected_digest
from raydet.data.sampler import ElasticSampler
from raydet.data.split import split_indices
from raydet.data.storage import Store
from raydet.errors import EXIT_DATA
from raydet.recipes import recipe
from tests.numerics.conftest import free_port, launch_training

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("moto") is None,
    reason="the S3 server of these tests, moto[server], is not installed",
)

URI = "s3://images/sets/demo"
AWAY_S = 10.0
SETTINGS = {
    "data.source.num_sequences": 8,
    "data.source.frames_per_sequence": 4,
    "data.split.val_fraction": 0.25,
    "train.global_batch": 4,
    "train.epochs": 2,
}


class Server:
    """An S3 server that can be killed and comes back with the objects it had."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self.directory, self.port, self._environment = directory, free_port(), environment
        self.start()

    def start(self) -> None:
        """Serve what the directory holds, and wait until it answers."""
        command = [
            sys.executable,
            str(Path(__file__).with_name("s3_server.py")),
            str(self.port),
            str(self.directory),
        ]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **self._environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline
                assert self._process.poll() is None
                time.sleep(0.1)

    def kill(self) -> None:
        """Without a word."""
        self._process.kill()
        self._process.wait()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Keys that an S3 client wants, and a cache of this test's own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAPLANTED")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("RAYDET_CACHE_DIR", str(tmp_path / "cache"))
    return monkeypatch


@pytest.fixture
def server(environment: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """One that lets everybody in."""
    (tmp_path / "objects").mkdir()
    server = Server(tmp_path / "objects")
    environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    yield server
    server.kill()


def command(*arguments: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert not caught.value.code


def expected(experiment: Experiment) -> str:
    source = open_source(experiment.data)
    indices = split_indices(source, experiment.data.split)["train"]
    sampler = ElasticSampler(len(indices), experiment.train.global_batch, experiment.seed)
    steps = experiment.train.epochs * sampler.steps_per_pass
    return expected_digest(sampler, [source.image_ids[index] for index in indices], steps=steps)


@pytest.mark.slow
def test_training_goes_on_when_the_server_comes_back(
    server: Server, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    sets = [part for path, value in SETTINGS.items() for part in ("--set", f"{path}={value}")]
    size = ["--set", "data.source.size_hw=[120,160]", "--images-per-shard", "1"]
    command("data", "convert", "synthetic", URI, *size, *sets)
    store = Store(URI)
    assert len(store.names()) == 32 + 2
    for name in store.names():  # from here on, so much is on the server's disk
        path = server.directory / "sets" / "demo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.read(name) or b"")
    experiment = apply_overrides(recipe("demo"), {key: SETTINGS[key] for key in list(SETTINGS)[2:]})
    experiment = adopt_source(experiment, detect_source(f"shards:{URI}"))
    fetched = tmp_path / "cache" / "files"

    def die_for_a_while() -> None:
        while len(list(fetched.glob("*.arrow"))) < 4:
            time.sleep(0.02)
        server.kill()
        time.sleep(AWAY_S)
        server.start()

    killer = threading.Thread(target=die_for_a_while, daemon=True)
    killer.start()
    results, output = launch_training(experiment, workers=2, directory=tmp_path, name="run")
    killer.join(timeout=1)
    assert not killer.is_alive(), "the server was not killed in the middle"
    assert results["digest"] == expected(experiment)
    assert results["data"]["sha256"] == experiment.data.source.sha256  # type: ignore[union-attr]
    assert len(list(fetched.glob("*.arrow"))) == 32 + 1, "each file once, whichever worker wanted it"
    log = (
        output + (tmp_path / "run" / "training.log").read_text()
    )  # either worker may have met the dead server
    assert "failed (" in log
    assert "trying again in 0.5 s" in log
    assert "done, after" in log
    assert "planted" not in log.lower()


def test_refused_credentials_are_one_line(
    environment: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(tmp_path, INITIAL_NO_AUTH_ACTION_COUNT="0")
    environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    try:
        for arguments in (
            ["train", "--recipe", "demo", "--data", f"shards:{URI}"],
            ["data", "convert", "synthetic", URI],
        ):
            with pytest.raises(SystemExit) as caught:
                main(arguments)
            error = capsys.readouterr().err.strip()
            assert caught.value.code == EXIT_DATA, error
            assert error.startswith(f"error: reading {URI}/manifest.json was refused: ")
            assert "AWS Error ACCESS_DENIED" in error
            assert "check the credentials" in error
            assert "\n" not in error
            assert "planted" not in error.lower()
    finally:
        server.kill()

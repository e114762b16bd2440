"""Weights by name: the cache of the Hugging Face hub, a hub on the loopback, and the errors without either."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from raydet.config import Experiment, apply_overrides
from raydet.errors import ConfigError
from raydet.models.build import build_model, load_pretrained
from raydet.models.pretrained.files import read_weights
from raydet.models.pretrained.load import LoadedWeights
from raydet.recipes import recipe

TEMPLATE = "http://127.0.0.1:{}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(cache: Path, repository: str, file: str, tensors: dict[str, Tensor], commit: str = COMMIT) -> str:
    """Store a file as huggingface_hub lays out its cache; returns the hash of its contents."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    draft = folder / "draft"
    if file.endswith(".safetensors"):
        save_file(tensors, draft)
    else:
        torch.save(tensors, draft)
    digest = hashlib.sha256(draft.read_bytes()).hexdigest()
    draft.rename(folder / "blobs" / digest)
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    (snapshot / file).symlink_to(folder / "blobs" / digest)
    if commit == COMMIT:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
    return digest


def run_of(backbone: dict[str, Any], path: str) -> Experiment:
    changes = {"model.backbone": {**backbone, "pretrained": {"path": path}}, "model.fusion.kind": "add"}
    return apply_overrides(recipe("demo"), changes)


def loaded(run: Experiment) -> LoadedWeights:
    found = load_pretrained(build_model(run), run)
    assert found is not None
    return found


def weights() -> dict[str, Tensor]:
    return dict(timm.create_model("test_resnet").state_dict())


# --- the cache


@pytest.mark.parametrize(
    "name", ["timm://test_resnet", "timm://test_resnet.r160_in1k", "hf://timm/test_resnet.r160_in1k"]
)
def test_timms_weights_by_name(name: str, cache: Path) -> None:
    digest = put(cache, "timm/test_resnet.r160_in1k", "model.safetensors", weights())
    found = loaded(run_of({"kind": "timm", "name": "test_resnet"}, name))
    assert (found.sha256, found.missing, found.path) == (digest, (), name)
    assert found.origin == f"timm/test_resnet.r160_in1k@{COMMIT}/model.safetensors"
    assert f"{name}, which is {found.origin} (sha256 {digest[:12]}" in found.as_text()
    assert json.loads(json.dumps(found.as_json()))["sha256"] == digest


def test_weights_in_pytorchs_format_are_converted_on_the_way(cache: Path) -> None:
    prefixed = {f"module.{name}": tensor for name, tensor in weights().items()}
    digest = put(cache, "someone/nets", "pytorch_model.bin", prefixed)
    file = read_weights("hf://someone/nets")
    assert (file.sha256, file.origin) == (digest, f"someone/nets@{COMMIT}/pytorch_model.bin")
    assert file.tensors.keys() == prefixed.keys()
    assert all(torch.equal(file.tensors[name], tensor) for name, tensor in prefixed.items())


def test_a_revision_and_a_file(cache: Path) -> None:
    put(cache, "someone/nets", "model.safetensors", {"x": torch.zeros(1)})
    put(cache, "someone/nets", "model.safetensors", {"x": torch.ones(1)}, commit=OLDER)
    put(cache, "someone/nets", "other.safetensors", {"x": torch.full((1,), 2.0)}, commit=OLDER)
    for name, value in {
        "hf://someone/nets": 0.0,
        f"hf://someone/nets@{OLDER}": 1.0,
        f"hf://someone/nets@{OLDER}/other.safetensors": 2.0,
        "hf://someone/nets@main/model.safetensors": 0.0,
    }.items():
        assert read_weights(name).tensors["x"].item() == value


# --- errors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "hf://nvidia/mit-b1",
            "HF_HUB_OFFLINE is set, and the cache has no model.safetensors or pytorch_model.bin of nvidia/mit-b1; on a "
            "machine with web access run `hf download nvidia/mit-b1 model.safetensors`, copy the file here, and set "
            "its path (a .bin, .pth or .pt file: after `raydet weights convert FILE`)",
        ),
        (
            "timm://test_resnet",
            "of timm/test_resnet.r160_in1k; on a machine with web access run `hf download timm/",
        ),
        ("hf://nvidia/mit-b1@v2", "run `hf download nvidia/mit-b1 model.safetensors --revision v2`"),
        ("hf://nvidia", "expected hf://OWNER/NAME, "),
        ("hf://nvidia/mit-b1/weights.h5", "where FILE ends in .safetensors, .bin, .pth, .pt"),
        ("timm://resnet5o", "has no model 'resnet5o'; did you mean resnet50?"),
        ("timm://resnet18.nothing", "Invalid pretrained tag (nothing) for resnet18"),
        ("timm://dpn48b", "publishes no weights of dpn48b on the hub; set the path of a file"),
    ],
)
def test_what_cannot_be_had_gives_one_line(name: str, message: str, cache: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read_weights(name)
    assert str(error.value).startswith(f"model.backbone.pretrained.path={name}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_file_in_the_cache(cache: Path) -> None:
    put(cache, "someone/nets", "model.safetensors", {"x": torch.zeros(1)})
    (blob,) = (cache / "models--someone--nets" / "blobs").iterdir()
    blob.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"is not an intact safetensors file .*; remove it from the cache"):
        read_weights("hf://someone/nets")


# --- a hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs: files by repository and name."""

    files: dict[str, bytes]
    code = "EntryNotFound"

    def do_GET(self) -> None:
        body = self.files.get(self.path)
        self.send_response(404 if body is None else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        if body is None:
            self.send_header("X-Error-Code", self.code)
        self.send_header("ETag", f'"{hashlib.sha256(body or b"").hexdigest()}"')
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body or b"")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HTTPServer]:
    torch.save({"state_dict": {"x": torch.ones(2)}}, tmp_path / "w.bin")
    Hub.code = "EntryNotFound"
    Hub.files = {"/someone/nets/resolve/main/pytorch_model.bin": (tmp_path / "w.bin").read_bytes()}
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_download_is_kept_in_the_cache(hub: HTTPServer, tmp_path: Path) -> None:
    code = (
        "from raydet.models.pretrained.files import read_weights\n"
        "file = read_weights('hf://someone/nets')\n"
        "print(file.sha256, file.origin, file.tensors['x'].tolist())"
    )
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HUB_DISABLE_XET": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    digest = hashlib.sha256(Hub.files["/someone/nets/resolve/main/pytorch_model.bin"]).hexdigest()
    expected = f"{digest} someone/nets@{COMMIT}/pytorch_model.bin [1.0, 1.0]\n"
    command = [sys.executable, "-c", code]
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert first.stdout == expected
    Hub.files = {}
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    assert subprocess.run(command, env=offline, capture_output=True, text=True, check=True).stdout == expected


def test_a_hub_without_the_file(hub: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", TEMPLATE.format(hub.server_port))
    for name, message in {
        "hf://someone/else": "someone/else has no model.safetensors or pytorch_model.bin; name a file: hf://someone/",
        "hf://someone/nets/w.bin": "someone/nets has no w.bin; name a file",
    }.items():
        with pytest.raises(ConfigError, match=message):
            read_weights(name)
    Hub.code = "RepoNotFound"
    with pytest.raises(
        ConfigError, match="the hub has no someone/nets, or it is private; correct the name, or run"
    ):
        read_weights("hf://someone/nets")

"""Pretrained weights: what is loaded, refused and reported."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import ssl
import subprocess
import sys
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from raydet.config import Experiment, apply_overrides, parse_override
from raydet.errors import ConfigError
from raydet.models.backbones.timm import timm_stages
from raydet.models.build import build_model, load_pretrained
from raydet.models.model import Model
from raydet.models.pretrained.files import read_weights
from raydet.models.pretrained.load import LoadedWeights, adapt_first_conv
from raydet.models.pretrained.names import efficientnet_naming
from raydet.recipes import recipe

MODEL = "test_resnet"


def experiment(path: Path | str, *sets: str, name: str = MODEL) -> Experiment:
    base = apply_overrides(
        recipe("demo"),
        {"model.backbone": {"kind": "timm", "name": name}, "model.fusion.kind": "add"},
    )
    return apply_overrides(base, dict(map(parse_override, [f"model.backbone.pretrained.path={path}", *sets])))


def loaded(path: Path | str, *sets: str, **arguments: Any) -> tuple[Model, LoadedWeights]:
    run = experiment(path, *sets, **arguments)
    detector = build_model(run)
    found = load_pretrained(detector, run)
    assert found is not None
    return detector, found


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """A classifier's weights with timm's names."""
    torch.manual_seed(11)
    model = timm.create_model(MODEL)
    for name, statistic in model.named_buffers():
        if name.endswith(("mean", "var")):
            statistic.uniform_(0.5, 1.5)
    return dict(model.state_dict())


@pytest.fixture
def file(published: dict[str, Tensor], tmp_path: Path) -> Path:
    return written(published, tmp_path)


def written(tensors: dict[str, Tensor], directory: Path) -> Path:
    path = directory / "weights.safetensors"
    save_file(tensors, path)
    return path


def test_timms_names(file: Path, published: dict[str, Tensor]) -> None:
    detector, found = loaded(file)
    model = timm.create_model(MODEL).eval()
    model.load_state_dict(published)
    images = torch.rand(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    x = images
    with torch.no_grad():
        expected = model.forward_intermediates(images, indices=[1, 2, 3, 4], intermediates_only=True)
        for stage, theirs in zip(detector.encoder.rgb_stages.eval(), expected, strict=True):
            x = stage(x)
            assert torch.equal(x, theirs)
    assert (found.naming, found.unused) == ("timm", ("fc.bias", "fc.weight"))
    assert found.missing == found.wrong_shape == ()
    assert found.licence.startswith("apache-2.0, according to timm")
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found.origin is None
    first, second = (
        stages[1].state_dict() for stages in (detector.encoder.rgb_stages, detector.encoder.aux_stages)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_nothing_is_loaded_unless_asked_for() -> None:
    detector = build_model(recipe("demo"))
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    assert load_pretrained(detector, recipe("demo")) is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_the_first_convolution_is_adapted(channels: int) -> None:
    weight = torch.randn(4, 3, 7, 7)
    adapted = adapt_first_conv(weight, channels)
    assert adapted.shape == (4, channels, 7, 7)
    for channel in range(channels):
        torch.testing.assert_close(adapted[:, channel], weight.mean(dim=1) * 3 / channels)
    grey = torch.randn(1, 1, 9, 9)
    convolve = torch.nn.functional.conv2d
    torch.testing.assert_close(
        convolve(grey.expand(1, channels, 9, 9), adapted), convolve(grey.expand(1, 3, 9, 9), weight)
    )


@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
def test_a_common_prefix_is_removed(prefix: str, published: dict[str, Tensor], tmp_path: Path) -> None:
    path = written({prefix + name: tensor for name, tensor in published.items()}, tmp_path)
    _, found = loaded(path)
    assert found.missing == ()
    assert set(found.unused) == {f"{prefix}fc.weight", f"{prefix}fc.bias"}


def test_missing_batch_counts_are_not_reported(published: dict[str, Tensor], tmp_path: Path) -> None:
    older = {name: tensor for name, tensor in published.items() if "num_batches" not in name}
    _, found = loaded(written(older, tmp_path))
    assert found.missing == ()


# --- files that do not fit


def misfit(published: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    tensors = dict(published)
    if how == "missing":
        del tensors["layer2.0.bn1.weight"]
    elif how == "shape":
        tensors["layer3.0.conv1.weight"] = torch.zeros(1, 2, 3, 3)
    else:
        tensors["layer4.7.conv1.weight"] = torch.zeros(1)
    return tensors


@pytest.mark.parametrize(
    ("how", "message", "field"),
    [
        ("missing", "2 missing (rgb_stages.1.layers.layer2.0.bn1.weight, aux_", "missing"),
        (
            "shape",
            "2 of the wrong shape (rgb_stages.2.layers.layer3.0.conv1.weight: expected [",
            "wrong_shape",
        ),
        ("deeper", "1 unknown to test_resnet (layer4.7.conv1.weight)", "unused"),
    ],
)
def test_misfits_are_refused_if_strict(
    how: str, message: str, field: str, published: dict[str, Tensor], tmp_path: Path
) -> None:
    path = written(misfit(published, how), tmp_path)
    with pytest.raises(ConfigError) as error:
        loaded(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    detector, found = loaded(path, "model.backbone.pretrained.strict=false")
    assert any("layer" in name for name in getattr(found, field))
    layer1 = detector.encoder.aux_stages[0].layers["layer1"].state_dict()
    assert all(torch.equal(tensor, published[f"layer1.{name}"]) for name, tensor in layer1.items())
    for part in (field.replace("_", " "), "unused: "):
        assert part in found.as_text()
    assert found.as_json()[field] == getattr(found, field)


def test_another_backbones_names_are_always_refused(file: Path) -> None:
    for name in ("test_convnext", "mit"):
        run = experiment(file, "model.backbone.pretrained.strict=false")
        changes: dict[str, Any] = {"model.backbone.name": name}
        if name == "mit":
            changes = {"model.backbone.kind": "mit", "model.backbone.variant": "nano"}
        run = apply_overrides(run, changes)
        with pytest.raises(ConfigError, match=r"none of its \d+ tensors"):
            load_pretrained(build_model(run), run)


# --- where a file comes from


def test_a_file_uri(file: Path) -> None:
    assert read_weights(file.as_uri()).sha256 == read_weights(str(file)).sha256


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "nowhere/w.safetensors",
            "(No such file or directory); it must be readable where the first worker runs",
        ),
        (
            "https://127.0.0.1:9/w.safetensors",
            "Connection refused>); download it on a machine with web access",
        ),
        (
            "s3://bucket/w.safetensors",
            "must be a local path, file://, https://, hf:// or timm://, got s3://",
        ),
        ("http://127.0.0.1:9/w.safetensors", "hf:// or timm://, got http://"),
        (
            "w.pth",
            "must be a .safetensors file: other formats may run code when read; `raydet weights convert w.pth`",
        ),
        ("https://127.0.0.1:9/w.bin", "must be a .safetensors file"),
    ],
)
def test_unreadable_files_give_one_line(path: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_weights(path)
    assert str(error.value).startswith("model.backbone.pretrained.path=")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_file(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="is not an intact safetensors file"):
        read_weights(str(file))


def test_the_advice_for_pickled_weights_works(published: dict[str, Tensor], tmp_path: Path) -> None:
    shared = {**published, "tied": published["fc.weight"]}
    torch.save({"state_dict": shared}, tmp_path / "w.pth")
    with pytest.raises(ConfigError) as error:
        read_weights(str(tmp_path / "w.pth"))
    command = shlex.split(str(error.value).split("`")[1])
    subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, check=True)
    converted = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(converted[name], tensor) for name, tensor in shared.items())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_from_the_web(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-keyout",
            str(key),
            "-out",
            str(certificate),
        ],
        check=True,
        capture_output=True,
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    server = HTTPServer(("localhost", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"https://localhost:{server.server_port}/"
    try:
        assert read_weights(f"{url}{file.name}").sha256 == read_weights(str(file)).sha256
        with pytest.raises(ConfigError, match="HTTP Error 404"):
            read_weights(f"{url}other.safetensors")
    finally:
        server.shutdown()
        server.server_close()


# --- EfficientNet-PyTorch's names


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_b0"])  # without and with squeeze
def test_efficientnet_pytorchs_names(name: str) -> None:
    """Both register a block's layers in call order, so their names in a row are ours in a row."""
    ours = list(timm_stages(name=name, in_channels=3).state_dict())
    naming = efficientnet_naming(ours)
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    theirs = ["_conv_stem.weight", *(f"_bn0.{kind}" for kind in kinds)]
    for block in range(16):
        for part in (
            "_expand_conv",
            "_bn0",
            "_depthwise_conv",
            "_bn1",
            "_se_reduce",
            "_se_expand",
            "_project_conv",
            "_bn2",
        ):
            if (block == 0 and part in ("_expand_conv", "_bn0")) or (
                part.startswith("_se") and "lite" in name
            ):
                continue
            there = (
                kinds
                if part.startswith("_bn")
                else ("weight", "bias")
                if part.startswith("_se")
                else ("weight",)
            )
            theirs += [f"_blocks.{block}.{part}.{kind}" for kind in there]
    assert [naming.translate(name) for name in theirs] == ours
    for other in (
        "_fc.weight",
        "_conv_head.weight",
        "_bn1.weight",
        "_blocks.16._bn1.weight",
        "_blocks.0._fc.weight",
    ):
        assert naming.translate(other) is None

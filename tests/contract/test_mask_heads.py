"""Every head for masks on every kind of backbone: gradients everywhere, odd sizes, both precisions, recomputation."""

from __future__ import annotations

import copy
from typing import Any, Literal, get_args

import pytest
import torch
from torch import Tensor

from raydet.config import Precision, apply_overrides
from raydet.config.model import MaskHeads, MiTVariant
from raydet.models.backbones.timm import timm_sizes
from raydet.models.build import build_model, describe_parameters
from raydet.models.heads.masks.base import SegmentationHead
from raydet.models.model import Model
from raydet.parallel.precision import autocast
from raydet.parallel.recompute import recompute_activations
from raydet.recipes import recipe
from raydet.structures import IGNORE, Batch, MaskBatch

HEADS = tuple(head.model_fields["kind"].default for head in get_args(MaskHeads))
SMALL = ("mit_nano", "test_resnet", "test_convnext")
DILATED = ("test_resnet", "test_convnext", "test_efficientnet")
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
CONVNEXTS = ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large", "convnext_xlarge")
MITS = tuple(f"mit_{variant}" for variant in get_args(MiTVariant))
CHANNELS = {
    **dict.fromkeys(RESNETS[:2], (64, 128, 256, 512)),
    **dict.fromkeys(RESNETS[2:], (256, 512, 1024, 2048)),
    **dict.fromkeys(CONVNEXTS[:2], (96, 192, 384, 768)),
    "convnext_base": (128, 256, 512, 1024),
    "convnext_large": (192, 384, 768, 1536),
    "convnext_xlarge": (256, 512, 1024, 2048),
}
"""As published; a stage has the channels of its map."""
CONVNEXT_MILLIONS = {
    "convnext_tiny": 28.59,
    "convnext_small": 50.22,
    "convnext_base": 88.59,
    "convnext_large": 197.77,
    "convnext_xlarge": 350.20,
}
LEVELS = [{"name": "group", "groups": ["a", "b"], "parents": [0, 0, 1]}]
LOSS = {"kind": "hierarchical", "triplet": {}}
OUTPUTS = 5


def backbone_of(name: str, output_stride: int = 32) -> dict[str, Any]:
    if name.startswith("mit_"):
        return {"kind": "mit", "variant": name.removeprefix("mit_")}
    return {"kind": "timm", "name": name, "output_stride": output_stride}


def model_of(name: str, kind: str, *, output_stride: int = 32, fusion: str | None = None) -> Model:
    """Small heads with everything on: a class tree, an embedding that triplets compare, an auxiliary head."""
    head: dict[str, Any] = {"kind": kind, "loss": LOSS, "projection": 8, "auxiliary_weight": 0.4}
    if kind != "fcn":
        head["channels"] = 16
    changes = {
        "data.classes": ["x", "y", "z"],
        "task": {"kind": "segmentation", "levels": LEVELS},
        "model.backbone": backbone_of(name, output_stride),
        "model.neck": {"kind": "none"},
        "model.head": head,
        "model.elsewhere": {"kind": "identity"},
        **({"model.fusion_stages": []} if fusion is None else {"model.fusion.kind": fusion}),
    }
    torch.manual_seed(0)
    model = build_model(apply_overrides(recipe("demo"), changes)).train()
    model.head.set_progress(1.0)  # the triplets count
    return model


def batch_of(hw: tuple[int, int], images: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(1)
    channels = {"rgb": 3, "thermal": 1, "event": 1}
    ids_BHW = torch.randint(0, 3, (images, -(-hw[0] // 16), -(-hw[1] // 16)), generator=generator)
    ids_BHW = ids_BHW.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, : hw[0], : hw[1]].to(torch.uint8)
    ids_BHW[:, :5] = IGNORE
    return Batch(
        modalities={
            name: torch.randint(0, 255, (images, count, *hw), generator=generator, dtype=torch.uint8)
            for name, count in channels.items()
        },
        valid_hw=torch.tensor([hw] * images),
        source_hw=torch.tensor([hw] * images),
        target=MaskBatch(ids_BHW),
        image_ids=tuple(map(str, range(images))),
    )


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([loss.float() for loss in losses.values()]).sum()


def without_gradient(model: Model) -> list[str]:
    return [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ]


def head_of(model: Model) -> SegmentationHead:
    assert isinstance(model.head, SegmentationHead)
    return model.head


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name: str, kind: str, precision: Precision) -> None:
    model, batch = model_of(name, kind), batch_of((97, 161))
    with autocast(precision, torch.device("cpu")):
        losses = model(batch).losses
    assert tuple(losses) == model.loss_names
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    total(losses).backward()
    assert without_gradient(model) == []
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("hw", [(97, 161), (150, 150), (64, 64)])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", SMALL)
def test_logits_and_embedding(name: str, kind: str, hw: tuple[int, int]) -> None:
    model, batch = model_of(name, kind).eval(), batch_of(hw)
    with torch.no_grad():
        maps = model.encoder(model.rgb_input(batch), model.aux_input(batch)).maps
        logits = model(batch).predictions.logits_BNHW
        projection = head_of(model).projection
        assert projection is not None
        embedding = projection(maps[3])
    size_of = {"extremely_fast_segformer": 1, "deeplabv3": 3, "fcn": 3}
    assert logits.shape == (2, OUTPUTS, *maps[size_of.get(kind, 0)].shape[2:])
    assert logits.isfinite().all()
    assert embedding.shape == (2, 8, *maps[3].shape[2:])
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2, *maps[3].shape[2:]))


@pytest.mark.parametrize("kind", HEADS)
def test_only_the_maps_that_a_decoder_names_are_read(kind: str) -> None:
    decoder = head_of(model_of("mit_nano", kind)).decoder.eval()
    maps = [
        torch.randn(2, c, s, s + 1, requires_grad=True)
        for c, s in zip((16, 32, 80, 128), (16, 8, 4, 2), strict=True)
    ]
    decoder(maps).sum().backward()
    assert tuple(i for i, x in enumerate(maps) if x.grad is not None) == decoder.levels


@pytest.mark.parametrize("fusion", ["add", "cmx", "gaff", "cssa", "cross_attention", "late_concat"])
@pytest.mark.parametrize("kind", HEADS)
def test_two_streams(kind: str, fusion: str) -> None:
    model = model_of("mit_nano", kind, fusion=fusion)
    total(model(batch_of((64, 96))).losses).backward()
    assert without_gradient(model) == []
    assert len(model.encoder.aux_stages) == 4
    assert all(p.grad is not None for p in model.encoder.aux_stages.parameters())


@pytest.mark.parametrize("mode", ["block", "selective"])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", SMALL)
def test_recomputing_changes_nothing(name: str, kind: str, mode: Literal["block", "selective"]) -> None:
    plain, batch, results = model_of(name, kind), batch_of((64, 96)), []
    again = copy.deepcopy(plain)
    recompute_activations([*again.units().blocks, *again.units().fusions], mode)
    for model in (plain, again):
        torch.manual_seed(3)  # both drop the same channels
        losses = model(batch).losses
        total(losses).backward()
        results.append([*losses.values(), *(p.grad for p in model.parameters()), *model.buffers()])
    for x, y in zip(*results, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("kind", HEADS)
def test_state_dict_round_trip(kind: str) -> None:
    model, other, batch = (
        model_of("test_resnet", kind),
        model_of("test_resnet", kind).eval(),
        batch_of((64, 96)),
    )
    model(batch)  # moves the running statistics
    other.load_state_dict(model.eval().state_dict())
    with torch.no_grad():
        ours, theirs = (x(batch).predictions.logits_BNHW for x in (model, other))
    assert torch.equal(ours, theirs)


# --- output stride


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("name", DILATED)
def test_dilated_maps(name: str, stride: int) -> None:
    model, whole = model_of(name, "deeplabv3", output_stride=stride), model_of(name, "deeplabv3")
    assert model.encoder.strides == tuple(min(s, stride) for s in (4, 8, 16, 32))
    assert model.encoder.channels == whole.encoder.channels
    sizes = [{key: x.shape for key, x in m.state_dict().items()} for m in (model, whole)]
    assert sizes[0] == sizes[1]  # the same pretrained weights fit
    batch = batch_of((64, 96))
    maps = model.encoder(model.rgb_input(batch), model.aux_input(batch)).maps
    assert [64 // x.shape[2] for x in maps] == list(model.encoder.strides)
    total(model(batch).losses).backward()
    assert without_gradient(model) == []


@pytest.mark.parametrize("fusion", ["cmx", "cross_attention"])
def test_fusions_of_dilated_streams(fusion: str) -> None:
    assert timm_sizes("test_resnet", output_stride=8).sr_ratios == (8, 4, 4, 4)
    model = model_of("test_resnet", "aspp", output_stride=8, fusion=fusion)
    total(model(batch_of((64, 96))).losses).backward()
    assert without_gradient(model) == []


# --- every backbone


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", [*RESNETS, *CONVNEXTS, *MITS])
def test_published_backbones(name: str, kind: str) -> None:
    """On tensors without memory: the channels of the published backbones, forward and backward."""
    with torch.device("meta"):
        model = model_of(name, kind)
        assert model.encoder.channels == CHANNELS.get(name, model.encoder.channels)
        maps = model.encoder(torch.empty(2, 3, 150, 150), torch.empty(2, 0, 150, 150)).maps
        logits, head = head_of(model).decoder(maps), head_of(model)
        assert head.projection is not None
        assert head.auxiliary is not None
        (logits.sum() + head.projection(maps[3]).sum() + head.auxiliary.layers(maps[2]).sum()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVNEXTS)
def test_published_parameters_of_convnext(name: str) -> None:
    """timm's counts have a classifier, with a linear layer and the norm before it."""
    changes = {
        "model.backbone": backbone_of(name),
        "model.fusion_stages": [],
        "model.elsewhere": {"kind": "identity"},
    }
    last = CHANNELS[name][3]
    counts = describe_parameters(apply_overrides(recipe("demo"), changes))
    total_count = counts["trunk_rgb"] + last * 1000 + 1000 + 2 * last
    assert total_count / 1e6 == pytest.approx(CONVNEXT_MILLIONS[name], abs=0.005)

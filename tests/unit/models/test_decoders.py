"""Heads for masks: published parameter counts, torchvision's and Transformers' outputs, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_resnet50

from raydet.config import Experiment, apply_overrides
from raydet.errors import ConfigError, DataError
from raydet.models.build import build_model, describe_parameters
from raydet.models.heads.masks.aspp import ASPP
from raydet.models.heads.masks.base import AUXILIARY_LOSS, Decoder, Projection, SegmentationHead
from raydet.models.heads.masks.deeplabv3 import DeepLabV3
from raydet.models.heads.masks.segformer import SegFormer
from raydet.models.losses.base import PixelLoss
from raydet.models.model import Model
from raydet.recipes import recipe
from raydet.structures import IGNORE, Batch, BoxBatch, LogitMaps, MaskBatch

ALONE = {"model.fusion_stages": [], "model.elsewhere": {"kind": "identity"}}
RESNET = (256, 512, 1024, 2048)
STREET = ["sky", "building", "fence", "other", "pedestrian", "pole", "line", "road", "sidewalk", "plant", "car", "wall",
          "sign"]  # fmt: skip
FLOWERS = ["sunflower", "lily", "rose", "tulip", "juniper", "oak", "palm", "bermuda", "lions mane"]
KINDS = {
    "name": "kind",
    "groups": ["flower", "tree", "grass", "fungus"],
    "parents": [0, 0, 0, 0, 1, 1, 1, 2, 3],
}
REALMS = {"name": "realm", "groups": ["plant", "other"], "parents": [0, 0, 0, 1]}


def run_of(
    kind: str, backbone: dict[str, Any], classes: list[str], levels: list[Any] | None = None, **changes: Any
) -> Experiment:
    changes = {
        "data.classes": classes,
        "task": {"kind": "segmentation", "levels": levels or []},
        "model.neck": {"kind": "none"},
        "model.head": {"kind": kind},
        "model.backbone": backbone,
        **ALONE,
        **changes,
    }
    return apply_overrides(recipe("demo"), changes)


def nano(kind: str, **changes: Any) -> Experiment:
    return run_of(kind, {"kind": "mit", "variant": "nano"}, FLOWERS, **changes)


def batch_of(images: int, hw: tuple[int, int] = (64, 96), classes: int = 9) -> Batch:
    ids_BHW = torch.randint(0, classes, (images, *hw), dtype=torch.uint8)
    ids_BHW[:, 0, :3] = IGNORE
    return Batch(
        modalities={"rgb": torch.randint(0, 255, (images, 3, *hw), dtype=torch.uint8)},
        valid_hw=torch.tensor([hw] * images),
        source_hw=torch.tensor([hw] * images),
        target=MaskBatch(ids_BHW),
        image_ids=tuple(map(str, range(images))),
    )


def count(module: nn.Module | None) -> int:
    assert module is not None
    return sum(parameter.numel() for parameter in module.parameters())


class MeanLogit(PixelLoss):
    """A loss that is easy to foresee; it reads the embedding."""

    names = ("loss_mean",)

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.progress = 0.0

    def losses(
        self, logits_BKhw: Tensor, embedding_BEhw: Tensor | None, ids_BHW: Tensor
    ) -> dict[str, Tensor]:
        loss = logits_BKhw.float().square().mean()
        if embedding_BEhw is not None:
            loss = loss + embedding_BEhw[:, 0].mean()
        return {"loss_mean": loss}

    def set_progress(self, fraction: float) -> None:
        self.progress = fraction


# --- counts


@pytest.mark.parametrize(("outputs", "expected"), [(13, 11_931_773), (15, 11_932_799), (26, 11_938_442)])
def test_the_published_head_of_seghiero(outputs: int, expected: int) -> None:
    with torch.device("meta"):
        decoder, projection = ASPP(in_channels=RESNET, num_outputs=outputs), Projection(2048, 256)
    assert count(decoder) + count(projection) == expected
    assert count(projection) == 4_722_688
    assert count(decoder.pool) + count(decoder.branches) == 5_315_584
    assert count(decoder.bottleneck) == 1_311_744
    assert count(decoder.low) == 12_384
    assert count(decoder.join) == 562_704
    assert count(decoder.classify) == 513 * outputs


@pytest.mark.parametrize(("levels", "expected"), [([KINDS], 11_931_773), ([KINDS, REALMS], 11_932_799)])
def test_the_class_tree_adds_outputs(levels: list[Any], expected: int) -> None:
    loss = {"kind": "hierarchical", "triplet": {}}
    head = {"kind": "aspp", "projection": 256, "loss": loss, "auxiliary_weight": 0.4}
    run = run_of("aspp", {"kind": "timm", "name": "resnet101"}, FLOWERS, levels, **{"model.head": head})
    counts = describe_parameters(run)
    assert counts["trunk_rgb"] == 42_500_160
    assert counts["decoder"] + counts["projection"] == expected
    assert counts["auxiliary"] == 2_363_149 - 4 * 257  # classes only, not groups


@pytest.mark.parametrize(("name", "expected"), [("resnet50", 41_999_962), ("resnet101", 60_992_090)])
def test_torchvisions_deeplabv3(name: str, expected: int) -> None:
    backbone = {"kind": "timm", "name": name, "output_stride": 8}
    head = {"kind": "deeplabv3", "auxiliary_weight": 0.4}
    counts = describe_parameters(run_of("deeplabv3", backbone, STREET, **{"model.head": head}))
    assert counts["total"] == expected
    assert counts["decoder"] == 16_128_781
    assert counts["auxiliary"] == 2_363_149


def test_the_published_segformer_b5() -> None:
    head = {"kind": "segformer", "channels": 768}
    counts = describe_parameters(
        run_of("segformer", {"kind": "mit", "variant": "b5"}, STREET, **{"model.head": head})
    )
    assert counts["total"] == 84_603_341
    assert counts["decoder"] == 3_160_333


# --- outputs


def test_deeplabv3_equals_torchvision() -> None:
    """A dilated ResNet-50 with both heads, with the same weights: the same logits."""
    torch.manual_seed(0)
    theirs = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=13, aux_loss=True).eval()
    backbone = {"kind": "timm", "name": "resnet50", "output_stride": 8}
    head = {"kind": "deeplabv3", "auxiliary_weight": 0.4}
    model = build_model(run_of("deeplabv3", backbone, STREET, **{"model.head": head})).eval()
    assert isinstance(model.head, SegmentationHead)
    assert model.head.auxiliary is not None
    pairs = (
        (model.encoder.rgb_stages, theirs.backbone),
        (model.head.decoder, theirs.classifier),
        (model.head.auxiliary.layers, theirs.aux_classifier),
    )
    for ours, source in pairs:
        assert source is not None
        values = source.state_dict()
        assert len(ours.state_dict()) == len(values)
        ours.load_state_dict(dict(zip(ours.state_dict(), values.values(), strict=True)))
    x_BCHW = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        maps = model.encoder(x_BCHW, x_BCHW[:, :0]).maps
        expected = theirs(x_BCHW)
        logits = {"out": model.head.decoder(maps), "aux": model.head.auxiliary.layers(maps[2])}
    assert [x.shape[-2:] for x in maps] == [(17, 25), (9, 13), (9, 13), (9, 13)]
    for name, x in logits.items():
        resized = nn.functional.interpolate(x, size=(65, 97), mode="bilinear", align_corners=False)
        torch.testing.assert_close(resized, expected[name], rtol=1e-3, atol=1e-4)


def test_segformer_is_one_convolution_of_all_maps() -> None:
    """As the paper has it: all maps at the size of the first, concatenated."""
    channels = (3, 4, 5, 6)
    head = SegFormer(in_channels=channels, num_outputs=5, channels=8).eval()
    maps = [
        torch.randn(2, c, -(-97 // s), -(-161 // s)) for c, s in zip(channels, (4, 8, 16, 32), strict=True)
    ]
    with torch.no_grad():
        equal = [linear(x) for linear, x in zip(head.linears, maps, strict=True)]
        equal = [nn.functional.interpolate(x, maps[0].shape[2:], mode="bilinear") for x in equal]
        expected = head.classify(head.norm(head.fuse(torch.cat(equal, dim=1))))
        torch.testing.assert_close(head(maps), expected, rtol=1e-4, atol=1e-5)


def test_outputs_at_150_pixels() -> None:
    """Facts of SegHiero's own network: logits at a quarter, the embedding at a thirty-second."""
    decoder, projection = ASPP(in_channels=RESNET, num_outputs=13).eval(), Projection(2048, 256).eval()
    maps = [torch.randn(2, c, side, side) for c, side in zip(RESNET, (38, 19, 10, 5), strict=True)]
    with torch.no_grad():
        assert decoder(maps).shape == (2, 13, 38, 38)
        embedding = projection(maps[3])
    assert embedding.shape == (2, 256, 5, 5)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2, 5, 5))


@pytest.mark.parametrize("kind", ["aspp", "deeplabv3", "deeplabv3_plus"])
def test_every_tensor_has_one_name(kind: str) -> None:
    with torch.device("meta"):
        head = build_model(nano(kind)).head
    owned = sum(
        len(m._parameters) + len(m._buffers) - list(m._parameters.values()).count(None)
        for m in head.modules()
    )
    assert len(head.state_dict()) == owned


# --- training


def test_the_auxiliary_loss_is_for_training_and_can_be_negative_before_the_softmax() -> None:
    head = {"kind": "fcn", "auxiliary_weight": 0.4}
    model, batch = build_model(nano("fcn", **{"model.head": head})), batch_of(2)
    assert isinstance(model.head, SegmentationHead)
    assert model.head.auxiliary is not None
    assert model.loss_names[-1] == AUXILIARY_LOSS
    losses = model.train()(batch).losses
    assert tuple(losses) == model.loss_names
    maps = model.encoder(model.rgb_input(batch), model.aux_input(batch)).maps
    assert model.head.auxiliary.layers(maps[2]).min() < 0
    assert AUXILIARY_LOSS not in model.eval()(batch, want="losses").losses
    # About ln 9 for a head that knows nothing.
    assert losses[AUXILIARY_LOSS].item() == pytest.approx(0.4 * torch.tensor(9.0).log().item(), rel=0.3)


def test_predictions_are_logits_at_the_decoders_size() -> None:
    model = build_model(nano("extremely_fast_segformer")).eval()
    with torch.no_grad():
        output = model(batch_of(1), want="both")
    assert isinstance(output.predictions, LogitMaps)
    assert output.predictions.logits_BNHW.shape == (1, 9, 8, 12)
    assert set(output.losses) == set(model.loss_names)
    assert model(batch_of(1)).losses == {}


def test_a_projection_is_trained_where_a_loss_reads_it() -> None:
    decoder = SegFormer(in_channels=(4, 4, 4, 4), num_outputs=3, channels=8)
    maps = {str(i): torch.randn(2, 4, 16 >> i, 16 >> i) for i in range(4)}
    for is_read in (True, False):
        head = SegmentationHead(
            decoder=decoder, loss=MeanLogit(3), projection=Projection(4, 6), trains_projection=is_read
        )
        sum(head(maps, batch_of(2, (64, 64), 3), want="losses").losses.values()).backward()
        assert head.projection is not None
        assert all((p.grad is not None) == is_read == p.requires_grad for p in head.projection.parameters())


def test_progress_reaches_the_loss() -> None:
    loss = MeanLogit(3)
    head = SegmentationHead(decoder=SegFormer(in_channels=(4,) * 4, num_outputs=3, channels=8), loss=loss)
    head.set_progress(0.25)
    assert loss.progress == 0.25


def test_one_image_is_refused_where_a_batch_norm_sees_pooled_images() -> None:
    for kind in ("aspp", "deeplabv3", "deeplabv3_plus"):
        model = build_model(nano(kind))
        assert model.head.least_images == 2
        with pytest.raises(ConfigError, match=r"expected a micro-batch of at least 2 images, .* got 1"):
            model.train()(batch_of(1))
        assert model.eval()(batch_of(1)).predictions is not None
    assert build_model(nano("segformer")).train()(batch_of(1)).losses


def test_boxes_are_refused() -> None:
    batch = batch_of(2)
    boxes = BoxBatch(
        torch.zeros(2, 1, 4), torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
    )
    with_boxes = Batch(batch.modalities, batch.valid_hw, batch.source_hw, boxes, batch.image_ids)
    with pytest.raises(DataError, match="expected a batch with masks, got boxes"):
        build_model(nano("segformer"))(with_boxes)


def test_a_pooled_norm_that_sees_all_workers_takes_one_image() -> None:
    class SyncedNorm(nn.BatchNorm2d):
        pass

    decoder: Decoder = DeepLabV3(in_channels=(4, 4, 4, 4), num_outputs=3, channels=8)
    head = SegmentationHead(decoder=decoder, loss=MeanLogit(3))
    assert head.least_images == 2
    assert decoder.pooled_norm is not None
    decoder.pooled_norm.__class__ = SyncedNorm
    assert head.least_images == 1


# --- fusions whose fused map is not read


def dual(kind: str, fusion: str, stages: list[int], flow: str = "rectified") -> Model:
    changes = {
        "model.fusion": {"kind": fusion},
        "model.fusion_stages": stages,
        "model.aux_modalities": ["thermal"],
        "model.flow": flow,
    }
    return build_model(nano(kind, **changes))


def test_only_what_no_gradient_reaches_is_frozen() -> None:
    frozen = {n for n, p in dual("aspp", "cmx", [1, 2, 3, 4]).named_parameters() if not p.requires_grad}
    assert frozen == {
        f"encoder.fusions.{stage}.{name}"
        for stage in (1, 2)
        for name, _ in dual("segformer", "cmx", [1, 2, 3, 4]).encoder.fusions[stage].named_parameters()
        if name.startswith("ffm.")
    }
    assert all(p.requires_grad for p in dual("aspp", "cmx", [1, 2, 3, 4], "fused").parameters())
    assert all(p.requires_grad for p in dual("segformer", "cmx", [1, 2, 3, 4]).parameters())


def test_a_second_stream_without_influence_is_refused() -> None:
    with pytest.raises(ConfigError, match="reads the maps of stages 1, 4 only, and the fusion at stage 2"):
        dual("aspp", "add", [1, 2])
    dual("aspp", "add", [1, 2], "fused")
    dual("aspp", "cmx", [1, 2])
    dual("segformer", "add", [1, 2])

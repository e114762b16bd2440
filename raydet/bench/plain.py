"""A plain implementation of the same detector: the reference for the numbers, the baseline for the speed.

It follows the published runs' step: attention with its N x M weights in memory, maps made contiguous after every
operation, gates on concatenated maps, torchvision's own RPN, RoI heads and image list. It uses the layers of a
detector (same weights and names), but none of its forward functions.

Legend: B batch, C channels, H W map, N = H W tokens, M tokens after the reduction, A attention heads, D = C / A.
"""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.poolers import LevelMapper, MultiScaleRoIAlign

from raydet.config import Experiment, FasterRCNNConfig
from raydet.models.backbones.mit import Block, EfficientAttention, MiTStage, MixFFN
from raydet.models.fusion.base import Fusion, FusionOutput, Guides, route
from raydet.models.fusion.cmx import CMX, FFM, FRM
from raydet.models.fusion.gaff import GAFF, InterModalityGates, SqueezeExcitation
from raydet.models.fusion.guided import guide_losses
from raydet.models.heads.faster_rcnn import FasterRCNN
from raydet.models.heads.targets import Targets
from raydet.models.model import Model
from raydet.models.necks.fpn import FPN
from raydet.structures import Batch, Carry, Output, Want

SEEDS_MIN_SIZE = 800
SEEDS_MAX_SIZE = 1333
LEVELS = ("0", "1", "2", "3", "pool")


class PlainDetector(nn.Module):
    """Losses of a batch; training only.

    Args:
        detector: its layers are copied to `parts`, with the same state-dict keys.
        experiment: settings of the head and of the normalisation.
        min_size: None: the batch's canvas; a number: resize the shorter side to it (the published runs: 800).
    """

    def __init__(self, detector: Model, experiment: Experiment, *, min_size: int | None = None) -> None:
        super().__init__()
        self.parts = copy.deepcopy(detector)
        head, own_head = experiment.model.head, self.parts.head
        assert isinstance(own_head, FasterRCNN)
        assert isinstance(head, FasterRCNNConfig)
        # In a tuple, so that their parameters, which are in `parts`, are not registered twice.
        self.stages: tuple[RegionProposalNetwork, RoIHeads] = (
            _rpn(own_head, head),
            _roi_heads(own_head, head),
        )
        num_channels = sum(self.parts.rgb_input.num_channels.values()) + sum(
            self.parts.aux_input.num_channels.values()
        )
        # Images are already normalised, so this only resizes.
        self.resize = min_size and GeneralizedRCNNTransform(
            min_size, SEEDS_MAX_SIZE, image_mean=[0.0] * num_channels, image_std=[1.0] * num_channels
        )

    @property
    def loss_names(self) -> tuple[str, ...]:
        """As the model's."""
        return self.parts.loss_names

    def forward(self, batch: Batch, carry: Carry | None = None, *, want: Want = "losses") -> Output:
        """The losses; called as the model itself."""
        unpadded = normalised(self.parts, batch)
        targets = [
            {"boxes": boxes[:count], "labels": labels[:count] + 1}
            for boxes, labels, count in zip(
                batch.boxes_xyxy, batch.labels, batch.counts.tolist(), strict=True
            )
        ]
        if self.resize:
            images, targets = self.resize(unpadded, targets)
        else:
            images = ImageList(
                padded(unpadded, batch.canvas_hw), [(x.shape[1], x.shape[2]) for x in unpadded]
            )
        maps, guides = encode(self.parts, images.tensors)
        neck = self.parts.neck
        assert isinstance(neck, FPN)
        pyramid = neck.fpn(OrderedDict(zip(LEVELS, maps, strict=False)))
        rpn, roi_heads = self.stages
        proposals, rpn_losses = rpn.train()(images, pyramid, targets)
        _, box_losses = roi_heads.train()(pyramid, proposals, images.image_sizes, targets)
        return Output({**rpn_losses, **box_losses, **_guide_losses(guides, targets, images)}, None, {})


# --- images


def normalised(parts: Model, batch: Batch) -> list[Tensor]:
    """One normalised image [C, H, W] per row, without padding; the channels of both streams."""
    mean = torch.cat([parts.rgb_input.mean, parts.aux_input.mean])
    std = torch.cat([parts.rgb_input.std, parts.aux_input.std])
    is_present = torch.cat([parts.rgb_input.is_present, parts.aux_input.is_present])
    unpadded = []
    for row, (height, width) in enumerate(batch.valid_hw.tolist()):
        streams = []
        for stream in (parts.rgb_input, parts.aux_input):
            for name, channels in stream.num_channels.items():
                if name in stream.missing:
                    streams.append(stream.mean.new_zeros(channels, height, width))
                    continue
                x_CHW = batch.modalities[name][row, :, :height, :width]
                streams.append(x_CHW.float() / 255 if x_CHW.dtype == torch.uint8 else x_CHW)
        unpadded.append(((torch.cat(streams) - mean) / std) * is_present)
    return unpadded


def padded(images: list[Tensor], canvas_hw: tuple[int, int]) -> Tensor:
    """[B, C, H, W], the images with zeros to the right and below."""
    height, width = canvas_hw
    return torch.stack([F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in images])


# --- encoder


def encode(parts: Model, images_BCHW: Tensor) -> tuple[list[Tensor], list[Guides]]:
    """The encoder's four maps, and the guides of its fusions."""
    encoder, outputs = parts.encoder, []
    num_rgb = sum(parts.rgb_input.num_channels.values())
    rgb_BCHW, aux_BCHW = images_BCHW[:, :num_rgb], images_BCHW[:, num_rgb:]
    for stage, fusion in enumerate(encoder.fusions):
        assert isinstance(fusion, Fusion)
        rgb_BCHW = _stage(encoder.rgb_stages[stage], rgb_BCHW)
        if stage < len(encoder.aux_stages):
            aux_BCHW = _stage(encoder.aux_stages[stage], aux_BCHW)
        outputs.append(_fuse(fusion, rgb_BCHW, aux_BCHW))
        rgb_BCHW, aux_BCHW = outputs[-1].rgb_next, outputs[-1].aux_next
    return [out.fused for out in outputs], [out.guides for out in outputs if out.guides is not None]


def _stage(stage: nn.Module, x_BCHW: Tensor) -> Tensor:
    if not isinstance(stage, MiTStage):  # timm's stages are plain already
        return stage(x_BCHW.contiguous())
    x_BCHW = stage.patch_embed.proj(x_BCHW.contiguous())
    hw = (x_BCHW.shape[2], x_BCHW.shape[3])
    x_BNC = stage.patch_embed.norm(x_BCHW.flatten(2).transpose(1, 2))
    for block, rate in zip(stage.blocks, stage.drop_path_rates, strict=True):
        assert isinstance(block, Block)
        rate = rate if stage.training else 0.0
        x_BNC = x_BNC + _drop_path(_attention(block.attention, block.norm1(x_BNC), hw), rate)
        x_BNC = x_BNC + _drop_path(_ffn(block.ffn, block.norm2(x_BNC), hw), rate)
    return _map(stage.norm(x_BNC), hw)


def _map(x_BNC: Tensor, hw: tuple[int, int]) -> Tensor:
    return x_BNC.transpose(1, 2).reshape(len(x_BNC), -1, *hw).contiguous()


def _drop_path(x_BNC: Tensor, rate: float) -> Tensor:
    if rate == 0.0:
        return x_BNC
    keep_B11 = x_BNC.new_empty(len(x_BNC), 1, 1).bernoulli_(1 - rate)
    return x_BNC * keep_B11.div_(1 - rate)


def _attention(attention: EfficientAttention, x_BNC: Tensor, hw: tuple[int, int]) -> Tensor:
    B, N, C = x_BNC.shape
    A = attention.num_heads
    D = C // A
    q_BAND = attention.query(x_BNC).reshape(B, N, A, D).permute(0, 2, 1, 3)
    reduced_BMC = x_BNC
    if attention.reduce is not None:
        reduced_BCHW = attention.reduce(_map(x_BNC, hw))
        reduced_BMC = attention.reduce_norm(reduced_BCHW.reshape(B, C, -1).permute(0, 2, 1))
    k_BAMD, v_BAMD = attention.key_value(reduced_BMC).reshape(B, -1, 2, A, D).permute(2, 0, 3, 1, 4)
    weights_BANM = ((q_BAND @ k_BAMD.transpose(-2, -1)) * D**-0.5).softmax(dim=-1)
    return attention.proj((weights_BANM @ v_BAMD).transpose(1, 2).reshape(B, N, C))


def _ffn(ffn: MixFFN, x_BNC: Tensor, hw: tuple[int, int]) -> Tensor:
    hidden_BCHW = ffn.depthwise(_map(ffn.expand(x_BNC), hw))
    return ffn.contract(F.gelu(hidden_BCHW.flatten(2).transpose(1, 2)))


# --- fusions


def _fuse(fusion: Fusion, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> FusionOutput:
    match fusion:
        case CMX():
            rgb_BCHW, aux_BCHW = _frm(fusion.frm, rgb_BCHW, aux_BCHW)
            fused_BCHW = _ffm(fusion.ffm, rgb_BCHW, aux_BCHW)
        case GAFF():
            fused_BCHW, rgb_BCHW, aux_BCHW = _gaff(fusion, rgb_BCHW, aux_BCHW)
        case _:  # the others are plain already
            return fusion(rgb_BCHW, aux_BCHW)
    return route(fusion.flow, fused=fused_BCHW, rgb_rectified=rgb_BCHW, aux_rectified=aux_BCHW)


def _frm(frm: FRM, x1_BCHW: Tensor, x2_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    B, C, H, W = x1_BCHW.shape
    both = torch.cat((x1_BCHW, x2_BCHW), dim=1)
    pooled = torch.cat((F.adaptive_avg_pool2d(both, 1), F.adaptive_max_pool2d(both, 1)), dim=1)
    channel = frm.channel_gate(pooled.view(B, -1)).reshape(B, 2, C, 1, 1).permute(1, 0, 2, 3, 4)
    spatial = frm.spatial_gate(both).reshape(B, 2, 1, H, W).permute(1, 0, 2, 3, 4)
    by_channel, by_pixel = frm.lambda_channel, frm.lambda_spatial
    return (
        x1_BCHW + by_channel * channel[1] * x2_BCHW + by_pixel * spatial[1] * x2_BCHW,
        x2_BCHW + by_channel * channel[0] * x1_BCHW + by_pixel * spatial[0] * x1_BCHW,
    )


def _ffm(ffm: FFM, x1_BCHW: Tensor, x2_BCHW: Tensor) -> Tensor:
    path, hw = ffm.cross_path, (x1_BCHW.shape[2], x1_BCHW.shape[3])
    x1_BNC, x2_BNC = (x.flatten(2).transpose(1, 2) for x in (x1_BCHW, x2_BCHW))
    y1_BNC, u1_BNC = F.relu(path.project1(x1_BNC)).chunk(2, dim=-1)
    y2_BNC, u2_BNC = F.relu(path.project2(x2_BNC)).chunk(2, dim=-1)
    heads = path.cross.num_heads
    context1 = _context(path.cross.key_value1, u1_BNC, heads)
    context2 = _context(path.cross.key_value2, u2_BNC, heads)
    v1_BNC = (_split_heads(u1_BNC, heads) @ context2).permute(0, 2, 1, 3).reshape(u1_BNC.shape).contiguous()
    v2_BNC = (_split_heads(u2_BNC, heads) @ context1).permute(0, 2, 1, 3).reshape(u2_BNC.shape).contiguous()
    out1_BNC = path.norm1(x1_BNC + path.end1(torch.cat((y1_BNC, v1_BNC), dim=-1)))
    out2_BNC = path.norm2(x2_BNC + path.end2(torch.cat((y2_BNC, v2_BNC), dim=-1)))
    merged = _map(torch.cat((out1_BNC, out2_BNC), dim=-1), hw)
    embed = ffm.channel_embed
    return embed.norm(embed.shortcut(merged) + embed.branch(merged))


def _split_heads(x_BNC: Tensor, heads: int) -> Tensor:
    return x_BNC.reshape(*x_BNC.shape[:2], heads, -1).permute(0, 2, 1, 3).contiguous()


def _context(key_value: nn.Linear, u_BNC: Tensor, heads: int) -> Tensor:
    B, N, C = u_BNC.shape
    k, v = key_value(u_BNC).reshape(B, N, 2, heads, C // heads).permute(2, 0, 3, 1, 4).contiguous()
    return ((k.transpose(-2, -1) @ v) * (C // heads) ** -0.5).softmax(dim=-2)


def _gaff(gaff: GAFF, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    into_rgb, into_aux = _gates(gaff.inter, torch.cat((rgb_BCHW, aux_BCHW), dim=1)).chunk(2, dim=1)
    excited_rgb, excited_aux = _excited(gaff.se_rgb, rgb_BCHW), _excited(gaff.se_aux, aux_BCHW)
    if gaff.own is not None:
        excited_rgb, excited_aux = gaff.own[0] * excited_rgb, gaff.own[1] * excited_aux
    if gaff.partner is not None:
        into_rgb, into_aux = gaff.partner[0] * into_rgb, gaff.partner[1] * into_aux
    rgb_guided, aux_guided = excited_rgb + into_rgb * aux_BCHW, excited_aux + into_aux * rgb_BCHW
    return gaff.merge(torch.cat((rgb_guided, aux_guided), dim=1)), rgb_guided, aux_guided


def _gates(inter: InterModalityGates, both_BCHW: Tensor) -> Tensor:
    height, width = both_BCHW.shape[2:]
    levels = [torch.cat([conv(both_BCHW) for conv in inter.convs], dim=1)]
    for scale, convs in enumerate(inter.coarse, 1):
        assert isinstance(convs, nn.ModuleList)
        pooled = F.avg_pool2d(both_BCHW, 2**scale, ceil_mode=True)
        logits = torch.cat([conv(pooled) for conv in convs], dim=1)
        levels.append(F.interpolate(logits, scale_factor=2**scale, mode="bilinear")[..., :height, :width])
    return (torch.stack(levels).mean(dim=0) if inter.coarse else levels[0]).sigmoid()


def _excited(excitation: nn.Module, x_BCHW: Tensor) -> Tensor:
    if not isinstance(excitation, SqueezeExcitation):
        return x_BCHW
    return x_BCHW * excitation.gate(F.adaptive_avg_pool2d(x_BCHW, 1).flatten(1))[..., None, None]


def _guide_losses(
    guides: list[Guides], targets: list[dict[str, Tensor]], images: ImageList
) -> dict[str, Tensor]:
    if not guides:
        return {}
    boxes_BG4 = pad_sequence([target["boxes"] for target in targets], batch_first=True)
    labels_BG = pad_sequence([target["labels"] for target in targets], batch_first=True)
    return guide_losses(
        guides,
        Targets(boxes_BG4, labels_BG, labels_BG > 0),
        canvas_hw=images.tensors.shape[-2:],
        valid_hw_B2=torch.tensor(images.image_sizes, device=boxes_BG4.device),
    )


# --- head


def _rpn(head: FasterRCNN, config: FasterRCNNConfig) -> RegionProposalNetwork:
    return RegionProposalNetwork(
        head.rpn.anchor_generator,
        head.rpn.head,
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=config.rpn_batch_size_per_image,
        positive_fraction=0.5,
        pre_nms_top_n=dict(zip(("training", "testing"), config.rpn_pre_nms_top_n, strict=True)),
        post_nms_top_n=dict(zip(("training", "testing"), config.rpn_post_nms_top_n, strict=True)),
        nms_thresh=0.7,
    )


def _roi_heads(head: FasterRCNN, config: FasterRCNNConfig) -> RoIHeads:
    levels = LEVELS if config.pool_level_rois else LEVELS[:-1]
    pooling = MultiScaleRoIAlign(list(levels), output_size=7, sampling_ratio=2)
    # Set here, because torchvision would infer them from the valid part of the first batch.
    pooling.scales = [0.5**level for level in range(2, 2 + len(levels))]
    pooling.map_levels = LevelMapper(k_min=2, k_max=1 + len(levels))
    return RoIHeads(
        pooling,
        head.roi_heads.box_head,
        head.roi_heads.box_predictor,
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=config.box_batch_size_per_image,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=config.score_threshold,
        nms_thresh=config.nms_threshold,
        detections_per_img=config.max_detections,
    )

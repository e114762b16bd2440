"""What the detector is: backbone, fusion per stage, neck, head."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from raydet.config.base import Config
from raydet.config.data import Modality
from raydet.config.losses import CrossEntropyLoss, HierarchicalLoss, MaskLoss

MiTVariant = Literal["nano", "b0", "b1", "b2", "b3", "b4", "b5"]
RVTVariant = Literal["nano", "tiny", "small", "base"]
Stage = Annotated[int, Field(ge=1, le=4)]
Flow = Literal["rectified", "fused"]
Count = Annotated[int, Field(ge=1)]
PerStage = Count | tuple[Count, Count, Count, Count]
"""One number, or one for each of the four stages."""


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"must be odd, got {value}")
    return value


class WeightsConfig(Config):
    """What both streams start from, in place of random weights: the same file."""

    path: Annotated[str, Field(min_length=1)] | None = None
    """A safetensors file: a path on the machine of the first worker, file:// or https://; or a name, looked up on the
    machine of the first worker: hf://OWNER/NAME[@REVISION][/FILE] or timm://MODEL[.TAG]; null: none."""
    strict: bool = True
    """Every tensor of the backbone must be in the file. Off: what is not keeps the seed's weights."""


class MiTConfig(Config):
    """Mix Transformer encoder (SegFormer, arXiv 2105.15203), two streams without weight sharing."""

    kind: Literal["mit"] = "mit"
    variant: MiTVariant
    """b0..b5 as published; nano is our own for demos and tests."""
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Rate of the last block; grows linearly from 0."""
    init: Literal["segformer", "seed"] = "segformer"
    """Initial weights: as the SegFormer and CMX papers, or PyTorch's defaults everywhere but in FFM, as the
    published runs that we compare with."""
    pretrained: WeightsConfig = WeightsConfig()
    """SegFormer's weights, in its authors' names or in Transformers'."""

    @property
    def label(self) -> str:
        """As `--backbone` takes it."""
        return f"mit_{self.variant}"


class TimmConfig(Config):
    """A model of timm that gives maps at strides 4, 8, 16 and 32, such as resnet50 and tf_efficientnet_lite0, and
    whose layers are a chain: each takes the output of the one before it and nothing else.

    Fusions grow with the square of a stage's width, which is up to 2048 in resnet50: cmx takes 240 million parameters
    there, ten times the backbone's.
    """

    kind: Literal["timm"] = "timm"
    name: Annotated[str, Field(min_length=1)]
    """As timm.create_model takes it."""
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Rate of the last block, where the model knows one; grows as the model does it."""
    pretrained: WeightsConfig = WeightsConfig()
    """Weights of the same model in timm's names; of an EfficientNet also in those of EfficientNet-PyTorch."""
    frozen_stages: Annotated[int, Field(ge=0, le=4)] = 0
    """So many stages of both streams, from the first, keep their pretrained weights: for few images, and faster."""
    frozen_norms: bool = False
    """BatchNorm keeps its pretrained weights and statistics, in training too: for batches too small for their own."""
    output_stride: Literal[8, 16, 32] = 32
    """Image pixels per cell of the last map. 8 and 16 give finer maps for masks: the later stages do not halve the map,
    and dilate their convolutions instead, where the model can. The weights are the same."""

    @model_validator(mode="after")
    def _something_to_freeze(self) -> Self:
        if (self.frozen_stages or self.frozen_norms) and self.pretrained.path is None:
            raise ValueError(
                "frozen_stages and frozen_norms keep pretrained weights as they are: set pretrained.path, "
                "or set frozen_stages=0 and frozen_norms=false"
            )
        return self

    @property
    def label(self) -> str:
        """As `--backbone` takes it."""
        return self.name


class RVTConfig(Config):
    """The recurrent backbone for event cameras (RVT, arXiv 2212.05598): MaxViT attention, an LSTM at every stage."""

    kind: Literal["rvt"] = "rvt"
    variant: RVTVariant
    """tiny, small and base as published; nano is our own for demos and tests."""
    patch: Literal[2, 4] = 4
    """Image pixels per cell of the first map, of which each later one has half the size: 2 is for objects of a few
    pixels, at four times the memory."""
    memory: Literal["lstm", "none"] = "lstm"
    """What every stage remembers from frame to frame."""
    partition_px: Literal[32, 64] = 64
    """Both sides of the canvas must be multiples of it. Attention is among canvas height / this x canvas width / this
    tokens: 64 is for canvases such as 384 x 640, 32 for those of about 256 x 320."""

    @property
    def drop_path_rate(self) -> float:
        """It has no stochastic depth."""
        return 0.0

    @property
    def label(self) -> str:
        """As `--backbone` takes it."""
        return f"rvt_{self.variant}"

    @property
    def pretrained(self) -> WeightsConfig:
        """None: it starts from random weights."""
        return WeightsConfig()


Backbone = Annotated[MiTConfig | TimmConfig | RVTConfig, Field(discriminator="kind")]


class CMXFusion(Config):
    """FRM + FFM of CMX (arXiv 2203.04838): the baseline."""

    kind: Literal["cmx"] = "cmx"


class GAFFFusion(Config):
    """Squeeze-and-excitation per modality, pixelwise cross-modal gates, 1x1 merge (after GAFF, WACV 2021)."""

    kind: Literal["gaff"] = "gaff"
    se_reduction: PerStage | None = 4
    """Width of the squeeze is that of the map over this; null leaves the excitation out (GAFF-Lite)."""
    inter_shared: bool = False
    """One 2C -> 2C gate convolution instead of two 2C -> C: the same function class, so a null factor."""
    inter_scales: Annotated[int, Field(ge=1, le=6)] = 1
    """Resolutions at which the gates are computed, each half as fine as the one before."""
    merge_bottleneck: bool = False
    merge_weights: Literal["none", "partner", "both"] = "none"
    """Learnt numbers, 1 at first, in front of what each stream takes from its partner, or of its own part as well."""
    out_channels: PerStage | None = None
    """Channels of the fused map; null: those of a stream. Others fit where the fused map enters no next stage."""
    gated: bool = False
    """The fused map is mixed with the RGB map, by a gate per pixel and channel."""
    guide_intra: bool = False
    """The paper's masks, one per modality, in front of the block: trained to show the objects (`loss_guide_intra`)."""
    guide_inter: bool = False
    """The paper's weights, too: trained to pick the modality whose mask errs less (`loss_guide_inter`)."""

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if self.guide_inter and not self.guide_intra:
            raise ValueError("guide_inter picks the modality whose mask errs less: set guide_intra, too")
        if self.gated and self.out_channels is not None:
            raise ValueError(
                "gated mixes the fused map with the RGB map, so both have its channels: "
                f"leave out out_channels, got {self.out_channels}"
            )
        return self


class AddFusion(Config):
    """The sum of both maps."""

    kind: Literal["add"] = "add"


class ConcatFusion(Config):
    """Both maps, and a 1x1 convolution back to the width of one."""

    kind: Literal["concat"] = "concat"


class LateConcatFusion(Config):
    """The streams meet in the lateral convolutions of the pyramid, not in the encoder."""

    kind: Literal["late_concat"] = "late_concat"


class CrossAttentionFusion(Config):
    """Multi-head cross-attention both ways, with the stage's heads and reduction, and a 1x1 merge."""

    kind: Literal["cross_attention"] = "cross_attention"


class CSSAFusion(Config):
    """Channel switching and spatial attention (PBVS at CVPR 2023)."""

    kind: Literal["cssa"] = "cssa"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """A channel whose weight is below it is taken from the other stream; 0 and 1 are the same function."""
    kernel_size: Annotated[int, Field(ge=1), AfterValidator(_odd)] | None = 3
    """Neighbouring channels that a weight looks at; null follows ECA-Net's rule."""
    straight_through: bool = False
    """Train the channel weights; as published they stay as they were drawn."""
    variant: Literal["plain", "conv7"] = "plain"
    """`conv7` is what the ablation's guide describes, `plain` what its code does."""


class IdentityFusion(Config):
    """No fusion: the RGB map goes to the detector, both streams continue alone."""

    kind: Literal["identity"] = "identity"


Fusion = Annotated[
    AddFusion
    | ConcatFusion
    | LateConcatFusion
    | CMXFusion
    | GAFFFusion
    | CSSAFusion
    | CrossAttentionFusion
    | IdentityFusion,
    Field(discriminator="kind"),
]


class FPNConfig(Config):
    """Feature pyramid network with the extra `pool` level."""

    kind: Literal["fpn"] = "fpn"
    channels: Annotated[int, Field(ge=1)] = 256


class PAFPNConfig(Config):
    """Path aggregation with CSP layers, the neck of YOLOX (arXiv 2107.08430)."""

    kind: Literal["pafpn"] = "pafpn"
    levels: Literal[3, 4] = 3
    """3: the encoder's last three maps; 4: its first one, too, for small objects."""
    depth: Annotated[float, Field(gt=0)] = 0.67
    """Bottlenecks per layer over 3, rounded. Published: 0.67 with rvt_base, 0.33 with the smaller ones."""


class NoNeckConfig(Config):
    """The head takes the encoder's four maps as they are."""

    kind: Literal["none"] = "none"


class FasterRCNNConfig(Config):
    """RPN and box head; defaults are torchvision's."""

    kind: Literal["faster_rcnn"] = "faster_rcnn"
    anchor_sizes: tuple[float, float, float, float, float] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Anchor side per level, in canvas pixels."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width."""
    rpn_pre_nms_top_n: tuple[int, int] = (2000, 1000)
    """Proposals per level kept before NMS, in training and at test."""
    rpn_post_nms_top_n: tuple[int, int] = (2000, 1000)
    rpn_batch_size_per_image: Annotated[int, Field(ge=2)] = 256
    box_batch_size_per_image: Annotated[int, Field(ge=4)] = 512
    box_hidden: Annotated[int, Field(ge=1)] = 1024
    pool_level_rois: bool = True
    """RoIs may be pooled from the `pool` level too, as in the published runs (torchvision leaves it out)."""
    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.05
    nms_threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    max_detections: Annotated[int, Field(ge=1)] = 100


class YOLOXConfig(Config):
    """One object per cell, without anchors (arXiv 2107.08430)."""

    kind: Literal["yolox"] = "yolox"
    hidden: Count | None = None
    """Width of the branches; null: a quarter of that of the last map, as published."""
    size_aware: Literal["off", "exponential", "step", "linear"] = "off"
    """How the weight of the box loss grows for small objects: see `raydet.models.heads.size_aware`."""
    size_factor: Annotated[float, Field(ge=1)] = 2.0
    """Weight of the smallest objects."""
    score: Literal["product", "class"] = "product"
    """What ranks detections: objectness times class, or class alone, as in RVT's evaluation. The threshold and NMS take
    the product."""
    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.1
    nms_threshold: Annotated[float, Field(gt=0, le=1)] = 0.45
    max_detections: Annotated[int, Field(ge=1)] = 100


class MaskHead(Config):
    """What heads for masks share."""

    loss: MaskLoss = CrossEntropyLoss()
    projection: Annotated[int, Field(ge=1)] | None = None
    """Channels of an embedding of the last map, of unit length, beside the logits; null: none."""
    auxiliary_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the loss of a small head on the third map, in training only; 0: no such head."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Of whole channels, in front of the classifier."""


class ASPPConfig(MaskHead):
    """Depthwise-separable atrous spatial pyramid pooling on the last map, joined with the first (DeepLabv3+, arXiv
    1802.02611; as SegHiero has it)."""

    kind: Literal["aspp"] = "aspp"
    channels: Count = 512
    low_channels: Count = 48
    """Channels to which the first map is reduced."""
    dilations: tuple[Count, Count, Count, Count] = (1, 12, 24, 36)


class SegFormerConfig(MaskHead):
    """The four maps to equal width, upsampled to the first, concatenated, one convolution (arXiv 2105.15203)."""

    kind: Literal["segformer"] = "segformer"
    channels: Count = 256


class UltraFastSegFormerConfig(MaskHead):
    """As `segformer`, but the maps are summed."""

    kind: Literal["ultrafast_segformer"] = "ultrafast_segformer"
    channels: Count = 128


class ExtremelyFastSegFormerConfig(MaskHead):
    """Maps 2 to 4 only, summed at a stride of 8, one depthwise-separable convolution."""

    kind: Literal["extremely_fast_segformer"] = "extremely_fast_segformer"
    channels: Count = 64


class DeepLabV3Config(MaskHead):
    """Atrous spatial pyramid pooling on the last map (arXiv 1706.05587), as torchvision has it."""

    kind: Literal["deeplabv3"] = "deeplabv3"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """As in every head; torchvision has none there, but drops half of the values behind the pooling, as we do."""
    channels: Count = 256
    dilations: tuple[Count, Count, Count] = (12, 24, 36)


class DeepLabV3PlusConfig(MaskHead):
    """`deeplabv3`, joined with the first map (arXiv 1802.02611)."""

    kind: Literal["deeplabv3_plus"] = "deeplabv3_plus"
    channels: Count = 256
    low_channels: Count = 48
    dilations: tuple[Count, Count, Count] = (12, 24, 36)


class FCNConfig(MaskHead):
    """One convolution on the last map and a classifier (arXiv 1411.4038), as torchvision has it."""

    kind: Literal["fcn"] = "fcn"


MaskHeads = (
    ASPPConfig
    | SegFormerConfig
    | UltraFastSegFormerConfig
    | ExtremelyFastSegFormerConfig
    | DeepLabV3Config
    | DeepLabV3PlusConfig
    | FCNConfig
)
Head = Annotated[FasterRCNNConfig | YOLOXConfig | MaskHeads, Field(discriminator="kind")]
Neck = Annotated[FPNConfig | PAFPNConfig | NoNeckConfig, Field(discriminator="kind")]


class ModelConfig(Config):
    """The whole model."""

    backbone: Backbone
    rgb_modalities: tuple[Modality, ...] = ("rgb",)
    """Modalities stacked into the first stream."""
    aux_modalities: tuple[Modality, ...] = ("thermal", "event")
    """Modalities stacked into the second stream."""
    fusion: Fusion = CMXFusion()
    """Used at `fusion_stages`."""
    fusion_stages: tuple[Stage, ...] = (1, 2, 3, 4)
    elsewhere: CMXFusion | IdentityFusion = Field(default=CMXFusion(), discriminator="kind")
    """Used at the other stages."""
    flow: Flow = "rectified"
    """What enters the next stage of each stream: its own rectified map, or the fused map (both streams). The published
    GAFF and CSSA runs are `fused`; the published baseline is `rectified`."""
    neck: Neck = FPNConfig()
    head: Head = FasterRCNNConfig()

    @model_validator(mode="after")
    def _stages_are_a_set(self) -> Self:
        if tuple(sorted(set(self.fusion_stages))) != self.fusion_stages:
            raise ValueError(
                f"fusion_stages must be ascending without repeats, got {list(self.fusion_stages)}"
            )
        return self

    @model_validator(mode="after")
    def _neck_and_head_fit(self) -> Self:
        match self.head:
            case FasterRCNNConfig():
                if not isinstance(self.neck, FPNConfig):
                    raise ValueError(f"head.kind=faster_rcnn takes neck.kind=fpn, got {self.neck.kind}")
                if isinstance(self.backbone, RVTConfig) and self.backbone.patch != 4:
                    raise ValueError(
                        "neck.kind=fpn needs maps at strides 4, 8, 16 and 32: expected backbone.patch=4, got "
                        f"{self.backbone.patch}; head.kind=yolox takes others"
                    )
            case YOLOXConfig():
                if not isinstance(self.neck, PAFPNConfig):
                    raise ValueError(f"head.kind=yolox takes neck.kind=pafpn, got {self.neck.kind}")
            case MaskHead(loss=loss, projection=projection):
                if not isinstance(self.neck, NoNeckConfig):
                    raise ValueError(f"head.kind={self.head.kind} takes neck.kind=none, got {self.neck.kind}")
                if isinstance(loss, HierarchicalLoss) and loss.triplet is not None and projection is None:
                    raise ValueError(
                        "head.loss.triplet compares embeddings: set head.projection, e.g. to 256"
                    )
                if isinstance(self.fusion, GAFFFusion) and self.fusion.guide_intra:
                    raise ValueError(
                        f"fusion.guide_intra is trained with boxes, head.kind={self.head.kind} has masks: set "
                        "guide_intra=false"
                    )
        return self

    @model_validator(mode="after")
    def _pyramids_halve_their_maps(self) -> Self:
        is_pyramid = isinstance(self.neck, FPNConfig | PAFPNConfig)
        if is_pyramid and isinstance(self.backbone, TimmConfig) and self.backbone.output_stride != 32:
            raise ValueError(
                f"neck.kind={self.neck.kind} needs maps at strides 4, 8, 16 and 32: expected "
                f"backbone.output_stride=32, got {self.backbone.output_stride}"
            )
        return self

    def fusion_at(self, stage: int) -> Fusion:
        """The fusion that stage 1..4 uses."""
        return self.fusion if stage in self.fusion_stages else self.elsewhere

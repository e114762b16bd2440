"""Recipes for masks. Their embedded sets have a class tree; `--data` brings the classes and the tree of a set."""

from __future__ import annotations

from raydet.config import (
    AdamWConfig,
    ASPPConfig,
    Augmentation,
    Backbone,
    CMXFusion,
    CosineSchedule,
    DataConfig,
    Experiment,
    ExtremelyFastSegFormerConfig,
    HierarchicalLoss,
    IdentityFusion,
    MaskHeads,
    MiTConfig,
    ModelConfig,
    NoNeckConfig,
    SegFormerConfig,
    SegmentationTask,
    SGDConfig,
    TimmConfig,
    TrainConfig,
    TreeSource,
    TripletConfig,
)
from raydet.config.tree import TREE_CLASSES, TREE_LEVELS

SEGFORMER = AdamWConfig(
    lr=6e-5, weight_decay=0.01, schedule=CosineSchedule(warmup_steps=1500, final_fraction=0.0)
)
"""The rate of SegFormer's published runs (arXiv 2105.15203), whose schedule falls along a line."""


def _data(*, size: int, thermal: bool = False, num_images: int = 240) -> DataConfig:
    return DataConfig(
        source=TreeSource(num_images=num_images, thermal=thermal),
        classes=TREE_CLASSES,
        missing=("event",) if thermal else ("thermal", "event"),
        canvas_hw=(size, size),
        augmentation=Augmentation(flip_probability=0.5, scale_jitter=(1.0, 1.0)),
    )


def one_stream(backbone: Backbone, head: MaskHeads) -> ModelConfig:
    """RGB alone."""
    return ModelConfig(
        backbone=backbone,
        aux_modalities=(),
        fusion=IdentityFusion(),
        elsewhere=IdentityFusion(),
        fusion_stages=(),
        neck=NoNeckConfig(),
        head=head,
    )


def seg_demo() -> Experiment:
    """Two streams, two minutes on two CPU cores: neither RGB nor thermal tells all classes."""
    return Experiment(
        name="seg_demo",
        task=SegmentationTask(levels=TREE_LEVELS),
        data=_data(size=96, thermal=True),
        model=ModelConfig(
            backbone=MiTConfig(variant="nano", drop_path_rate=0.0),
            aux_modalities=("thermal",),
            fusion=CMXFusion(),
            neck=NoNeckConfig(),
            head=SegFormerConfig(channels=48, dropout=0.0),
        ),
        optim=AdamWConfig(lr=3e-3, weight_decay=0.01, schedule=CosineSchedule(warmup_steps=10)),
        train=TrainConfig(epochs=10, global_batch=8, eval_batch=8, eval_every=2),
    )


def seg_resnet101_aspp() -> Experiment:
    """SegHiero's network and loss: ResNet-101, depthwise-separable atrous pooling, an auxiliary head, and losses on two
    levels of a class tree with triplets.

    Departures: the published code feeds the epoch to the triplets' schedule, which all but turns them off, and keeps
    the learning rate constant.
    """
    return Experiment(
        name="seg_resnet101_aspp",
        task=SegmentationTask(levels=TREE_LEVELS),
        data=_data(size=160),
        model=one_stream(
            TimmConfig(name="resnet101"),
            ASPPConfig(
                loss=HierarchicalLoss(depth=1, triplet=TripletConfig()), projection=256, auxiliary_weight=0.4
            ),
        ),
        optim=SGDConfig(lr=0.01, momentum=0.9, weight_decay=1e-4, schedule=CosineSchedule(warmup_steps=100)),
        train=TrainConfig(epochs=50, global_batch=8),
    )


def seg_mit_b0_extremely_fast() -> Experiment:
    """The smallest head on MiT-B0."""
    return Experiment(
        name="seg_mit_b0_extremely_fast",
        task=SegmentationTask(levels=TREE_LEVELS),
        data=_data(size=512),
        model=one_stream(MiTConfig(variant="b0"), ExtremelyFastSegFormerConfig()),
        optim=SEGFORMER,
        train=TrainConfig(epochs=50, global_batch=16),
    )


def seg_mit_b5_segformer() -> Experiment:
    """SegFormer-B5 with a head of 256 channels."""
    return Experiment(
        name="seg_mit_b5_segformer",
        task=SegmentationTask(levels=TREE_LEVELS),
        data=_data(size=640),
        model=one_stream(MiTConfig(variant="b5"), SegFormerConfig()),
        optim=SEGFORMER,
        train=TrainConfig(epochs=50, global_batch=16, activation_checkpointing="block"),
    )


def seg_rgbt_mit_b1() -> Experiment:
    """CMX on masks (arXiv 2203.04838), RGB and thermal: the yardstick of `seg_fusion`."""
    return Experiment(
        name="seg_rgbt_mit_b1",
        task=SegmentationTask(levels=TREE_LEVELS),
        data=_data(size=480, thermal=True),
        model=ModelConfig(
            backbone=MiTConfig(variant="b1"),
            aux_modalities=("thermal",),
            fusion=CMXFusion(),
            neck=NoNeckConfig(),
            head=SegFormerConfig(channels=512),
        ),
        optim=SEGFORMER,
        train=TrainConfig(epochs=100, global_batch=8),
    )

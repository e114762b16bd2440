"""A small detector on a published backbone, for sets of some dozens of images and a CPU: EfficientNet-Lite0."""

from __future__ import annotations

from raydet.config import (
    AdamWConfig,
    AddFusion,
    Augmentation,
    CosineSchedule,
    DataConfig,
    Experiment,
    FasterRCNNConfig,
    FPNConfig,
    ModelConfig,
    Normalization,
    SyntheticSource,
    TimmConfig,
    TrainConfig,
    WeightsConfig,
)


def small_lite0() -> Experiment:
    """Both streams start from ImageNet weights, which are looked up by name: see model.backbone.pretrained.path.

    The canvas is wide and the anchors are small, for road scenes. Images are normalised as the weights were trained,
    (x - 0.5) / 0.5. Batches are of two images, so that few images still make some hundreds of steps; the first stage
    and all norms stay as they were published.
    """
    return Experiment(
        name="small_lite0",
        data=DataConfig(
            source=SyntheticSource(num_sequences=30, frames_per_sequence=3, size_hw=(224, 384)),
            canvas_hw=(224, 384),
            augmentation=Augmentation(flip_probability=0.5, scale_jitter=(1.0, 1.0)),
            rgb=Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
            thermal=Normalization(mean=(0.5,), std=(0.5,)),
        ),
        model=ModelConfig(
            backbone=TimmConfig(
                name="tf_efficientnet_lite0",
                pretrained=WeightsConfig(path="timm://tf_efficientnet_lite0.in1k"),
                frozen_stages=1,
                frozen_norms=True,
            ),
            # No event channel: one that is always 0 would halve what the published filters make of the thermal image.
            aux_modalities=("thermal",),
            fusion=AddFusion(),
            neck=FPNConfig(channels=64),
            head=FasterRCNNConfig(
                anchor_sizes=(12.0, 24.0, 48.0, 96.0, 192.0),
                rpn_pre_nms_top_n=(500, 300),
                rpn_post_nms_top_n=(256, 128),
                rpn_batch_size_per_image=128,
                box_batch_size_per_image=64,
                box_hidden=128,
            ),
        ),
        optim=AdamWConfig(lr=5e-4, weight_decay=0.01, schedule=CosineSchedule(warmup_steps=10)),
        train=TrainConfig(epochs=16, global_batch=2, eval_batch=8, eval_every=4),
    )

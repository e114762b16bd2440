"""A run that two CPU cores finish in seconds: nano backbone, small canvas, embedded synthetic set."""

from __future__ import annotations

from raydet.config import (
    AdamWConfig,
    Augmentation,
    CosineSchedule,
    DataConfig,
    Experiment,
    FasterRCNNConfig,
    FPNConfig,
    MiTConfig,
    ModelConfig,
    SyntheticSource,
    TrainConfig,
)


def demo() -> Experiment:
    """Small everywhere, but every part is the real one."""
    return Experiment(
        name="demo",
        data=DataConfig(
            source=SyntheticSource(num_sequences=40, frames_per_sequence=3, size_hw=(96, 128)),
            classes=("circle", "square", "triangle"),
            canvas_hw=(96, 128),
            augmentation=Augmentation(flip_probability=0.5, scale_jitter=(1.0, 1.0)),
        ),
        model=ModelConfig(
            backbone=MiTConfig(variant="nano", drop_path_rate=0.0),
            neck=FPNConfig(channels=48),
            head=FasterRCNNConfig(
                anchor_sizes=(12.0, 24.0, 48.0, 96.0, 192.0),
                aspect_ratios=(1.0,),
                rpn_pre_nms_top_n=(200, 100),
                rpn_post_nms_top_n=(64, 32),
                rpn_batch_size_per_image=64,
                box_batch_size_per_image=32,
                box_hidden=64,
                max_detections=20,
            ),
        ),
        optim=AdamWConfig(lr=4e-3, weight_decay=0.01, schedule=CosineSchedule(warmup_steps=10)),
        train=TrainConfig(epochs=5, global_batch=8, eval_batch=8),
    )

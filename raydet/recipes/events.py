"""Recipes for recordings of event cameras: RVT with the head of YOLOX, on clips whose memory goes on."""

from __future__ import annotations

from raydet.config import (
    AdamWConfig,
    Augmentation,
    Clips,
    CosineSchedule,
    DataConfig,
    DetectionTask,
    EventProtocol,
    Experiment,
    IdentityFusion,
    ModelConfig,
    Normalization,
    PAFPNConfig,
    RVTConfig,
    SilentSource,
    TrainConfig,
    YOLOXConfig,
)

COUNTS = Normalization(mean=(0.0,), std=(1 / 255,))
"""Counts of events as they are, 0 to 10."""


def event_demo() -> Experiment:
    """Small, on the embedded set `silent`, in which only a memory knows where an object stands."""
    return Experiment(
        name="event_demo",
        task=DetectionTask(
            event=EventProtocol(skip_ms=0.0, min_diagonal_px=0.0, min_side_px=0.0, tolerance_ms=0.0)
        ),
        data=DataConfig(
            source=SilentSource(num_sequences=100),
            classes=("bright", "dark"),
            canvas_hw=(128, 128),
            sampling=Clips(frames=5, random_share=0.0),
            augmentation=Augmentation(flip_probability=0.5, scale_jitter=(1.0, 1.0)),
            event=COUNTS,
            event_channels=20,
        ),
        model=ModelConfig(
            backbone=RVTConfig(variant="nano", partition_px=32),
            rgb_modalities=("event",),
            aux_modalities=(),
            fusion=IdentityFusion(),
            fusion_stages=(),
            elsewhere=IdentityFusion(),
            neck=PAFPNConfig(levels=4, depth=0.33),
            head=YOLOXConfig(hidden=32, score_threshold=0.01),
        ),
        optim=AdamWConfig(lr=2e-3, weight_decay=0.0, schedule=CosineSchedule(warmup_steps=20)),
        train=TrainConfig(epochs=6, global_batch=8, eval_batch=8, eval_every=3),
    )

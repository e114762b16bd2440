"""Recipes for recordings of event cameras: RVT with the head of YOLOX, with memory carried from clip to clip.

The large ones start on the embedded set `silent`; `--data` brings the recordings.
"""

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
    MiTConfig,
    ModelConfig,
    Normalization,
    OneCycleSchedule,
    PAFPNConfig,
    RVTConfig,
    RVTVariant,
    SilentSource,
    SyntheticSource,
    TrainConfig,
    YOLOXConfig,
)

COUNTS = Normalization(mean=(0.0,), std=(1 / 255,))
"""Counts of events as they are, 0 to 10."""
NO_FILTER = EventProtocol(skip_ms=0.0, min_diagonal_px=0.0, min_side_px=0.0, tolerance_ms=0.0)
"""For sets whose windows all have labels, of objects of any size."""


def _data(source: SilentSource, canvas_hw: tuple[int, int], augmentation: Augmentation) -> DataConfig:
    return DataConfig(
        source=source,
        classes=("bright", "dark"),
        canvas_hw=canvas_hw,
        sampling=Clips(frames=5, random_share=0.0),
        augmentation=augmentation,
        event=COUNTS,
        event_channels=20,
    )


def _events_alone(backbone: RVTConfig, neck: PAFPNConfig, head: YOLOXConfig) -> ModelConfig:
    return ModelConfig(
        backbone=backbone,
        rgb_modalities=("event",),
        aux_modalities=(),
        fusion=IdentityFusion(),
        fusion_stages=(),
        elsewhere=IdentityFusion(),
        neck=neck,
        head=head,
    )


def event_demo() -> Experiment:
    """Small, on the embedded set `silent`, in which only a memory knows where an object stands: a quarter of an hour on
    two CPU cores. It finds the objects; which of the two classes they are of takes longer."""
    return Experiment(
        name="event_demo",
        task=DetectionTask(event=NO_FILTER),
        data=_data(
            SilentSource(num_sequences=100),
            (128, 128),
            Augmentation(flip_probability=0.5, scale_jitter=(1.0, 1.0)),
        ),
        model=_events_alone(
            RVTConfig(variant="nano", partition_px=32),
            PAFPNConfig(levels=3, depth=0.33),
            YOLOXConfig(hidden=32, score_threshold=0.01),
        ),
        optim=AdamWConfig(lr=2e-3, weight_decay=0.0, schedule=CosineSchedule(warmup_steps=20)),
        train=TrainConfig(epochs=10, global_batch=4, eval_batch=8, eval_every=5),
    )


def rvt(variant: RVTVariant, *, small_objects: bool = False) -> Experiment:
    """RVT as eTraM's authors train it: 100,000 steps of six clips of five windows, of 360 x 640 pixels.

    Args:
        small_objects: patches of two pixels, a pyramid of four levels and a weight for small boxes, as a published
            study of small objects has it, in 200,000 steps of two clips.

    Departures: fp32 or bf16 instead of fp16; clips are zoomed by the canvas scale, not by windows of their own.
    """
    is_base = variant == "base"
    return Experiment(
        name=f"rvt_{variant}" + ("_patch2_4scale" if small_objects else ""),
        task=DetectionTask(event=EventProtocol(is_halved=True)),
        data=_data(
            SilentSource(), (384, 640), Augmentation(flip_probability=0.5, scale_jitter=(1 / 1.2, 1.0))
        ),
        model=_events_alone(
            RVTConfig(variant=variant, patch=2 if small_objects else 4),
            PAFPNConfig(levels=4 if small_objects else 3, depth=0.67 if is_base else 0.33),
            YOLOXConfig(size_aware="exponential" if small_objects else "off"),
        ),
        optim=AdamWConfig(
            lr=3.5e-5, weight_decay=0.0, clip_norm=None, clip_value=1.0, schedule=OneCycleSchedule()
        ),
        train=TrainConfig(
            epochs=40 if small_objects else 20, steps_per_epoch=5000, global_batch=2 if small_objects else 6
        ),
    )


def rgbte_yolox() -> Experiment:
    """The dual-stream MiT-B1 with a one-stage head: a yardstick for studies of fusions with two stages."""
    return Experiment(
        name="rgbte_yolox_mit_b1",
        data=DataConfig(
            source=SyntheticSource(size_hw=(240, 320)), classes=("object",), canvas_hw=(320, 416)
        ),
        model=ModelConfig(
            backbone=MiTConfig(variant="b1"), neck=PAFPNConfig(levels=3, depth=0.33), head=YOLOXConfig()
        ),
        optim=AdamWConfig(lr=1e-4, weight_decay=0.05, schedule=CosineSchedule(warmup_steps=500)),
        train=TrainConfig(epochs=15, global_batch=16),
    )

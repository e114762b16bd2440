"""The baseline: dual-stream MiT, FRM + FFM at every stage, Faster R-CNN, RGB against thermal + event, one class."""

from __future__ import annotations

from raydet.config import (
    DataConfig,
    Experiment,
    MiTConfig,
    MiTVariant,
    ModelConfig,
    SGDConfig,
    SyntheticSource,
    TrainConfig,
)


def rgbte(variant: MiTVariant) -> Experiment:
    """The published schedule of the 15-epoch baselines: SGD 0.02, momentum 0.9, batch 16, constant rate.

    The published runs of other fusions differ in more: `gaff_as_published` has the fused flow and no drop-path (0.1
    here), as their code does. No published run averages its weights (`optim.ema_decay`, whose decay warms up).

    Departures: the canvas is near the frames' own size (the published runs enlarged 300-pixel frames to 800), and
    images are normalised on a 0..1 scale.
    """
    return Experiment(
        name=f"rgbte_mit_{variant}",
        data=DataConfig(
            source=SyntheticSource(size_hw=(240, 320)),
            classes=("object",),
            canvas_hw=(320, 416),
        ),
        model=ModelConfig(backbone=MiTConfig(variant=variant)),
        optim=SGDConfig(lr=0.02, momentum=0.9, weight_decay=1e-4),
        train=TrainConfig(epochs=15, global_batch=16),
    )

"""The best of the published GAFF runs, with the settings of its code."""

from __future__ import annotations

from raydet.config import (
    Augmentation,
    DataConfig,
    Experiment,
    GAFFFusion,
    MiTConfig,
    ModelConfig,
    SGDConfig,
    SyntheticSource,
    TrainConfig,
)


def gaff_as_published() -> Experiment:
    """GAFF at stage 4, squeeze 1/8, on mit_b1 (`s4_r8_is0_mb0`): 15 epochs of SGD 0.02, batch 16, constant rate.

    What differs from `rgbte_mit_b1` with `--set model.fusion.kind=gaff`, as the published code has it: the fused map
    enters the next stage of both streams (`model.flow` fused, not rectified), no drop-path (0, not 0.1), PyTorch's
    initial weights, no augmentation. Weights are not averaged (`optim.ema_decay` null).

    Departures, as in `rgbte`: the canvas is near the frames' own size, images are normalised on a 0..1 scale, whole
    sequences go to one side of the split (`data.split.kind=frame` is the published one), and only the fusion that a
    stage uses is built. The published code builds both at every stage, 62,519,649 parameters; here it is 50,429,791.
    """
    return Experiment(
        name="gaff_as_published",
        data=DataConfig(
            source=SyntheticSource(size_hw=(240, 320)),
            classes=("object",),
            canvas_hw=(320, 416),
            augmentation=Augmentation(flip_probability=0.0, scale_jitter=(1.0, 1.0)),
        ),
        model=ModelConfig(
            backbone=MiTConfig(variant="b1", drop_path_rate=0.0, init="seed"),
            fusion=GAFFFusion(se_reduction=8),
            fusion_stages=(4,),
            flow="fused",
        ),
        optim=SGDConfig(lr=0.02, momentum=0.9, weight_decay=1e-4),
        train=TrainConfig(epochs=15, global_batch=16),
    )

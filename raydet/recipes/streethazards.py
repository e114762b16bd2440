"""Recipes of a published StreetHazards comparison: segmentation, and anomalies in the test images.

They start on the embedded set `strange`; `--data` brings the classes and the parts of StreetHazards itself.
"""

from __future__ import annotations

from typing import Literal, get_args

from raydet.config import (
    AdamWConfig,
    AnomalyConfig,
    Augmentation,
    Backbone,
    CosineSchedule,
    DataConfig,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
    Experiment,
    MaskHeads,
    MiTConfig,
    NamedSplit,
    NativeCrop,
    Photometric,
    PlateauSchedule,
    RgbPhotometric,
    SegFormerConfig,
    SegmentationTask,
    StrangeSource,
    TimmConfig,
    TrainConfig,
)
from raydet.config.tree import TREE_CLASSES, TREE_LEVELS
from raydet.recipes.segmentation import one_stream

StreetHazardsModel = Literal[
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_plus_resnet50",
    "segformer_b5",
    "hiera_small",
    "hiera_base_plus",
    "hiera_large",
]

STREETHAZARDS_MODELS: tuple[StreetHazardsModel, ...] = get_args(StreetHazardsModel)
PUBLISHED_RGB = RgbPhotometric(
    brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1, blur=0.5, blur_sigma_px=(0.1, 2.0)
)


def _data(size: int, augmentation: Augmentation) -> DataConfig:
    return DataConfig(
        source=StrangeSource(),
        split=NamedSplit(),
        classes=TREE_CLASSES,
        missing=("thermal", "event"),
        canvas_hw=(size, size),
        augmentation=augmentation,
    )


def anomaly_demo() -> Experiment:
    """RGB alone, small: two minutes on two CPU cores, then the anomalies of the test images."""
    return Experiment(
        name="anomaly_demo",
        task=SegmentationTask(levels=TREE_LEVELS, anomaly=AnomalyConfig()),
        data=_data(96, Augmentation(flip_probability=0.5, scale_jitter=(1.0, 1.0))),
        model=one_stream(
            MiTConfig(variant="nano", drop_path_rate=0.0), SegFormerConfig(channels=48, dropout=0.0)
        ),
        optim=AdamWConfig(lr=3e-3, weight_decay=0.01, schedule=CosineSchedule(warmup_steps=10)),
        train=TrainConfig(epochs=10, global_batch=8, eval_batch=8, eval_every=2),
    )


def streethazards(model: StreetHazardsModel, *, published: bool = False) -> Experiment:
    """A network of the comparison.

    With 13 classes: deeplabv3_resnet50 41,999,962 parameters, deeplabv3_resnet101 60,992,090, segformer_b5 84,603,341,
    hiera_small 34,582,989, hiera_base_plus 69,372,813, hiera_large 212,969,277.
    The comparison's "DeepLabV3+" is DeepLabV3; deeplabv3_plus_resnet50 is what the name says. Its Hiera takes images of
    224 x 224 only, and has weights for non-commercial use; hiera_* are those of Segment Anything 2 (Apache-2.0), which
    take sides that are multiples of 32, such as 736 x 1280.

    Args:
        published: as the comparison has trained it: Adam, a rate that falls on plateaus of the validation, the crop
            whose scale cancels. Otherwise AdamW, half a cosine, and a crop that changes the size of things.

    Departures of the published form: validation images are letterboxed, not squashed; the backbone starts from what
    `--weights` names, not from weights of COCO.
    """
    is_transformer = not model.startswith("deeplabv3")
    window: Literal["fixed", "scaled"] = "scaled" if published else "fixed"
    augmentation = Augmentation(
        flip_probability=0.5,
        scale_jitter=(1.0, 1.0),
        native_crop=NativeCrop(scale=(0.5, 2.0), window=window),
        photometric=Photometric(rgb=PUBLISHED_RGB),
    )
    lr = 6e-5 if is_transformer and not published else 1e-4
    if published:
        # Without weight decay, AdamW is Adam.
        optim = AdamWConfig(
            lr=lr,
            weight_decay=0.01 if is_transformer else 0.0,
            clip_norm=None,
            schedule=PlateauSchedule(factor=0.5, patience=5),
        )
    else:
        optim = AdamWConfig(
            lr=lr, weight_decay=0.01, schedule=CosineSchedule(warmup_steps=1500, final_fraction=0.0)
        )
    return Experiment(
        name=f"streethazards_{model}" + ("_published" if published else ""),
        task=SegmentationTask(levels=TREE_LEVELS, anomaly=AnomalyConfig()),
        data=_data(512, augmentation),
        model=one_stream(*_parts(model)),
        optim=optim,
        train=TrainConfig(epochs=40, global_batch=4),
    )


def _parts(model: StreetHazardsModel) -> tuple[Backbone, MaskHeads]:
    match model:
        case "deeplabv3_resnet50":
            return TimmConfig(name="resnet50", output_stride=8), DeepLabV3Config(auxiliary_weight=0.4)
        case "deeplabv3_resnet101":
            return TimmConfig(name="resnet101", output_stride=8), DeepLabV3Config(auxiliary_weight=0.4)
        case "deeplabv3_plus_resnet50":
            return TimmConfig(name="resnet50", output_stride=8), DeepLabV3PlusConfig()
        case "segformer_b5":
            return MiTConfig(variant="b5"), SegFormerConfig(channels=768)
        case "hiera_small" | "hiera_base_plus" | "hiera_large":
            return TimmConfig(name=f"sam2_{model}"), SegFormerConfig(channels=256)

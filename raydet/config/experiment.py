"""One run, complete: what is trained, on what, how."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Self

from pydantic import Field, model_validator

from raydet.config.base import Config
from raydet.config.data import DataConfig
from raydet.config.losses import HierarchicalLoss
from raydet.config.model import MaskHead, ModelConfig, RVTConfig
from raydet.config.moved import as_first_written, migrated
from raydet.config.task import DetectionTask, SegmentationTask, Task
from raydet.config.train import Optimizer, TrainConfig


class Experiment(Config):
    """A run is a function of this value alone; the number of workers is not part of it."""

    name: str
    seed: Annotated[int, Field(ge=0)] = 42
    task: Task = DetectionTask()
    data: DataConfig
    model: ModelConfig
    optim: Optimizer
    train: TrainConfig

    @property
    def num_classes(self) -> int:
        """Object classes, without background."""
        return len(self.data.classes)

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Self:
        """Read and validate an experiment; one that an older raydet has written, too."""
        return super().from_json(migrated(text), where=where)

    def fingerprint(self) -> str:
        """Twelve hex digits that name this config: equal configs have equal fingerprints, in later versions, too."""
        tree = as_first_written(self.model_dump(mode="json"))
        canonical = json.dumps(tree, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @model_validator(mode="after")
    def _classes_are_named_once(self) -> Self:
        if not self.data.classes or len(set(self.data.classes)) != len(self.data.classes):
            raise ValueError(
                f"data.classes must be one or more different names, got {list(self.data.classes)}"
            )
        return self

    @model_validator(mode="after")
    def _canvas_and_backbone_fit(self) -> Self:
        backbone = self.model.backbone
        if isinstance(backbone, RVTConfig) and any(
            side % backbone.partition_px for side in self.data.canvas_hw
        ):
            raise ValueError(
                f"model.backbone.kind=rvt divides the canvas: both sides of data.canvas_hw must be multiples of "
                f"model.backbone.partition_px={backbone.partition_px}, got {list(self.data.canvas_hw)}; images are "
                "padded to the canvas, so choose the next larger one"
            )
        return self

    @model_validator(mode="after")
    def _task_and_head_fit(self) -> Self:
        has_masks = isinstance(self.model.head, MaskHead)
        match self.task:
            case DetectionTask() if self.data.augmentation.rotation_degrees > 0:
                raise ValueError(
                    "data.augmentation.rotation_degrees turns masks; boxes would no longer fit: set it to 0"
                )
            case DetectionTask() if has_masks:
                raise ValueError(
                    f"task.kind=detection needs boxes, model.head.kind={self.model.head.kind} gives masks"
                )
            case SegmentationTask(levels=levels):
                if not has_masks:
                    raise ValueError(
                        f"task.kind=segmentation needs masks, model.head.kind={self.model.head.kind} gives boxes"
                    )
                if levels and len(levels[0].parents) != len(self.data.classes):
                    raise ValueError(
                        f"task.levels: expected {len(self.data.classes)} parents in {levels[0].name}, one for each of "
                        f"data.classes, got {len(levels[0].parents)}"
                    )
                assert isinstance(self.model.head, MaskHead)
                if isinstance(self.model.head.loss, HierarchicalLoss) and not levels:
                    raise ValueError("model.head.loss.kind=hierarchical needs a class tree: set task.levels")
        return self

"""The data sets of a run, as the tracker shows them: name, source, and a digest that tells other data apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

from raydet.config import (
    Experiment,
    ShardsSource,
    SilentSource,
    StrangeSource,
    SwarmSource,
    SyntheticSource,
    TreeSource,
)
from raydet.config.moved import source_as_first_written

Context = Literal["training", "validation"]


@dataclass(frozen=True, slots=True)
class Dataset:
    """One side of the split of a source."""

    name: str
    digest: str
    """The first 32 digits of a set's sha256; of sources without one, `config-` and a hash of their settings."""
    source_type: str
    source: str
    """JSON: `uri`, or `tags`, the settings of a set that has no files."""
    schema: str
    """JSON: an image per modality, on the canvas."""
    context: Context
    tags: Mapping[str, str]


def datasets_of(experiment: Experiment, *, sha256: str | None = None) -> Sequence[Dataset]:
    """The training set and the validation set of a run.

    Args:
        sha256: of a converted set, as its manifest has it; None: as the config has it. Without either, a converted set
            is identified by its settings, like any other source.
    """
    data, source = experiment.data, experiment.data.source
    settings = source.model_dump(mode="json")
    if isinstance(source, ShardsSource):
        sha256 = sha256 or source.sha256
        path = source.path
    else:
        path = settings.get("root") or settings.get("annotations") or ""
    split = data.split.model_dump_json()
    if sha256 is None:
        identity = json.dumps(source_as_first_written(settings)) + split
        digest = f"config-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    else:
        digest = sha256[:32]  # MLflow stores 36 characters
    tags = {"raydet.split": split} | ({} if sha256 is None else {"raydet.sha256": sha256})
    height, width = data.canvas_hw
    features = [
        {
            "name": data.shown_name(name),
            "type": "tensor",
            "tensor-spec": {"dtype": "uint8", "shape": [-1, channels, height, width]},
        }
        for name, channels in data.channels.items()
        if name not in data.missing
    ]
    is_made = isinstance(source, SyntheticSource | TreeSource | StrangeSource | SilentSource | SwarmSource)
    named = source.kind if is_made else PurePosixPath(path).name or source.kind
    return [
        Dataset(
            name=f"{named} ({context})",
            digest=digest,
            source_type="code" if is_made else urlsplit(path).scheme or "local",
            source=json.dumps({"tags": settings} if is_made else {"uri": path}),
            schema=json.dumps({"mlflow_tensorspec": {"features": json.dumps(features), "targets": None}}),
            context=context,
            tags=tags,
        )
        for context in ("training", "validation")
    ]

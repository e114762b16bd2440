"""What a head for masks is trained with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raydet.config.base import Config

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class CrossEntropyLoss(Config):
    """Cross-entropy of every pixel that has a label: the mean over these pixels."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    focal_gamma: Annotated[float, Field(ge=0)] = 0.0
    """Each pixel's loss is multiplied by (1 - p) to this power, p the probability of its class (focal loss, arXiv
    1708.02002)."""


class RMIConfig(Config):
    """Region mutual information (arXiv 1910.12037) of the probabilities and the labels in 3 x 3 neighbourhoods. Its
    values are negative as a rule; neighbourhoods with an ignored pixel do not count."""

    weight: Weight = 1.0
    form: Literal["seghiero", "hieraseg"] = "hieraseg"
    """`hieraseg` pools both by 3 first (a pooled cell is ignored if all of its pixels are) and subtracts the mean over
    the positions; `seghiero` does neither, and takes several times as long."""


class TripletConfig(Config):
    """Tree triplets: of the embeddings of three pixels, those of one group must be nearer than those of two."""

    margin: Annotated[float, Field(gt=0)] = 0.6
    """In units of 1 - cosine."""
    most: Annotated[int, Field(ge=1)] = 200
    """Triplets per class and micro-batch."""
    weight: Weight = 0.5
    """Reached at the end of the warm-up, along half a cosine from 0."""
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Part of the run's steps until the weight is reached."""


class HierarchicalLoss(Config):
    """Losses on every level of the class tree that respect it: a class is as sure as its surest descendant at least,
    and its surest ancestor at most (Deep Hierarchical Semantic Segmentation, CVPR 2022). The model has one output per
    class and per group of the tree.
    """

    kind: Literal["hierarchical"] = "hierarchical"
    depth: Annotated[int, Field(ge=1)] | None = None
    """How many levels of the tree above the classes it knows, from the lowest; null: all."""
    weight: Weight = 5.0
    """Of the binary losses on the tree, beside the cross-entropy of each level, whose weight is 1."""
    form: Literal["seghiero", "hieraseg"] = "hieraseg"
    """Where the two published codes differ with three levels or more: how far up a class looks (`seghiero`: one level,
    by its unconstrained value)."""
    focal_gamma: Annotated[float, Field(ge=0)] = 0.0
    """Focal form of the binary losses; HieraSeg's code for three levels has 2, and no weight."""
    rmi: RMIConfig | None = None
    triplet: TripletConfig | None = None
    """Needs an embedding: `head.projection`."""


MaskLoss = Annotated[CrossEntropyLoss | HierarchicalLoss, Field(discriminator="kind")]

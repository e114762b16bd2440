"""The networks of a published StreetHazards comparison, each with and without crops of different scales: the factorial
that the comparison left out."""

from __future__ import annotations

from typing import Any

from raydet.config import Experiment
from raydet.metrics.names import AUROC
from raydet.recipes.streethazards import STREETHAZARDS_MODELS, streethazards
from raydet.tune.spaces import require_anomalies
from raydet.tune.study import Claim, Factor, GridPhase, Hypothesis, Study, Value

PHASE = "models"
BASE_NETWORK = "base"
CNNS = ("deeplabv3_resnet50", "deeplabv3_resnet101")
TRANSFORMERS = ("segformer_b5", "hiera_small", "hiera_base_plus", "hiera_large")
SCALES: dict[str, dict[str, Any]] = {
    "letterbox": {"data.augmentation.native_crop": None},
    "multi_scale": {"data.augmentation.native_crop": {"scale": [0.5, 2.0], "window": "fixed"}},
}


def study(base: Experiment) -> Study:
    """Every network with both crops; loss, schedule and everything else are the base's."""
    own = require_anomalies(base, "streethazards_models")
    networks: dict[str, dict[str, Any]] = {BASE_NETWORK: {}}
    for name in STREETHAZARDS_MODELS:
        model = streethazards(name).model
        head = model.head.model_dump(mode="json") | {"loss": own.loss.model_dump(mode="json")}
        networks[name] = {"model.backbone": model.backbone.model_dump(mode="json"), "model.head": head}
    network = Factor(path="network", letter="", default=BASE_NETWORK, values=tuple(networks), arms=networks)
    crop = Factor(path="crop", letter="", default="letterbox", values=tuple(SCALES), arms=SCALES)

    def claim(factor: Factor, better: tuple[Value, ...], worse: tuple[Value, ...]) -> tuple[Claim, ...]:
        return (Claim(phase=PHASE, better={factor.path: better}, worse={factor.path: worse}),)

    scales = claim(crop, ("multi_scale",), ("letterbox",))
    families = claim(network, CNNS, TRANSFORMERS)
    return Study(
        name="streethazards_models",
        base=base,
        factors=(network, crop),
        phases=(GridPhase(name=PHASE, vary=(network.path, crop.path)),),
        hypotheses=(
            Hypothesis(
                name="H1",
                text="Crops of different scales beat letterboxed images.",
                claims=scales,
            ),
            Hypothesis(
                name="H2",
                text="Crops of different scales find anomalies better.",
                claims=scales,
                metric=AUROC,
            ),
            Hypothesis(
                name="H3",
                text="On so little data, convolutional networks beat the transformers.",
                claims=families,
            ),
            Hypothesis(
                name="H4",
                text="Convolutional networks find anomalies better than the transformers.",
                claims=families,
                metric=AUROC,
            ),
            Hypothesis(
                name="H5",
                text="The deeper ResNet is better.",
                claims=claim(network, CNNS[1:], CNNS[:1]),
            ),
        ),
        needs_controls=False,
    )

"""Records of an evaluation of event detection: matches by class, of any class, and by silence, with the protocol card.

Legend: N detections, I images, K classes, S bins of silent age, B weightings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from raydet.metrics.matches import MatchRecords, mean_average_precisions
from raydet.metrics.names import AGNOSTIC, SILENT
from raydet.metrics.protocol_card import ProtocolCard
from raydet.metrics.silence import SilenceMatches

BY_CLASS, ANY_CLASS, CARD = "by_class.", "any_class.", "card"


@dataclass(frozen=True, slots=True)
class EventRecords:
    """Matches of one evaluation. Frames that the protocol leaves out have neither objects nor detections."""

    card: ProtocolCard
    by_class: MatchRecords
    any_class: MatchRecords
    """Of detections and objects whose classes are taken for one."""
    silence_edges_S: NDArray[np.int64]
    """The smallest age of each bin; empty where silent ages are unknown."""
    silence: SilenceMatches
    """Detections in the order of `by_class`."""

    @property
    def image_ids(self) -> NDArray[np.str_]:
        """[I]."""
        return self.by_class.image_ids

    @property
    def group_ids(self) -> NDArray[np.str_]:
        """[I]: frames of one sequence share a group."""
        return self.by_class.group_ids

    def scores(self, metric: str, weights_BI: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean or class-agnostic AP, or AP50 of one silent age, for each weighting: [B], NaN where it is undefined.

        Raises:
            ValueError: the records do not contain this metric.
        """
        if metric.startswith(AGNOSTIC):
            return self.any_class.scores(metric.removeprefix(AGNOSTIC), weights_BI)
        if metric.startswith(SILENT):
            if not len(self.silence_edges_S):
                return np.full(len(weights_BI), np.nan)
            edges = [str(edge) for edge in self.silence_edges_S]
            if (edge := metric.removeprefix(SILENT)) not in edges:
                raise ValueError(f"event records contain silent ages from {', '.join(edges)} on, not {edge}")
            number = edges.index(edge)
            of_bin = replace(
                self.by_class,
                objects_IK=self.silence.objects_SIK[number],
                is_right_NT=self.silence.is_right_NS[:, [number]],
                is_wrong_NT=self.silence.is_wrong_NS[:, [number]],
            )
            return mean_average_precisions(of_bin, weights_BI)
        return self.by_class.scores(metric, weights_BI)

    def is_comparable(self, other: object) -> bool:
        """Whether both are of one protocol, and of the same images with as many objects, in the same order."""
        return (
            isinstance(other, EventRecords)
            and self.card == other.card
            and self.by_class.is_comparable(other.by_class)
        )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All contents by name, for a file."""
        return {
            CARD: np.array(self.card.to_json()),
            **{f"{BY_CLASS}{name}": x for name, x in self.by_class.arrays().items()},
            **{f"{ANY_CLASS}{name}": x for name, x in self.any_class.arrays().items()},
            "silence_edges_S": self.silence_edges_S,
            "objects_SIK": self.silence.objects_SIK,
            "is_right_NS": self.silence.is_right_NS,
            "is_wrong_NS": self.silence.is_wrong_NS,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """Read what `arrays` gave."""
        by_class, any_class = (
            MatchRecords.from_arrays(
                {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}
            )
            for prefix in (BY_CLASS, ANY_CLASS)
        )
        silence = SilenceMatches(
            *(arrays[name] for name in ("objects_SIK", "is_right_NS", "is_wrong_NS"))  # type: ignore[arg-type]
        )
        card = ProtocolCard.from_json(str(arrays[CARD]))
        return cls(card, by_class, any_class, arrays["silence_edges_S"], silence)  # type: ignore[arg-type]


def protocol_differences(a: object, b: object) -> list[str]:
    """What the protocols of two records differ in; nothing for records without a card."""
    mine, theirs = (records.card if isinstance(records, EventRecords) else None for records in (a, b))
    if mine is not None and theirs is not None:
        return mine.differences(theirs)
    if mine is None and theirs is None:
        return []
    return [f"the {'second' if mine else 'first'} was measured without any (task.event is null)"]

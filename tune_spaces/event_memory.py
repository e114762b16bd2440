"""What the memory of a recurrent detector is worth: without it, with it, and by how clips are fed. One pass through the
data shows all cells as many windows."""

from __future__ import annotations

from typing import Any

from raydet.config import DetectionTask, Experiment
from raydet.errors import StudyError
from raydet.metrics.names import SILENT
from raydet.tune.spaces import require_recurrent
from raydet.tune.study import Claim, Factor, GridPhase, Hypothesis, Study

PHASE = "memory"


def _arm(memory: str, *, frames: int, random_share: float) -> dict[str, Any]:
    sampling = {"kind": "clips", "frames": frames, "random_share": random_share}
    return {"model.backbone.memory": memory, "data.sampling": sampling}


ARMS = {
    "none": _arm("none", frames=5, random_share=0.0),
    "stream": _arm("lstm", frames=5, random_share=0.0),
    "mixed": _arm("lstm", frames=5, random_share=0.5),
    "random": _arm("lstm", frames=5, random_share=1.0),
    "stream_10": _arm("lstm", frames=10, random_share=0.0),
}


def study(base: Experiment) -> Study:
    """Five cells; objects that have fired no event for long are found by memory alone.

    Raises:
        StudyError: the base does not measure by silent ages.
    """
    require_recurrent(base, "event_memory")
    if not (isinstance(base.task, DetectionTask) and base.task.event and base.task.event.silence_bins):
        raise StudyError(
            f"the space event_memory measures objects without events, which {base.name} does not; take --recipe "
            "event_demo, or set task.event with silence_bins"
        )
    memory = Factor(path="memory", letter="", default="stream", values=tuple(ARMS), arms=ARMS)
    longest = f"{SILENT}{base.task.event.silence_bins[-1]}"

    def claim(better: tuple[str, ...], worse: tuple[str, ...]) -> tuple[Claim, ...]:
        return (Claim(phase=PHASE, better={memory.path: better}, worse={memory.path: worse}),)

    return Study(
        name="event_memory",
        base=base,
        factors=(memory,),
        phases=(GridPhase(name=PHASE, vary=(memory.path,)),),
        hypotheses=(
            Hypothesis(name="H1", text="A memory is worth having.", claims=claim(("stream",), ("none",))),
            Hypothesis(
                name="H2",
                text="Objects that have been silent for long are found by memory alone.",
                claims=claim(("stream",), ("none",)),
                metric=longest,
            ),
            Hypothesis(
                name="H3",
                text="A memory that training carries from clip to clip remembers such objects better.",
                claims=claim(("stream",), ("random",)),
                metric=longest,
            ),
        ),
        needs_controls=False,
    )

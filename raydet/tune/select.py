"""The choice of patterns for the next phase, with reasons: a pure function of the candidates' scores."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from raydet.config import Config, Metric


class Candidate(Config):
    """A pattern with the scores of its trials."""

    pattern: tuple[int, ...]
    scores: tuple[float, ...]
    """One per seed."""
    stopped_epoch: int | None = None
    """The epoch after which one of its trials was stopped early; None: all have finished."""

    @property
    def mean(self) -> float:
        return fmean(self.scores)


class Choice(Config):
    """A promoted pattern and the reason, as a sentence."""

    pattern: tuple[int, ...]
    mean: float
    reason: str


def promote(
    candidates: Sequence[Candidate], *, metric: Metric, top: int, margin: float
) -> tuple[Choice, ...]:
    """Choose `top` patterns by mean metric, with a preference for variety where the difference is small.

    Each round picks from the candidates at most `margin` below the best remaining one: the best of them whose number of
    stages no chosen pattern has, else the best remaining one. Ties are broken by the pattern itself, so the result does
    not depend on the order of the candidates. Patterns that were stopped early only fill the remaining slots, those
    that ran longest first.

    >>> scores = {(4,): 0.50, (3,): 0.49, (2, 3): 0.47, (1,): 0.30}
    >>> candidates = [Candidate(pattern=pattern, scores=(score,)) for pattern, score in scores.items()]
    >>> metric = Metric(name="mAP", label="mAP")
    >>> [choice.pattern for choice in promote(candidates, metric=metric, top=3, margin=0.05)]
    [(4,), (2, 3), (3,)]
    """
    finished = [candidate for candidate in candidates if candidate.stopped_epoch is None]
    remaining = sorted(finished, key=lambda candidate: (-metric.utility(candidate.mean), candidate.pattern))
    chosen: list[Choice] = []
    while remaining and len(chosen) < top:
        choice = _next(remaining, {len(c.pattern) for c in chosen}, metric, margin)
        chosen.append(choice)
        remaining = [candidate for candidate in remaining if candidate.pattern != choice.pattern]
    stopped = [candidate for candidate in candidates if candidate.stopped_epoch is not None]
    stopped.sort(key=lambda each: (-(each.stopped_epoch or 0), -metric.utility(each.mean), each.pattern))
    for candidate in stopped[: top - len(chosen)]:
        stop = f"when it was stopped early after epoch {candidate.stopped_epoch}, as only {len(finished)} finished"
        reason = f"mean {candidate.mean:.4f} {stop}"
        chosen.append(Choice(pattern=candidate.pattern, mean=candidate.mean, reason=reason))
    return tuple(chosen)


def _next(remaining: Sequence[Candidate], sizes: set[int], metric: Metric, margin: float) -> Choice:
    leader = remaining[0]
    best = metric.utility(leader.mean)
    close = [candidate for candidate in remaining if best - metric.utility(candidate.mean) <= margin]
    new_sized = [candidate for candidate in close if len(candidate.pattern) not in sizes]
    if not new_sized or new_sized[0] is leader:
        reason = f"mean {leader.mean:.4f}, the best remaining"
        return Choice(pattern=leader.pattern, mean=leader.mean, reason=reason)
    winner, count = new_sized[0], len(new_sized[0].pattern)
    side = "below" if metric.higher_is_better else "above"
    label = "{" + ",".join(str(stage) for stage in leader.pattern) + "}"
    reason = (
        f"mean {winner.mean:.4f}, {abs(leader.mean - winner.mean):.4f} {side} {label} (within the margin {margin:g}), "
        f"preferred as the first pattern of {'1 stage' if count == 1 else f'{count} stages'}"
    )
    return Choice(pattern=winner.pattern, mean=winner.mean, reason=reason)

"""Which patterns go on to the next phase, and why: a pure function of the records."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from raydet.config import Config


class Candidate(Config):
    """A pattern with the metric of its runs."""

    pattern: tuple[int, ...]
    scores: tuple[float, ...]
    """One per seed."""
    stopped_epoch: int | None = None
    """After which a run of it was stopped early; None: all came to their end."""

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return fmean(self.scores)


class Choice(Config):
    """One promoted pattern and the reason, in words."""

    pattern: tuple[int, ...]
    mean: float
    reason: str


def promote(candidates: Sequence[Candidate], *, top: int, margin: float) -> tuple[Choice, ...]:
    """Choose `top` patterns by mean metric, with a preference for variety where the difference is small.

    In each round the best candidate left leads. Among those at most `margin` below the leader, the best one with a
    number of stages that no chosen pattern has goes first; without one, the leader goes. Ties are broken by the
    pattern itself, so the outcome does not depend on the order of the candidates. Patterns that were stopped early
    only fill up what is left, those first that came farthest.

    >>> scores = {(4,): 0.50, (3,): 0.49, (2, 3): 0.47, (1,): 0.30}
    >>> candidates = [Candidate(pattern=pattern, scores=(score,)) for pattern, score in scores.items()]
    >>> [choice.pattern for choice in promote(candidates, top=3, margin=0.05)]
    [(4,), (2, 3), (3,)]
    """
    whole = [candidate for candidate in candidates if candidate.stopped_epoch is None]
    left = sorted(whole, key=lambda candidate: (-candidate.mean, candidate.pattern))
    chosen: list[Choice] = []
    while left and len(chosen) < top:
        choice = _next(left, {len(c.pattern) for c in chosen}, margin)
        chosen.append(choice)
        left = [candidate for candidate in left if candidate.pattern != choice.pattern]
    stopped = [candidate for candidate in candidates if candidate.stopped_epoch is not None]
    stopped.sort(key=lambda candidate: (-(candidate.stopped_epoch or 0), -candidate.mean, candidate.pattern))
    fillers = [_filler(candidate, len(whole)) for candidate in stopped[: top - len(chosen)]]
    return (*chosen, *fillers)


def _filler(candidate: Candidate, num_whole: int) -> Choice:
    reason = (
        f"mean {candidate.mean:.4f} when it was stopped early after epoch {candidate.stopped_epoch}, as only "
        f"{num_whole} came to their end"
    )
    return Choice(pattern=candidate.pattern, mean=candidate.mean, reason=reason)


def _next(left: Sequence[Candidate], sizes: set[int], margin: float) -> Choice:
    leader = left[0]
    close = [candidate for candidate in left if leader.mean - candidate.mean <= margin]
    fresh = [candidate for candidate in close if len(candidate.pattern) not in sizes]
    if fresh and fresh[0] is not leader:
        winner = fresh[0]
        reason = (
            f"mean {winner.mean:.4f}, {leader.mean - winner.mean:.4f} below {_label(leader.pattern)} (within the "
            f"margin {margin:g}), preferred as the first pattern of {_stages(len(winner.pattern))}"
        )
    else:
        winner = leader
        reason = f"mean {winner.mean:.4f}, the best left"
    return Choice(pattern=winner.pattern, mean=winner.mean, reason=reason)


def _label(pattern: tuple[int, ...]) -> str:
    return "{" + ",".join(str(stage) for stage in pattern) + "}"


def _stages(count: int) -> str:
    return "1 stage" if count == 1 else f"{count} stages"

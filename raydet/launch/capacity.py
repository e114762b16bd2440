"""What a cluster has, what it may scale to, and whether a run fits: numbers only, nothing here asks Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from raydet.launch.elastic import Resources, room

NAMES = ("GPU", "CPU")
"""Resources that a run asks for; what is scarcer first."""


@dataclass(frozen=True, slots=True)
class NodeType:
    """A kind of node that the autoscaler may add."""

    name: str
    resources: Resources
    more: int
    """How many of them may still join."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The nodes of a cluster, whoever uses them, and those that may join."""

    nodes: Sequence[Resources]
    types: Sequence[NodeType] = ()
    most_new: int = 0
    """How many nodes may join, of whatever type."""
    is_open: bool = False
    """The cluster scales, but not even its head knows to what: only the autoscaler can say what is infeasible."""

    @property
    def scales(self) -> bool:
        """Nodes may join by themselves."""
        return self.is_open or any(kind.more for kind in self.types)

    def at_most(self, worth: Callable[[Resources], float]) -> list[Resources]:
        """All nodes, and those that may join; of the latter the ones worth most, as far as the limit goes."""
        best = sorted(self.types, key=lambda kind: worth(kind.resources), reverse=True)
        new = [kind.resources for kind in best for _ in range(min(kind.more, self.most_new))]
        return [*self.nodes, *new[: self.most_new]]

    def places(self, worker: Resources) -> int:
        """For how many workers there may be room, each on one node.

        >>> Capacity([{"CPU": 4}], [NodeType("gpu", {"CPU": 8, "GPU": 1}, 3)], most_new=2).places({"CPU": 2, "GPU": 1})
        2
        """
        return sum(room(node, worker) for node in self.at_most(lambda node: room(node, worker)))

    def now(self, name: str) -> float:
        """What is there of a resource."""
        return sum(node.get(name, 0) for node in self.nodes)

    def most(self, name: str) -> float:
        """What there may be of a resource."""
        return sum(node.get(name, 0) for node in self.at_most(lambda node: node.get(name, 0)))

    def largest(self, name: str) -> float:
        """The most of a resource that one node has or may have."""
        return max((node.get(name, 0) for node in self.at_most(lambda node: node.get(name, 0))), default=0)


@dataclass(frozen=True, slots=True)
class Request:
    """What a command asks of a cluster."""

    workers: int
    """Of one trial."""
    worker: Mapping[str, float]
    """CPUs and GPUs of each."""
    trials: int = 1
    """That must run at a time."""

    @property
    def total(self) -> int:
        """Workers at a time."""
        return self.workers * self.trials

    def __str__(self) -> str:
        each = " and ".join(_amount(name, self.worker[name]) for name in NAMES if self.worker.get(name))
        trials = f"{self.trials} trials x " if self.trials > 1 else ""
        return f"{trials}{_count(self.workers, 'worker')} of {each}{'' if self.workers == 1 else ' each'}"

    @property
    def wants(self) -> str:
        """The verb to that."""
        return "wants" if self.total == 1 else "want"


def refusal(
    request: Request, capacity: Capacity, *, sizes: Sequence[int], where: str = "the cluster"
) -> str | None:
    """Why a request can never be met, and the nearest that can; None: it can, or nobody here knows.

    Args:
        sizes: legal numbers of workers, largest first.
        where: what has too little, in words.

    >>> refusal(Request(4, {"CPU": 1}), Capacity([{"CPU": 2}]), sizes=[4, 2, 1])
    '4 workers of 1 CPU each want 4 CPUs, the cluster has 2 and does not scale; nearest that fits: --workers 2'
    """
    if capacity.is_open or capacity.places(request.worker) >= request.total:
        return None
    return f"{request} {_shortage(request, capacity, where)}; {nearest(request, capacity, sizes)}"


def nearest(request: Request, capacity: Capacity, sizes: Sequence[int]) -> str:
    """The feasible setting next to a request: fewer threads and trials at a time first, then fewer workers."""
    flags = next(_feasible(request, capacity, sizes), None)
    return "nothing of the kind fits; add nodes" if flags is None else f"nearest that fits: {flags}"


def _feasible(request: Request, capacity: Capacity, sizes: Sequence[int]) -> Iterator[str]:
    threads = range(int(request.worker["CPU"]), 0, -1)
    places = {cpus: capacity.places({**request.worker, "CPU": cpus}) for cpus in threads}
    for size in (request.workers, *(size for size in sizes if size < request.workers)):
        for trials in range(request.trials, 0, -1):
            for cpus in threads:
                if 0 < size * trials <= places[cpus]:
                    yield _flags(request, trials, size, cpus)
    if "GPU" in request.worker:
        on_cpus = Request(request.workers, {"CPU": request.worker["CPU"]}, request.trials)
        yield from (f"--cpu {flags}".strip() for flags in _feasible(on_cpus, capacity, sizes))


def _flags(request: Request, trials: int, size: int, cpus: int) -> str:
    flags = {
        "--concurrency": (trials, request.trials),
        "--workers": (size, request.workers),
        "--cpus-per-worker": (cpus, request.worker["CPU"]),
    }
    return " ".join(f"{flag} {new}" for flag, (new, old) in flags.items() if new != old)


def _shortage(request: Request, capacity: Capacity, where: str) -> str:
    """Which resource is missing, how much of it is wanted and how much there is."""
    growth = " with all that it may scale to" if capacity.scales else ""
    for name in NAMES:
        amount = request.worker.get(name, 0)
        if amount > capacity.largest(name) > 0:
            wanted, largest = _amount(name, amount), _amount(name, capacity.largest(name))
            return f"{request.wants} {wanted} on one node, the largest node of {where}{growth} has {largest}"
        total = amount * request.total
        if total > capacity.most(name):
            scales = f"may scale to {capacity.most(name):g}" if capacity.scales else "does not scale"
            known = "" if where == "this machine" else f" and {scales}"
            return f"{request.wants} {_amount(name, total)}, {where} has {capacity.now(name):g}{known}"
    places = capacity.places(request.worker)
    wanted = _count(request.total, "place")
    return f"{request.wants} {wanted}, the nodes of {where}{growth} have only {places} of that shape"


def _amount(name: str, amount: float) -> str:
    return _count(int(amount), name)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"

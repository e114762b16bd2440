"""What a cluster has, what it may scale to, and whether a run fits: pure functions that do not ask Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from raydet.launch.elastic import Resources, slots_on

NAMES = ("GPU", "CPU")
"""Resources that a run asks for, the scarcer one first."""


@dataclass(frozen=True, slots=True)
class NodeType:
    """A kind of node that the autoscaler may add."""

    name: str
    resources: Resources
    more: int
    """How many of them may still join."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The nodes of a cluster, busy or not, and those that may join."""

    nodes: Sequence[Resources]
    types: Sequence[NodeType] = ()
    most_new: int = 0
    """How many nodes may join, of all types together."""
    is_open: bool = False
    """The cluster scales, but not even its head knows to what: only the autoscaler can say what is infeasible."""

    @property
    def scales(self) -> bool:
        """Whether the autoscaler may add nodes."""
        return self.is_open or any(kind.more for kind in self.types)

    def at_most(self, worth: Callable[[Resources], float]) -> list[Resources]:
        """All nodes, and those that may join; of the latter the ones worth most, up to the limit."""
        best = sorted(self.types, key=lambda kind: worth(kind.resources), reverse=True)
        new = [kind.resources for kind in best for _ in range(min(kind.more, self.most_new))]
        return [*self.nodes, *new[: self.most_new]]

    def slots(self, worker: Resources) -> int:
        """How many workers may fit, each on one node.

        >>> Capacity([{"CPU": 4}], [NodeType("gpu", {"CPU": 8, "GPU": 1}, 3)], most_new=2).slots({"CPU": 2, "GPU": 1})
        2
        """
        return sum(slots_on(node, worker) for node in self.at_most(lambda node: slots_on(node, worker)))

    def now(self, name: str) -> float:
        """Total of a resource over the present nodes."""
        return sum(node.get(name, 0) for node in self.nodes)

    def most(self, name: str) -> float:
        """Largest total of a resource that the cluster may scale to."""
        return sum(node.get(name, 0) for node in self.at_most(lambda node: node.get(name, 0)))

    def largest(self, name: str) -> float:
        """Largest amount of a resource on a single node, present or possible."""
        return max((node.get(name, 0) for node in self.at_most(lambda node: node.get(name, 0))), default=0)


@dataclass(frozen=True, slots=True)
class Request:
    """What a command asks of a cluster."""

    workers: int
    """Workers per trial."""
    worker: Mapping[str, float]
    """CPUs and GPUs per worker."""
    trials: int = 1
    """Trials that must run at a time."""

    @property
    def total(self) -> int:
        return self.workers * self.trials

    def __str__(self) -> str:
        each = " and ".join(_count(self.worker[name], name) for name in NAMES if self.worker.get(name))
        trials = f"{self.trials} trials x " if self.trials > 1 else ""
        return f"{trials}{_count(self.workers, 'worker')} of {each}{'' if self.workers == 1 else ' each'}"


def refusal(
    request: Request, capacity: Capacity, *, sizes: Sequence[int], where: str = "the cluster"
) -> str | None:
    """Why a request can never be met, and the nearest one that can; None: it can, or that is unknown.

    Args:
        sizes: legal numbers of workers, largest first.
        where: name of the cluster or machine in the message.

    >>> refusal(Request(4, {"CPU": 1}), Capacity([{"CPU": 2}]), sizes=[4, 2, 1])
    '4 workers of 1 CPU each need 4 CPUs, the cluster has 2 and does not scale; nearest that fits: --workers 2'
    """
    if capacity.is_open or capacity.slots(request.worker) >= request.total:
        return None
    return f"{request} {_shortage(request, capacity, where)}; {nearest(request, capacity, sizes)}"


def nearest(request: Request, capacity: Capacity, sizes: Sequence[int]) -> str:
    """The feasible setting next to a request: fewer threads and trials at a time first, then fewer workers."""
    flags = next(_feasible(request, capacity, sizes), None)
    return "nothing of the kind fits; add nodes" if flags is None else f"nearest that fits: {flags}"


def _feasible(request: Request, capacity: Capacity, sizes: Sequence[int]) -> Iterator[str]:
    threads = range(int(request.worker["CPU"]), 0, -1)
    slots = {cpus: capacity.slots({**request.worker, "CPU": cpus}) for cpus in threads}
    for size in (request.workers, *(size for size in sizes if size < request.workers)):
        for trials in range(request.trials, 0, -1):
            for cpus in threads:
                if 0 < size * trials <= slots[cpus]:
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
    """Which resource is missing, how much of it is needed and how much there is."""
    growth = " with all that it may scale to" if capacity.scales else ""
    need = "needs" if request.total == 1 else "need"
    for name in NAMES:
        amount = request.worker.get(name, 0)
        if amount > capacity.largest(name) > 0:
            needed, largest = _count(amount, name), _count(capacity.largest(name), name)
            return f"{need} {needed} on one node, the largest node of {where}{growth} has {largest}"
        total = amount * request.total
        if total > capacity.most(name):
            scales = f"may scale to {capacity.most(name):g}" if capacity.scales else "does not scale"
            known = "" if where == "this machine" else f" and {scales}"
            return f"{need} {_count(total, name)}, {where} has {capacity.now(name):g}{known}"
    slots = _count(request.total, "slot")
    return f"{need} {slots}, the nodes of {where}{growth} have only {capacity.slots(request.worker)} of that shape"


def _count(number: float, thing: str) -> str:
    return f"{int(number)} {thing}" if int(number) == 1 else f"{int(number)} {thing}s"

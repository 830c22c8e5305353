"""Nodes of the graph as Slurm jobs and arrays, and what each waits for; pure functions.

A *unit* is what one job (or one element of an array) runs: one node, or several points of a sweep
side by side. A *batch* is what one sbatch submits: one unit, or an array of them.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.config import StageName
from pipeline.nodes import STAGES, Graph

Unit = tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where a node runs: an element of a batch that is to be submitted, or a live job."""

    batch: int = -1
    element: int = -1
    job: str = ""


@dataclass(frozen=True)
class Dependency:
    """One term of sbatch's --dependency."""

    kind: Literal["afterok", "aftercorr", "afterany"]
    on: Place

    def text(self, ids: Sequence[str], batches: Sequence["Batch"]) -> str:
        """`afterok:123_4`; `ids` are the job ids of the batches that were submitted before."""
        if self.on.job:
            return f"{self.kind}:{self.on.job}"
        job = ids[self.on.batch]
        # Without an element: the whole array, or, for aftercorr, element i for element i.
        single = self.on.element < 0 or not batches[self.on.batch].is_array
        return f"{self.kind}:{job}" if single else f"{self.kind}:{job}_{self.on.element}"


@dataclass(frozen=True)
class Batch:
    """What one sbatch submits."""

    stage: StageName
    units: tuple[Unit, ...]
    after: tuple[Dependency, ...]

    @property
    def is_array(self) -> bool:
        """Whether its elements have ids of their own: submitit makes one unit a plain job."""
        return len(self.units) > 1

    @property
    def nodes(self) -> list[str]:
        """The names of all its nodes."""
        return [name for unit in self.units for name in unit]


def arrange(
    graph: Graph,
    todo: Collection[str],
    live: Mapping[str, str],
    points_per_node: Callable[[StageName], int],
    max_array: int = 1000,
) -> list[Batch]:
    """The batches that run `todo`, each after those it waits for.

    `live` maps nodes that are queued or running already to their job ids. Only such and the
    batches themselves are waited for: what is done needs no waiting, and Slurm takes an id that
    it has forgotten for one that ended well.
    """
    batches: list[Batch] = []
    places = {name: Place(job=job) for name, job in live.items()}
    minimal = _minimal_inputs(graph, {*todo, *live}, live)
    for stage in STAGES:
        if stage == "report":
            continue
        groups: dict[frozenset[Place], list[str]] = {}
        for name in (n for n in graph if n in todo and graph[n].stage == stage):
            key = frozenset(places[above] for above in minimal[name])
            groups.setdefault(key, []).append(name)
        size = points_per_node(stage)
        units = {key: _chunks(names, size) for key, names in groups.items()}
        added = _one_to_one(stage, units, batches) + _groups(stage, units, max_array)
        for batch in added:
            for element, unit in enumerate(batch.units):
                places.update(dict.fromkeys(unit, Place(len(batches), element)))
            batches.append(batch)
    if report := [name for name in graph if graph[name].stage == "report" and name in todo]:
        batches.append(_report(report, batches, live))
    return batches


def _minimal_inputs(
    graph: Graph, pending: Collection[str], live: Collection[str]
) -> dict[str, set[str]]:
    """Pending node -> the pending inputs that it has to wait for itself.

    An input of an input needs no waiting of its own: that it is done is already waited for. Not
    so where the input between is live: it does not wait for what is only submitted now.
    """
    above: dict[str, set[str]] = {}
    minimal: dict[str, set[str]] = {}
    for name in (n for n in graph if n in pending):
        inputs = {i for i in graph[name].inputs.values() if i in pending}
        indirect = set[str]().union(*(above[i] for i in inputs))
        minimal[name] = inputs - indirect
        above[name] = {i for i in inputs | indirect if name not in live or i in live}
    return minimal


def _chunks(names: Sequence[str], size: int) -> list[Unit]:
    return [tuple(names[i : i + size]) for i in range(0, len(names), size)]


def _one_to_one(
    stage: StageName, units: dict[frozenset[Place], list[Unit]], batches: Sequence[Batch]
) -> list[Batch]:
    """Arrays whose element i waits for element i of one array; takes their units out of `units`.

    Only where every element has its partner: an index without one would wait for all.
    """
    columns: dict[tuple[int, frozenset[Place]], dict[int, frozenset[Place]]] = {}
    for key in units:
        elements = [place for place in key if place.batch >= 0 and batches[place.batch].is_array]
        if len(elements) == 1:
            rest = key - {elements[0]}
            columns.setdefault((elements[0].batch, rest), {})[elements[0].element] = key
    found = []
    for (batch, rest), keys in columns.items():
        if len(keys) < len(batches[batch].units):
            continue
        after = (Dependency("aftercorr", Place(batch)), *_after(rest))
        for _ in range(min(len(units[key]) for key in keys.values())):
            row = tuple(units[keys[element]].pop(0) for element in sorted(keys))
            found.append(Batch(stage, row, after))
    return found


def _groups(
    stage: StageName, units: Mapping[frozenset[Place], list[Unit]], max_array: int
) -> list[Batch]:
    """The units that wait for the same jobs, together."""
    return [
        Batch(stage, tuple(part[i : i + max_array]), _after(key))
        for key, part in units.items()
        for i in range(0, len(part), max_array)
    ]


def _after(places: Collection[Place]) -> tuple[Dependency, ...]:
    ordered = sorted(places, key=lambda place: (place.batch, place.element, place.job))
    return tuple(Dependency("afterok", place) for place in ordered)


def _report(names: list[str], batches: Sequence[Batch], live: Mapping[str, str]) -> Batch:
    """The report runs after any end of everything else, and shows what there is."""
    others = [Place(number) for number in range(len(batches))]
    others += [Place(job=job) for job in sorted(set(live.values()))]
    return Batch("report", (tuple(names),), tuple(Dependency("afterany", o) for o in others))

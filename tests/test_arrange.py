"""Nodes as jobs and arrays: what waits for what, as sbatch would be told."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_runs import tiny_run

from pipeline.arrange import Batch, Dependency, arrange
from pipeline.config import StageName
from pipeline.dag import build_graph
from pipeline.nodes import Graph

SEEDS = [{"gan.seed": [0, 1, 2, 3]}]


@cache
def _graph(sweep: str) -> Graph:
    return build_graph(tiny_run(json.loads(sweep)), {})


def graph_of(sweep: list[dict[str, Any]] | None = None) -> Graph:
    return _graph(json.dumps(sweep or []))


def of(graph: Graph, *stages: str) -> list[str]:
    """The names of all nodes of some stages."""
    return [name for name, node in graph.items() if node.stage in stages]


def arranged(
    graph: Graph,
    todo: Collection[str],
    live: Mapping[str, str] | None = None,
    max_array: int = 1000,
    **points_per_node: int,
) -> list[Batch]:
    return arrange(graph, todo, live or {}, lambda s: points_per_node.get(s, 1), max_array)


def waits(batches: Sequence[Batch]) -> list[tuple[str, int, str]]:
    """(stage, jobs, --dependency) of each batch; Slurm counts the ids from 100."""
    ids = [str(100 + number) for number in range(len(batches))]
    return [
        (batch.stage, len(batch.units), ",".join(term.text(ids, batches) for term in batch.after))
        for batch in batches
    ]


def test_single_points_are_plain_jobs_in_a_chain() -> None:
    graph = graph_of()
    assert waits(arranged(graph, list(graph))) == [
        ("render_synthia", 1, ""),
        ("render_cityscapes", 1, ""),
        ("pack_synthia", 1, "afterok:100"),
        ("pack_cityscapes", 1, "afterok:101"),
        ("segmenter", 1, "afterok:102"),
        ("gan", 1, "afterok:102,afterok:103"),
        ("finetune", 1, "afterok:104,afterok:105"),
        ("evaluate", 1, "afterok:103,afterok:104"),
        ("evaluate", 1, "afterok:104,afterok:105"),
        ("evaluate", 1, "afterok:106"),
        ("report", 1, ",".join(f"afterany:{number}" for number in range(100, 110))),
    ]


def test_nothing_to_do_is_no_batch() -> None:
    assert arranged(graph_of(), []) == []


def test_what_is_done_is_not_waited_for() -> None:
    graph = graph_of(SEEDS)
    assert waits(arranged(graph, of(graph, "finetune"))) == [("finetune", 4, "")]
    assert waits(arranged(graph, ["segmenter"])) == [("segmenter", 1, "")]


def test_live_jobs_are_waited_for_by_their_ids() -> None:
    graph = graph_of()
    todo = ["finetune", "evaluate/task_informed"]
    assert waits(arranged(graph, todo, {"gan": "77_3", "segmenter": "76"})) == [
        ("finetune", 1, "afterok:76,afterok:77_3"),
        ("evaluate", 1, "afterok:100"),
    ]


def test_live_job_that_nothing_to_do_needs_is_not_waited_for() -> None:
    graph = graph_of()
    assert waits(arranged(graph, ["segmenter"], {"gan": "77"})) == [("segmenter", 1, "")]


def test_one_to_one_fan_out_follows_element_by_element() -> None:
    graph = graph_of(SEEDS)
    found = arranged(graph, of(graph, "gan", "finetune"))
    assert waits(found) == [("gan", 4, ""), ("finetune", 4, "aftercorr:100")]
    for gan, finetune in zip(found[0].units, found[1].units, strict=True):
        assert graph[finetune[0]].inputs["gan"] == gan[0]


def test_other_inputs_stand_beside_the_partner() -> None:
    graph = graph_of(SEEDS)
    found = arranged(graph, of(graph, "segmenter", "gan", "finetune"))
    assert waits(found)[-1] == ("finetune", 4, "aftercorr:101,afterok:100")


def test_bundles_follow_the_bundles_that_hold_their_inputs() -> None:
    graph = graph_of([{"gan.seed": [0, 1, 2, 3, 4]}])
    found = arranged(graph, of(graph, "gan", "finetune"), gan=2, finetune=2)
    assert waits(found) == [("gan", 3, ""), ("finetune", 3, "aftercorr:100")]
    assert [len(unit) for unit in found[0].units] == [2, 2, 1]
    for gans, finetunes in zip(found[0].units, found[1].units, strict=True):
        assert tuple(graph[name].inputs["gan"] for name in finetunes) == gans


def test_single_points_after_bundles_are_arrays_of_one_element_per_bundle() -> None:
    graph = graph_of(SEEDS)
    found = arranged(graph, of(graph, "gan", "finetune"), gan=2)
    assert waits(found) == [
        ("gan", 2, ""),
        ("finetune", 2, "aftercorr:100"),
        ("finetune", 2, "aftercorr:100"),
    ]


def test_several_points_after_each_element_are_several_arrays() -> None:
    graph = graph_of([{"gan.seed": [0, 1, 2], "finetune.alpha": [0.0, 0.5]}])
    assert waits(arranged(graph, of(graph, "gan", "finetune"))) == [
        ("gan", 3, ""),
        ("finetune", 3, "aftercorr:100"),
        ("finetune", 3, "aftercorr:100"),
    ]


def test_partial_fan_out_waits_for_single_elements() -> None:
    graph = graph_of(SEEDS)
    todo = [n for n in of(graph, "gan", "finetune") if n != "finetune/gan.seed=1"]
    assert waits(arranged(graph, todo)) == [
        ("gan", 4, ""),
        ("finetune", 1, "afterok:100_0"),
        ("finetune", 1, "afterok:100_2"),
        ("finetune", 1, "afterok:100_3"),
    ]


def test_what_is_left_over_after_the_arrays_waits_for_single_elements() -> None:
    graph = graph_of([{"gan.seed": [0, 1], "finetune.alpha": [0.0, 0.5]}, {"finetune.alpha": 0.25}])
    assert waits(arranged(graph, of(graph, "gan", "finetune"))) == [
        ("gan", 2, ""),
        ("finetune", 2, "aftercorr:100"),
        ("finetune", 2, "aftercorr:100"),
        ("finetune", 1, "afterok:100_0"),
    ]


def test_two_arrays_crossed_are_waited_for_by_element() -> None:
    graph = graph_of([{"segmenter.seed": [0, 1], "gan.seed": [0, 1]}])
    found = waits(arranged(graph, of(graph, "segmenter", "gan", "finetune")))
    assert found[2:] == [
        ("finetune", 1, "afterok:100_0,afterok:101_0"),
        ("finetune", 1, "afterok:100_0,afterok:101_1"),
        ("finetune", 1, "afterok:100_1,afterok:101_0"),
        ("finetune", 1, "afterok:100_1,afterok:101_1"),
    ]


def test_points_that_wait_for_the_same_job_are_one_array() -> None:
    graph = graph_of([{"finetune.seed": [0, 1, 2]}])
    assert waits(arranged(graph, of(graph, "gan", "finetune"))) == [
        ("gan", 1, ""),
        ("finetune", 3, "afterok:100"),
    ]


def test_arrays_are_no_longer_than_slurm_takes() -> None:
    graph = graph_of([{"gan.seed": [0, 1, 2, 3, 4]}])
    assert waits(arranged(graph, of(graph, "gan", "finetune"), max_array=2)) == [
        ("gan", 2, ""),
        ("gan", 2, ""),
        ("gan", 1, ""),
        ("finetune", 2, "aftercorr:100"),
        ("finetune", 2, "aftercorr:101"),
        ("finetune", 1, "afterok:102"),
    ]


def test_report_comes_after_any_end_of_everything() -> None:
    graph = graph_of(SEEDS)
    live = {"segmenter": "70", "gan": "71_0", "gan/gan.seed=1": "71_0"}
    found = waits(arranged(graph, ["finetune", "report"], live))
    assert found[-1] == ("report", 1, "afterany:100,afterany:70,afterany:71_0")
    assert waits(arranged(graph, ["report"])) == [("report", 1, "")]


# A live job was submitted before what is to be submitted now, and so does not wait for it.
def test_live_job_does_not_stand_for_an_input_that_is_submitted_only_now() -> None:
    graph = graph_of()
    todo = ["pack_cityscapes", "evaluate/cyclegan"]
    found = waits(arranged(graph, todo, {"gan": "77"}))
    assert found[1] == ("evaluate", 1, "afterok:77,afterok:100")


BLOCKS = st.fixed_dictionaries(
    {},
    optional={
        "segmenter.seed": st.sampled_from([[0, 1], [1, 2], 2]),
        "gan.seed": st.sampled_from([[0, 1], [0, 1, 2], 1]),
        "finetune.alpha": st.sampled_from([[0.0, 0.5], 0.25]),
    },
).filter(bool)


@dataclass(frozen=True)
class Situation:
    """A sweep of which a part is done and a part under way."""

    graph: Graph
    todo: list[str]
    live: dict[str, str]
    points_per_node: dict[StageName, int]
    max_array: int


def with_inputs(graph: Graph, names: Collection[str]) -> set[str]:
    """`names` and all that they need."""
    found = set(names)
    for name in reversed(list(graph)):
        if name in found:
            found.update(graph[name].inputs.values())
    return found


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    graph = graph_of(draw(st.lists(BLOCKS, min_size=1, max_size=2)))
    some = st.sets(st.sampled_from([n for n in graph if n != "report"]), max_size=4)
    done = with_inputs(graph, draw(some))
    live = with_inputs(graph, draw(some)) - done
    return Situation(
        graph,
        [name for name in graph if name not in done | live],
        {name: f"9{number // 2}" for number, name in enumerate(sorted(live))},
        {
            "segmenter": draw(st.integers(1, 2)),
            "gan": draw(st.integers(1, 3)),
            "finetune": draw(st.integers(1, 3)),
            "evaluate": draw(st.integers(1, 4)),
        },
        draw(st.integers(1, 6)),
    )


def nodes_of(
    term: Dependency, element: int, batches: list[Batch], live: dict[str, str]
) -> set[str]:
    """The nodes for whose end `term` makes element `element` of an array wait."""
    if term.on.job:
        return {name for name, job in live.items() if job == term.on.job}
    units = batches[term.on.batch].units
    if term.kind == "aftercorr":
        return set(units[element])
    return {n for u in units for n in u} if term.on.element < 0 else set(units[term.on.element])


@settings(max_examples=60, deadline=None)
@given(situations())
def test_every_node_runs_once_and_after_all_its_inputs(case: Situation) -> None:
    batches = arrange(
        case.graph,
        case.todo,
        case.live,
        lambda stage: case.points_per_node.get(stage, 1),
        case.max_array,
    )
    assert sorted(name for batch in batches for name in batch.nodes) == sorted(case.todo)
    # What a node waits for, through others too; live jobs wait for their inputs that are live.
    waited: dict[str, set[str]] = {}
    for name in (n for n in case.graph if n in case.live):
        inputs = {above for above in case.graph[name].inputs.values() if above in case.live}
        waited[name] = inputs.union(*(waited[above] for above in inputs))
    for number, batch in enumerate(batches):
        assert {case.graph[name].stage for name in batch.nodes} == {batch.stage}
        assert len(batch.units) <= case.max_array
        for term in batch.after:
            assert term.on.job in case.live.values() if term.on.job else term.on.batch < number
            if term.kind == "aftercorr":
                assert len(batches[term.on.batch].units) == len(batch.units) > 1
        for element, unit in enumerate(batch.units):
            assert len(unit) <= case.points_per_node.get(batch.stage, 1)
            for term in batch.after if batch.stage != "report" else ():
                direct = nodes_of(term, element, batches, case.live)
                # Nothing is waited for that no node of the unit needs.
                assert direct & {i for name in unit for i in case.graph[name].inputs.values()}
            terms = [nodes_of(term, element, batches, case.live) for term in batch.after]
            own = set[str]().union(*terms)
            own = own.union(*(waited[above] for above in own))
            waited.update(dict.fromkeys(unit, own))
            for name in unit:
                inputs = set(case.graph[name].inputs.values())
                assert inputs & {*case.todo, *case.live} <= own

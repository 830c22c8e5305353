"""The graph: its nodes and edges, and what its hashes depend on."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import tiny_run

import data_prep.config
from data_prep.config import CONFIGS, ConfigError
from pipeline import nodes
from pipeline.config import RunConfig
from pipeline.dag import build_graph, priorities, select
from pipeline.hashing import science_hash
from pipeline.nodes import Graph
from pipeline.sweep import Run

KNOWN: dict[str, str | None] = {"synthia": "s", "cityscapes": "c"}


def graph_of(*args: Any, **keys: Any) -> Graph:
    return build_graph(tiny_run(*args, **keys), KNOWN)


def hashes(run: Run) -> dict[str, str | None]:
    return {name: node.hash for name, node in build_graph(run, KNOWN).items()}


def test_base_graph() -> None:
    graph = graph_of()
    packs = {"synthetic": "pack_synthia", "real": "pack_cityscapes"}
    learnt = {**packs, "segmenter": "segmenter"}
    edges = {name: node.inputs for name, node in graph.items() if name != "report"}
    assert edges == {
        "render_synthia": {},
        "pack_synthia": {"raw": "render_synthia"},
        "render_cityscapes": {},
        "pack_cityscapes": {"raw": "render_cityscapes"},
        "segmenter": {"synthetic": "pack_synthia"},
        "gan": packs,
        "finetune": {**learnt, "gan": "gan"},
        "evaluate/source_only": learnt,
        "evaluate/cyclegan": {**learnt, "translator": "gan"},
        "evaluate/task_informed": {**learnt, "translator": "finetune"},
    }
    assert graph["report"].inputs == {name: name for name in edges}


def test_own_data_needs_no_rendering() -> None:
    graph = graph_of(data={"synthia_root": "minicity", "cityscapes_root": "/photos"})
    assert "render_synthia" in graph and "render_cityscapes" not in graph
    assert graph["pack_cityscapes"].inputs == {}
    assert graph["pack_cityscapes"].raw_hash == "c"


def test_points_share_what_they_can() -> None:
    graph = graph_of([{"gan.seed": [0, 1], "finetune.alpha": [0.0, 0.5]}, {"segmenter.seed": 3}])
    assert [n for n in graph if graph[n].stage == "gan"] == ["gan", "gan/gan.seed=1"]
    assert [n for n in graph if graph[n].stage == "segmenter"] == [
        "segmenter",
        "segmenter/segmenter.seed=3",
    ]
    assert {n for n in graph if graph[n].stage == "finetune"} == {
        "finetune",
        "finetune/finetune.alpha=0.0",
        "finetune/gan.seed=1",
        "finetune/finetune.alpha=0.0,gan.seed=1",
        "finetune/segmenter.seed=3",
    }
    matched = graph["evaluate/cyclegan_matched,finetune.alpha=0.0,gan.seed=1"]
    assert matched.inputs["translator"] == "finetune/finetune.alpha=0.0,gan.seed=1"
    assert matched.science["method"] == "cyclegan_matched"
    source = [n for n in graph if n.startswith("evaluate/source_only")]
    assert source == ["evaluate/source_only", "evaluate/source_only,segmenter.seed=3"]


def test_alpha_scales_makes_no_difference_at_alpha_0() -> None:
    sweep = [{"finetune.alpha": [0.0, 0.5], "finetune.alpha_scales": ["adversarial", "all"]}]
    assert sum(node.stage == "finetune" for node in graph_of(sweep).values()) == 3


BASELINES: dict[str, Any] = {
    "finetune_segmenter": {"images": 100, "learning_rate": 1e-3},
    "adaptsegnet": {"images": 100},
}


def test_every_method_has_the_stages_it_needs() -> None:
    methods = ["cyclegan_matched", "task_informed", "finetuned_segmenter", "both"]
    graph = graph_of(methods=[*methods, "adaptsegnet", "oracle"], **BASELINES)
    packs = {"synthetic": "pack_synthia", "real": "pack_cityscapes"}
    used = {
        node.science["method"]: {k: v for k, v in node.inputs.items() if k not in packs}
        for node in graph.values()
        if node.stage == "evaluate"
    }
    control = "finetune/finetune.alpha=0.0"
    assert used == {
        "cyclegan_matched": {"segmenter": "segmenter", "translator": control},
        "task_informed": {"segmenter": "segmenter", "translator": "finetune"},
        "finetuned_segmenter": {"segmenter": "finetune_segmenter/real"},
        "both": {"segmenter": "finetune_segmenter/translated", "translator": "finetune"},
        "adaptsegnet": {"segmenter": "adaptsegnet"},
        "oracle": {"segmenter": "oracle"},
    }
    assert graph["oracle"].inputs == {"real": "pack_cityscapes"}
    assert graph["adaptsegnet"].inputs == {**packs, "segmenter": "segmenter"}
    assert graph["finetune_segmenter/real"].inputs == {
        "real": "pack_cityscapes",
        "segmenter": "segmenter",
    }
    assert graph["finetune_segmenter/translated"].inputs["translator"] == "finetune"


def test_a_baseline_hangs_on_its_own_keys_only() -> None:
    sweep = [{"finetune.alpha": [0.1, 0.5], "gan.seed": [0, 1], "finetune.draw": [0, 1]}]
    graph = graph_of(sweep, methods=["finetuned_segmenter", "oracle", "adaptsegnet"], **BASELINES)
    assert [n for n in graph if graph[n].stage in ("gan", "finetune")] == []
    assert [n for n in graph if graph[n].stage == "evaluate"] == [
        "evaluate/finetuned_segmenter",
        "evaluate/oracle",
        "evaluate/adaptsegnet",
        "evaluate/finetuned_segmenter,finetune.draw=1",
    ]


def test_one_control_for_all_weights_of_the_task_loss() -> None:
    sweep = [{"finetune.alpha": [0.1, 0.5, 0.9], "finetune.gamma": [1.0, 10.0]}]
    graph = graph_of(sweep, methods=["cyclegan_matched", "task_informed"])
    finetunes = [n for n in graph if graph[n].stage == "finetune"]
    assert len(finetunes) == 7
    assert finetunes.count("finetune/finetune.alpha=0.0") == 1


@pytest.mark.parametrize("key", ["finetune_segmenter__images", "adaptsegnet__seed"])
def test_a_key_of_a_baseline_changes_its_own_stages_only(key: str) -> None:
    methods = ["source_only", "finetuned_segmenter", "adaptsegnet"]
    before = hashes(tiny_run(methods=methods, **BASELINES))
    after = hashes(tiny_run(methods=methods, **BASELINES, **{key: 7}))
    changed = {name.partition("/")[0] for name in after if after[name] != before[name]}
    assert changed == {key.partition("__")[0], "evaluate", "report"}
    assert after["evaluate/source_only"] == before["evaluate/source_only"]


def test_methods_can_differ_from_point_to_point() -> None:
    sweep = [{}, {"segmenter.seed": 1, "methods": [["source_only"]]}]
    graph = graph_of(sweep)
    assert [n for n in graph if n.endswith("segmenter.seed=1")] == [
        "segmenter/segmenter.seed=1",
        "evaluate/source_only,segmenter.seed=1",
    ]


def test_both_at_alpha_0_is_one_node_whatever_gamma() -> None:
    for gammas in ([1.0, 10.0], [0.3, 1.0, 10.0]):
        sweep = [{"finetune.alpha": [0.0, 0.5], "finetune.gamma": gammas}]
        graph = graph_of(sweep, methods=["both"], **BASELINES)
        plain = [n for n in graph if "translated,finetune.alpha=0.0" in n]
        assert plain == ["finetune_segmenter/translated,finetune.alpha=0.0"]


def test_swept_weights_are_named_by_their_contents(tmp_path: Path) -> None:
    (tmp_path / "a=1,b").mkdir()
    here, there = tmp_path / "w.pth", tmp_path / "a=1,b" / "w.pth"
    for path in (here, there):
        path.write_text("weights")

    def graph(path: Path) -> Graph:
        sweep = [{"segmenter.pretrained": str(path), "methods": [["source_only"]]}]
        return graph_of(sweep, segmenter__architecture="deeplabv3")

    assert list(graph(here)) == list(graph(there))
    (node,) = [node for node in graph(there).values() if node.stage == "segmenter"]
    assert str(tmp_path) not in node.name
    (shown,) = node.swept.values()
    assert shown.startswith("w-") and node.point == f"segmenter.pretrained={shown}"
    there.write_text("others")
    assert list(graph(here)) != list(graph(there))


def test_a_method_without_its_settings_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"adaptsegnet: not given, but methods lists adapt"):
        tiny_run(methods=["adaptsegnet"])
    with pytest.raises(ConfigError, match=r"finetune_segmenter: not given, but methods lists both"):
        tiny_run([{"methods": [["both"]]}])


def test_gamma_makes_no_difference_at_alpha_0() -> None:
    graph = graph_of([{"finetune.alpha": [0.0, 0.5], "finetune.gamma": [3.0, 10.0, 30.0]}])
    assert [n for n in graph if graph[n].stage == "finetune"] == [
        "finetune/finetune.alpha=0.0",
        "finetune/finetune.gamma=3.0",
        "finetune",
        "finetune/finetune.gamma=30.0",
    ]
    matched = [n for n in graph if n.startswith("evaluate/cyclegan_matched")]
    assert matched == ["evaluate/cyclegan_matched,finetune.alpha=0.0"]
    # The same control, also where the base's own gamma is another.
    other = graph_of([{"finetune.alpha": [0.0, 0.5]}], finetune__gamma=3.0)
    name = "finetune/finetune.alpha=0.0"
    assert other[name].hash == graph[name].hash
    assert other["finetune"].hash != graph["finetune"].hash
    base = graph_of([{"finetune.gamma": [3.0, 5.0]}], finetune__alpha=0.0, finetune__gamma=3.0)
    assert [n for n in base if base[n].stage == "finetune"] == ["finetune/finetune.alpha=0.0"]


def test_unknown_data_leaves_hashes_open_but_nodes_apart() -> None:
    run = tiny_run([{"gan.seed": [0, 1]}], data={"synthia_root": "minicity"})
    known, unknown = build_graph(run, KNOWN), build_graph(run, {"cityscapes": None})
    assert list(known) == list(unknown)
    assert {n for n, node in unknown.items() if node.hash is not None} == {
        "render_synthia",
        "pack_synthia",
        "segmenter",
    }


def leaves(model: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in model.items():
        if isinstance(value, dict):
            found.update(leaves(value, f"{prefix}{key}__"))
        else:
            found[prefix + key] = value
    return found


# Not hashed, or (methods, and what only further methods need) tested apart.
LAUNCH = ("name", "data", "training", "stage_training", "sweep")
OTHER_METHODS = ("methods", "finetune_segmenter", "adaptsegnet")
# Values that differ from those of minicity.yaml, where 'the value + 1' is not valid.
OTHER: dict[str, Any] = {
    "classes": "synthia13",
    "segmenter__architecture": "deeplabv3",
    "segmenter__backbone": "resnet50",
    "segmenter__crop": [64, 64],
    "segmenter__scale": [1.0, 1.5],
    "segmenter__optimizer": "sgd",
    "segmenter__precision": "bf16",
    "segmenter__momentum": 0.5,
    "segmenter__colour_jitter": 0.2,
    "gan__crop": [64, 64],
    "gan__betas": [0.4, 0.9],
    "gan__precision": "bf16",
    "gan__generator__upsample": "transposed",
    "gan__generator__start": "random",
    "finetune__alpha": 0.25,
    "finetune__alpha_scales": "all",
    "selection_fraction": 0.2,
    "report__title": "another title",
    # the generators halve twice
    "pack__cityscapes__height": tiny_run().config.pack.cityscapes.height + 4,
    "pack__cityscapes__width": tiny_run().config.pack.cityscapes.width + 4,
}
SCIENCE = {
    key: value
    for key, value in leaves(tiny_run().config.model_dump()).items()
    if key.partition("__")[0] not in LAUNCH + OTHER_METHODS
    # tested apart: it names a file
    and key != "segmenter__pretrained"
    # may only be 0
    and key != "pack__cityscapes__val_images"
}


BASE = hashes(tiny_run())


def another(key: str, value: Any) -> Any:
    if key in OTHER:
        return OTHER[key]
    return (not value) if isinstance(value, bool) else value + 1


@pytest.mark.parametrize("key", sorted(SCIENCE))
def test_every_science_key_changes_a_hash(key: str) -> None:
    before, after = BASE, hashes(tiny_run(**{key: another(key, SCIENCE[key])}))
    changed = {name.partition(",")[0] for name in after if before.get(name) != after[name]}
    assert "report" in changed
    owner = key.partition("__")[0]
    if owner in ("gan", "segmenter", "finetune"):
        assert owner in changed
        assert not changed & {"pack_synthia", "pack_cityscapes", "evaluate/source_only"} or (
            owner == "segmenter"
        )


@pytest.mark.parametrize(
    "keys",
    [
        {"training__checkpoint_images": 5},
        {"stage_training": {"gan": {"num_workers": 3}}},
        {"name": "other"},
    ],
)
def test_launch_keys_change_no_hash(keys: dict[str, Any]) -> None:
    assert hashes(tiny_run(**keys)) == hashes(tiny_run())


def test_data_counts_by_its_fingerprint_not_by_its_place() -> None:
    here = tiny_run(data={"synthia_root": "/a", "cityscapes_root": "/b"})
    there = tiny_run(data={"synthia_root": "/c", "cityscapes_root": "/d"})
    assert hashes(here) == hashes(there)
    other = build_graph(here, {"synthia": "s", "cityscapes": "changed"})
    changed = {name for name, node in other.items() if node.hash != hashes(here)[name]}
    assert changed == set(other) - {"pack_synthia", "segmenter"}


def test_hashes_do_not_change_from_version_to_version() -> None:
    # A changed recipe of the hash would retrain every user's run: let it be on purpose.
    science = {"gan": {"seed": 0}, "selection_fraction": 0.1}
    assert science_hash("gan", science, 1, {"real": "r", "synthetic": "s"}) == (
        "490379c47e4818ffc701d963af4e07e7dfcb3588ab0c8a2ef473da49958dcff5"
    )


def test_stage_version_changes_the_stage_and_all_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = hashes(tiny_run())
    monkeypatch.setitem(nodes.STAGE_VERSION, "gan", 2)
    after = hashes(tiny_run())
    assert {n for n in after if after[n] != before[n]} == {
        "gan",
        "finetune",
        "evaluate/cyclegan",
        "evaluate/task_informed",
        "report",
    }


@pytest.fixture
def own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of configs/ that a test may edit."""
    folder = tmp_path / "configs"
    shutil.copytree(CONFIGS, folder)
    monkeypatch.setattr(data_prep.config, "CONFIGS", folder)
    return folder


def test_class_set_counts_by_its_contents(own_configs: Path) -> None:
    before = hashes(tiny_run())
    path = own_configs / "classes" / "synthia16.yaml"
    text = path.read_text()
    path.write_text("# only a comment\n" + text)
    assert hashes(tiny_run()) == before
    first = next(line for line in text.splitlines() if "synthia: [" in line)
    path.write_text(text.replace(first, first.replace("synthia: [", "synthia: [200, ")))
    after = hashes(tiny_run())
    changed = {name for name in after if after[name] != before[name]}
    assert {"segmenter", "finetune", "evaluate/cyclegan", "report"} <= changed
    assert not changed & {"gan", "pack_synthia", "pack_cityscapes"}


def test_weights_file_counts_by_its_bytes(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.pt", "b.pt", "c.pt")]
    for path, content in zip(files, ("same", "same", "other"), strict=True):
        path.write_text(content)

    def segmenter(path: Path) -> str | None:
        keys = {"segmenter__architecture": "deeplabv3", "segmenter__pretrained": str(path)}
        return hashes(tiny_run(**keys))["segmenter"]

    assert segmenter(files[0]) == segmenter(files[1]) != segmenter(files[2])
    with pytest.raises(ConfigError, match=r"segmenter\.pretrained: no file"):
        segmenter(tmp_path / "missing.pt")


def test_select_runs_a_stage_and_what_it_needs() -> None:
    graph = graph_of([{"gan.seed": [0, 1]}])
    assert select(graph, set(), "segmenter") == ["render_synthia", "pack_synthia", "segmenter"]
    done = set(select(graph, set(), "segmenter"))
    assert select(graph, done, "gan") == [
        "render_cityscapes",
        "pack_cityscapes",
        "gan",
        "gan/gan.seed=1",
    ]
    assert select(graph, set(), "all") == list(graph)
    assert select(graph, set(graph), "all") == []


def test_longest_path_comes_first() -> None:
    graph = graph_of()
    order = priorities(graph, list(graph))
    for name in graph:
        after = [order[other] for other in graph if name in graph[other].inputs.values()]
        own = priorities(graph, [name])[name]
        assert own > 0 and order[name] == own + max(after, default=0)
    assert max(order, key=lambda name: order[name]) == "render_synthia"
    assert set(priorities(graph, ["report"])) == {"report"}


def test_every_field_of_the_run_config_is_launch_or_science() -> None:
    owned = {key.partition("__")[0] for key in SCIENCE} | {*LAUNCH, *OTHER_METHODS}
    assert owned == set(RunConfig.model_fields)

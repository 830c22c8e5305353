"""The graph of stages and points: nodes, hashes, order; pure functions."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from data_prep.config import StrictModel
from pipeline import paths
from pipeline.config import MINICITY, Point, Run, RunConfig, StageName
from pipeline.hashing import science_hash
from pipeline.science import PackStage, RenderCityscapesStage, RenderSynthiaStage
from tigan.config import (
    EvaluateStage,
    FinetuneConfig,
    FinetuneStage,
    GanStage,
    ReportStage,
    SegmenterStage,
)

STAGES: tuple[StageName, ...] = get_args(StageName)  # in order
KINDS = ("synthia", "cityscapes")

# Raise a stage's number when its code changes what it makes: finished stages of before are then
# kept aside and made anew, with all that comes after them.
STAGE_VERSION: dict[str, int] = {
    "render_synthia": 1,
    "render_cityscapes": 1,
    "pack_synthia": 2,  # shard format 2
    "pack_cityscapes": 2,
    "segmenter": 2,
    "gan": 1,
    "finetune": 1,
    "evaluate": 1,
    "report": 1,
}

# Relative run times of the stages, as seen on MiniCity; only the order of starting hangs on them.
_WEIGHTS: dict[str, int] = {
    "render_synthia": 60,
    "render_cityscapes": 60,
    "pack_synthia": 10,
    "pack_cityscapes": 10,
    "segmenter": 200,
    "gan": 150,
    "finetune": 165,
    "evaluate": 15,
    "report": 5,
}


@dataclass(frozen=True)
class Node:
    """One stage at one point. `hash` is None where the data it hangs on is not known."""

    stage: StageName
    point: str
    science: dict[str, Any]
    inputs: dict[str, str]  # role -> name of the node
    hash: str | None
    config: RunConfig  # of the point; for launch keys only
    raw_hash: str | None = None  # of a pack of the user's own data: the data's fingerprint

    @property
    def name(self) -> str:
        """The node's name, and its directory in the run directory."""
        return paths.node_name(self.stage, self.point)


# They scale or shape the task loss, which is not there at alpha = 0.
_IDLE_AT_ALPHA_0 = ("finetune.gamma", "finetune.alpha_scales")

Graph = dict[str, Node]  # by name, every node after its inputs


@dataclass
class _Builder:
    """Collects the nodes; two points that resolve to the same science are one node."""

    raw_hashes: Mapping[str, str | None]
    kept_weights: Mapping[str, str]
    nodes: Graph = field(default_factory=dict)
    # Hashes that stand in for those that are not known, so that nodes can still be told apart.
    digests: dict[str, str] = field(default_factory=dict)
    names: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(
        self,
        stage: StageName,
        point: str,
        science: StrictModel,
        config: RunConfig,
        inputs: dict[str, str],
        raw: str | None = None,
    ) -> str:
        """Add a node, or find the one of equal science; returns its name. `raw`: kind of data."""
        dump = science.model_dump()
        upstream = {role: self.digests[name] for role, name in inputs.items()}
        is_known = all(self.nodes[name].hash is not None for name in inputs.values())
        raw_hash = None
        if raw is not None:
            raw_hash = self.raw_hashes.get(raw)
            is_known = raw_hash is not None
            upstream["raw"] = raw_hash or "unknown"
        version = STAGE_VERSION[stage]
        digest = science_hash(stage, dump, version, upstream, self.kept_weights)
        if (stage, digest) not in self.names:
            known = digest if is_known else None
            node = Node(stage, point, dump, inputs, known, config, raw_hash)
            assert node.name not in self.nodes, f"two different nodes called {node.name}"
            self.nodes[node.name] = node
            self.digests[node.name] = digest
            self.names[stage, digest] = node.name
        return self.names[stage, digest]


def build_graph(
    run: Run,
    raw_hashes: Mapping[str, str | None],
    kept_weights: Mapping[str, str] | None = None,
) -> Graph:
    """All nodes of `run`, every one after its inputs.

    `raw_hashes` maps 'synthia' and 'cityscapes' to the fingerprint of the user's data; None where
    it is not known (no such folder). It is not asked where the data root is the word 'minicity'.
    `kept_weights` gives the digests of files of backbone weights that are gone. Raises
    `ConfigError` where one is gone and not among them.
    """
    builder = _Builder(raw_hashes, kept_weights or {})
    synthetic, real = (_add_data(builder, run.config, kind) for kind in KINDS)
    for point in run.points:
        _add_point(builder, point, synthetic, real)
    title = ReportStage(title=run.config.report.title, classes=run.config.classes)
    builder.add("report", "", title, run.config, {name: name for name in builder.nodes})
    return builder.nodes


def root_of(config: RunConfig, kind: str) -> str | None:
    """The data root of 'synthia' or 'cityscapes' as configured."""
    return config.data.synthia_root if kind == "synthia" else config.data.cityscapes_root


def _add_data(builder: _Builder, config: RunConfig, kind: str) -> str:
    """The pack of one source and, for MiniCity, its rendering; returns the pack's name."""
    own = root_of(config, kind) != MINICITY
    city = config.minicity
    size = {"seed": city.seed, "height": city.height, "width": city.width}
    if kind == "synthia":
        render = RenderSynthiaStage(images=city.synthia_images, **size)
        pack = PackStage(kind="synthia", pack=config.pack.synthia)
        inputs = {} if own else {"raw": builder.add("render_synthia", "", render, config, {})}
        return builder.add("pack_synthia", "", pack, config, inputs, kind if own else None)
    street = RenderCityscapesStage(
        train_images=city.train_images, val_images=city.val_images, **size
    )
    pack = PackStage(kind="cityscapes", pack=config.pack.cityscapes)
    inputs = {} if own else {"raw": builder.add("render_cityscapes", "", street, config, {})}
    return builder.add("pack_cityscapes", "", pack, config, inputs, kind if own else None)


def _add_point(builder: _Builder, point: Point, synthetic: str, real: str) -> None:
    """The segmenter, the translators and their evaluations at one point."""
    config, finetuning = point.config, _finetuning(point.config)
    packs = {"synthetic": synthetic, "real": real}

    def label(*stages: str, prefix: str = "") -> str:
        changed = point.changed_in(stages)
        if finetuning is not config.finetune:
            changed = {k: v for k, v in changed.items() if k not in _IDLE_AT_ALPHA_0}
        return paths.point_label(changed, prefix)

    segmenter = builder.add(
        "segmenter",
        label("segmenter"),
        SegmenterStage(segmenter=config.segmenter, classes=config.classes),
        config,
        {"synthetic": synthetic},
    )
    learnt = GanStage(gan=config.gan, selection_fraction=config.selection_fraction)
    gan = builder.add("gan", label("gan"), learnt, config, packs)
    finetune = builder.add(
        "finetune",
        label("segmenter", "gan", "finetune"),
        FinetuneStage(
            gan=config.gan,
            selection_fraction=config.selection_fraction,
            finetune=finetuning,
            classes=config.classes,
        ),
        config,
        {**packs, "segmenter": segmenter, "gan": gan},
    )
    owners: tuple[str, ...] = ("segmenter", "evaluate")
    matched = config.finetune.alpha == 0
    for method, translator, more in [
        ("source_only", None, ()),
        ("cyclegan", gan, ("gan",)),
        ("cyclegan_matched" if matched else "task_informed", finetune, ("gan", "finetune")),
    ]:
        inputs = {**packs, "segmenter": segmenter}
        if translator is not None:
            inputs["translator"] = translator
        science = EvaluateStage.model_validate(
            {"evaluate": config.evaluate, "classes": config.classes, "method": method}
        )
        name = label(*owners, *more, prefix=method)
        builder.add("evaluate", name, science, config, inputs)


def _finetuning(config: RunConfig) -> FinetuneConfig:
    """The finetuning at a point; at alpha = 0 with the defaults of what has no effect there.

    Else a sweep of gamma would train the same control again and again, and count the copies as
    independent.
    """
    if config.finetune.alpha != 0:
        return config.finetune
    fields = FinetuneConfig.model_fields
    idle = [key.removeprefix("finetune.") for key in _IDLE_AT_ALPHA_0]
    return config.finetune.model_copy(update={name: fields[name].default for name in idle})


def select(graph: Graph, done: Collection[str], stage: str) -> list[str]:
    """The nodes to run for `--stage STAGE`: its points and what they need, less what is done."""
    wanted = {name for name, node in graph.items() if stage in ("all", node.stage)}
    for name in reversed(list(graph)):
        if name in wanted and name not in done:
            wanted.update(graph[name].inputs.values())
    return [name for name in graph if name in wanted and name not in done]


def priorities(graph: Graph, todo: Collection[str]) -> dict[str, int]:
    """Node -> length of the longest path from its start to the end, over the nodes in `todo`."""
    longest: dict[str, int] = {}
    for name in reversed(list(graph)):
        if name in todo:
            after = [longest[n] for n in longest if name in graph[n].inputs.values()]
            longest[name] = _WEIGHTS[graph[name].stage] + max(after, default=0)
    return longest

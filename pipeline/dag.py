"""The graph of stages and points: nodes, hashes, order; pure functions."""

from collections.abc import Collection, Mapping

from pipeline.config import MINICITY, RunConfig
from pipeline.methods import PointNodes
from pipeline.nodes import Builder, Graph, PointName
from pipeline.science import PackStage, RenderCityscapesStage, RenderSynthiaStage
from pipeline.sweep import Run
from tigan.config import ReportStage

KINDS = ("synthia", "cityscapes")
_BASE = PointName()

# Relative run times of the stages, as seen on MiniCity; only the order of starting hangs on them.
_WEIGHTS: dict[str, int] = {
    "render_synthia": 60,
    "render_cityscapes": 60,
    "pack_synthia": 10,
    "pack_cityscapes": 10,
    "segmenter": 200,
    "gan": 150,
    "finetune": 165,
    "finetune_segmenter": 30,
    "adaptsegnet": 100,
    "oracle": 200,
    "evaluate": 15,
    "report": 5,
}


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
    builder = Builder(raw_hashes, kept_weights or {})
    synthetic, real = (_add_data(builder, run.config, kind) for kind in KINDS)
    for point in run.points:
        nodes = PointNodes(builder, point, synthetic, real)
        for method in point.config.methods:
            nodes.add_method(method)
    page = ReportStage(**run.config.report.model_dump(), classes=run.config.classes)
    builder.add("report", _BASE, page, run.config, {name: name for name in builder.nodes})
    return builder.nodes


def root_of(config: RunConfig, kind: str) -> str | None:
    """The data root of 'synthia' or 'cityscapes' as configured."""
    return config.data.synthia_root if kind == "synthia" else config.data.cityscapes_root


def _add_data(builder: Builder, config: RunConfig, kind: str) -> str:
    """The pack of one source and, for MiniCity, its rendering; returns the pack's name."""
    own = root_of(config, kind) != MINICITY
    city = config.minicity
    size = {"seed": city.seed, "height": city.height, "width": city.width}
    if kind == "synthia":
        render = RenderSynthiaStage(images=city.synthia_images, **size)
        pack = PackStage(kind="synthia", pack=config.pack.synthia)
        inputs = {} if own else {"raw": builder.add("render_synthia", _BASE, render, config, {})}
        return builder.add("pack_synthia", _BASE, pack, config, inputs, kind if own else None)
    street = RenderCityscapesStage(
        train_images=city.train_images, val_images=city.val_images, **size
    )
    pack = PackStage(kind="cityscapes", pack=config.pack.cityscapes)
    inputs = {} if own else {"raw": builder.add("render_cityscapes", _BASE, street, config, {})}
    return builder.add("pack_cityscapes", _BASE, pack, config, inputs, kind if own else None)


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

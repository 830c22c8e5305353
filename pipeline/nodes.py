"""What the graph is made of: stages and their versions, nodes, and the builder that hashes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from data_prep.config import StrictModel
from pipeline import paths
from pipeline.config import RunConfig, StageName
from pipeline.hashing import science_hash

STAGES: tuple[StageName, ...] = get_args(StageName)  # in order

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
    "finetune_segmenter": 1,
    "adaptsegnet": 1,
    "oracle": 1,
    "evaluate": 2,  # scores of single images and of the selection split; no pictures
    "report": 2,  # all methods, paired gains, the model card
}


@dataclass(frozen=True)
class PointName:
    """A point's directory, and the swept keys that it stands for; both empty for the base."""

    text: str = ""
    swept: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Node:
    """One stage at one point. `hash` is None where the data it hangs on is not known."""

    stage: StageName
    point: str
    swept: Mapping[str, Any]
    science: dict[str, Any]
    inputs: dict[str, str]  # role -> name of the node
    hash: str | None
    config: RunConfig  # of the point; for launch keys only
    raw_hash: str | None = None  # of a pack of the user's own data: the data's fingerprint

    @property
    def name(self) -> str:
        """The node's name, and its directory in the run directory."""
        return paths.node_name(self.stage, self.point)


Graph = dict[str, Node]  # by name, every node after its inputs


@dataclass
class Builder:
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
        point: PointName,
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
            node = Node(stage, point.text, point.swept, dump, inputs, known, config, raw_hash)
            assert node.name not in self.nodes, f"two different nodes called {node.name}"
            self.nodes[node.name] = node
            self.digests[node.name] = digest
            self.names[stage, digest] = node.name
        return self.names[stage, digest]

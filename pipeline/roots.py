"""The user's own data as a plan sees them: fingerprints, what is wrong, whether labels suffice."""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.config import ConfigError
from pipeline.config import MINICITY, RunConfig
from pipeline.dag import KINDS, root_of
from pipeline.done import load_done
from pipeline.frozen import read_frozen_tree
from pipeline.nodes import Graph


@dataclass
class Roots:
    """Kind of data -> fingerprint (None: not known), and what is wrong; not of rendered data.

    `train_cities`: city -> real train images, where the data are there to be listed.
    """

    hashes: dict[str, str | None] = field(default_factory=dict)
    trouble: dict[str, str] = field(default_factory=dict)
    train_cities: Mapping[str, int] = field(default_factory=dict)


def read_roots(config: RunConfig, run_dir: Path) -> Roots:
    """List the user's own data.

    Where the data is gone, a finished pack tells what it was: the pack goes on being valid.
    """
    roots = Roots()
    for kind in KINDS:
        root = root_of(config, kind)
        if root == MINICITY:
            continue
        try:
            _list(roots, config, kind, root)
        except ConfigError as error:
            roots.trouble[kind] = str(error)
            pack = run_dir / f"pack_{kind}"
            raw = read_frozen_tree(pack).get("inputs", {}).get("raw", {})
            known = load_done(pack) is not None and Path(raw.get("dir", "")).is_absolute()
            roots.hashes[kind] = raw.get("hash") if known else None
    return roots


def _list(roots: Roots, config: RunConfig, kind: str, root: str | None) -> None:
    """Note what a data root holds. Raises `ConfigError` where it is not given, or not right."""
    key = f"data.{kind}_root"
    if root is None:
        raise ConfigError(
            f"{key}: not given; give it with --set {key}=PATH (a folder in the layout of "
            f"{kind.capitalize()}) or --set {key}={MINICITY} (rendered images)"
        )
    if not Path(root).is_dir():
        raise ConfigError(f"{key}: no folder {root}; correct it, or give --set {key}=PATH")
    from data_prep import listing

    try:
        source = listing.list_source("synthia" if kind == "synthia" else "cityscapes", Path(root))
        roots.hashes[kind] = listing.fingerprint(source)
        lacks = listing.missing_images(source)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{key}: {error}") from None
    if kind == "cityscapes":
        keys = (item.key for item in source.splits["train"])
        roots.train_cities = Counter(map(listing.city_of, keys))
    if lacks and not config.data.subset:
        roots.trouble[kind] = (
            f"{key}: {lacks}; complete it, or give --set data.subset=true if so many are meant"
        )


def selection_warnings(config: RunConfig, roots: Roots) -> list[str]:
    """A selection split that would hold nothing: choices could only be made on val."""
    held = sum(int(n * config.selection_fraction) for n in roots.train_cities.values())
    if not roots.train_cities or config.selection_fraction == 0 or held:
        return []
    most = max(roots.train_cities.values())
    return [
        f"selection_fraction: {config.selection_fraction} of each city holds out no image, as the "
        f"largest has {most} train images, so there will be no scores to choose settings by; give "
        f"{math.ceil(1000 / most) / 1000} or more, or 0 if that is meant"
    ]


def label_problems(graph: Graph, todo: Collection[str], roots: Roots) -> list[str]:
    """Numbers of labels that the selection split does not leave: else found after the training."""
    found = []
    for config in (graph[name].config for name in todo if graph[name].stage == "evaluate"):
        labels = config.finetune.labels
        # As tigan.data.train_and_selection: the last share of every city is held out.
        left = sum(n - int(n * config.selection_fraction) for n in roots.train_cities.values())
        if roots.train_cities and isinstance(labels, int) and labels > left:
            found.append(
                f"finetune.labels: {labels} asked for, but only {left} train images are left "
                "beside the selection split; lower finetune.labels or selection_fraction"
            )
    return list(dict.fromkeys(found))

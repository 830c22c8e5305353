"""Class sets as look-up tables: label id of a source -> class index, and class index -> colour.

Shards hold the source's own label ids; the class set is applied when a sample is read, so one
packed set serves every class set.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from data_prep.config import CONFIGS, ClassSet, ConfigError, load_class_set
from data_prep.listing import SourceKind

UInt8 = npt.NDArray[np.uint8]

# The class index of ignored pixels: no loss, no score.
IGNORED = 255

# Ids that the authors of each data set publish: the README of SYNTHIA-RAND-CITYSCAPES (0..22) and
# cityscapesScripts helpers/labels.py (0..33; -1, licence plate, is never drawn).
PUBLISHED_IDS: dict[SourceKind, range] = {"synthia": range(23), "cityscapes": range(34)}


def lookup_table(class_set: ClassSet, source: SourceKind) -> UInt8:
    """Label id of `source` -> class index: uint8 [256], 255 where the id belongs to no class.

    `lookup_table(...)[labels]` turns a label map of ids into one of classes.
    """
    table = np.full(256, IGNORED, np.uint8)
    for index, ids in enumerate(class_set.classes.values()):
        table[ids.get(source, [])] = index
    return table


def colour_table(class_set: ClassSet) -> UInt8:
    """Class index -> RGB: uint8 [256, 3]; black for 255 (ignored) and unused indices."""
    table = np.zeros((256, 3), np.uint8)
    for index, name in enumerate(class_set.classes):
        table[index] = class_set.colours[name]
    return table


def regular_ids(class_set: ClassSet) -> UInt8:
    """Class index -> a Cityscapes label id (the first of its ids): uint8 [C].

    The official scorer, csEvalPixelLevelSemanticLabeling, takes predictions as such ids. Raises
    `ConfigError` where a class has none.
    """
    without = [name for name, ids in class_set.classes.items() if not ids.get("cityscapes")]
    if without:
        raise ConfigError(
            f"class set {class_set.name!r}: classes without a Cityscapes id: "
            f"{', '.join(without)}; they cannot be scored by the official scorer"
        )
    return np.array([ids["cityscapes"][0] for ids in class_set.classes.values()], np.uint8)


def class_shares(
    label_pixels: Mapping[str, int], source: SourceKind, class_set: ClassSet
) -> dict[str, float]:
    """Share of all pixels, 0..1, of each class and, last, of what is 'ignored'.

    `label_pixels`: label id of `source` -> pixels, as `index.json` of a packed set has them.
    """
    table = lookup_table(class_set, source)
    counts = np.zeros(256)
    for label, pixels in label_pixels.items():
        counts[table[int(label)]] += pixels
    counts /= max(counts.sum(), 1)
    shares = {name: float(counts[index]) for index, name in enumerate(class_set.classes)}
    return {**shares, "ignored": float(counts[IGNORED])}


@lru_cache
def known_ids(source: SourceKind) -> UInt8:
    """Which label ids may stand in a label file of `source`: sorted uint8, 255 always among them.

    These are the published ids and those that any class set in configs/classes names, so that a
    user's own data in either layout needs a YAML file and no code.
    """
    ids = set(PUBLISHED_IDS[source]) | {IGNORED}
    for path in sorted((CONFIGS / "classes").glob("*.yaml")):
        for by_source in load_class_set(path.stem).classes.values():
            ids.update(by_source.get(source, []))
    return np.array(sorted(ids), np.uint8)

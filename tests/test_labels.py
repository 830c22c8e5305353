"""Class sets against the published id tables."""

from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import id2label, trainId2label

from data_prep.config import ClassSet, ConfigError, load_class_set
from data_prep.labels import IGNORED, colour_table, known_ids, lookup_table, regular_ids

# Synthia id 0..22 -> Cityscapes train id, as in ADVENT and DAFormer.
SYNTHIA_TRAIN_IDS = [255, 10, 2, 0, 1, 4, 8, 5, 13, 7, 11, 18, 17, 255, 255, 6, 9, 12, 14, 15, 16]
SYNTHIA_TRAIN_IDS += [3, 255]
DROPPED = {"cityscapes19": set(), "synthia16": {9, 14, 16}, "synthia13": {9, 14, 16, 3, 4, 5}}


def cityscapes_train_ids() -> list[int]:
    return [id2label[i].trainId if id2label[i].trainId >= 0 else 255 for i in range(34)]


@pytest.mark.parametrize("name", DROPPED)
def test_tables_are_the_published_ones(name: str) -> None:
    class_set = load_class_set(name)
    kept = [t for t in range(19) if t not in DROPPED[name]]
    new_index = {t: i for i, t in enumerate(kept)}
    assert list(class_set.classes) == [trainId2label[t].name for t in kept]
    for source, train_ids in (
        ("synthia", SYNTHIA_TRAIN_IDS),
        ("cityscapes", cityscapes_train_ids()),
    ):
        expected = [new_index.get(t, IGNORED) for t in train_ids]
        table = lookup_table(class_set, source)
        assert table.dtype == np.uint8
        assert table.tolist() == expected + [IGNORED] * (256 - len(expected))


@pytest.mark.parametrize("name", DROPPED)
def test_official_colours_and_regular_ids(name: str) -> None:
    class_set = load_class_set(name)
    colours = colour_table(class_set)
    for index, (label_id, colour) in enumerate(zip(regular_ids(class_set), colours, strict=False)):
        assert tuple(colour) == id2label[int(label_id)].color
        assert lookup_table(class_set, "cityscapes")[label_id] == index
    assert (colours[len(class_set.classes) :] == 0).all()


def test_camvid_classes_cover_the_ids_of_its_labels() -> None:
    class_set = load_class_set("camvid11")
    assert len(class_set.classes) == 11
    assert set(regular_ids(class_set)) == {23, 11, 17, 7, 8, 21, 20, 13, 26, 24, 25}
    table = lookup_table(class_set, "cityscapes")
    car, rider = (list(class_set.classes).index(name) for name in ("car", "rider"))
    assert {table[i] for i in (26, 27, 28, 31)} == {car}
    assert {table[i] for i in (25, 32, 33)} == {rider}
    # Both sources agree, class by class, on every Synthia id that has a Cityscapes train id.
    for synthia_id, train_id in enumerate(SYNTHIA_TRAIN_IDS):
        if train_id != 255:
            cityscapes_id = trainId2label[train_id].id
            assert lookup_table(class_set, "synthia")[synthia_id] == table[cityscapes_id]


@pytest.mark.parametrize(
    ("classes", "colour", "message"),
    [
        (
            {"a": {"synthia": [1]}, "b": {"synthia": [2]}},
            [1, 2, 3],
            "none has an id of 'cityscapes'",
        ),
        ({"a": {"synthia": [1], "cityscapes": [7]}, "b": {}}, [0, 0, 300], "colours.b: expected"),
        ({"a": {"synthia": [1], "cityscapes": [7]}, "b": {}}, [1, 2], "colours.b: expected"),
        ({"a": {"synthia": [1, 2], "cityscapes": [7]}, "b": {"synthia": [2]}}, [0, 0, 0], "id 2"),
    ],
)
def test_wrong_class_sets_are_refused(
    classes: dict[str, dict[str, list[int]]], colour: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ClassSet(name="x", classes=classes, colours={"a": [0, 0, 0], "b": colour})


def test_class_without_a_cityscapes_id_cannot_be_scored_officially() -> None:
    classes = {"a": {"synthia": [1], "cityscapes": [7]}, "b": {"synthia": [2]}}
    class_set = ClassSet(name="x", classes=classes, colours={"a": [0, 0, 0], "b": [1, 1, 1]})
    with pytest.raises(ConfigError, match=r"without a Cityscapes id: b"):
        regular_ids(class_set)


def test_known_ids_are_published_or_named_in_a_class_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.config.CONFIGS", tmp_path)
    monkeypatch.setattr("data_prep.labels.CONFIGS", tmp_path)
    published = known_ids.__wrapped__("synthia").tolist()  # without the cache
    assert published == [*range(23), 255]
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes" / "own.yaml").write_text(
        "name: own\nclasses: {a: {synthia: [40]}, b: {cityscapes: [50]}}\n"
        "colours: {a: [0, 0, 0], b: [1, 1, 1]}\n"
    )
    assert known_ids.__wrapped__("synthia").tolist() == [*range(23), 40, 255]
    assert known_ids.__wrapped__("cityscapes").tolist() == [*range(34), 50, 255]

"""The model card: data, scores, configuration and licences of what is finished, never a path."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_data import write_png

from data_prep import listing
from data_prep.config import load_class_set
from tigan import model_card
from tigan.pictures import resized
from tigan.report_nodes import Node, read_nodes
from tigan.report_rows import group_rows

CLASSES = load_class_set("cityscapes19")


def nodes_of(run_dir: Path) -> list[Node]:
    paths = [path.parent for path in run_dir.rglob("config.yaml")]
    return read_nodes({path.relative_to(run_dir).as_posix(): path for path in paths})


def card(run_dir: Path) -> str:
    nodes = nodes_of(run_dir)
    return model_card.text("A run", CLASSES, nodes, group_rows(nodes))


def test_card_of_a_finished_run(run_dir: Path) -> None:
    text = card(run_dir)
    assert text == card(run_dir) and str(run_dir) not in text  # same bytes, no paths
    assert text.startswith("# A run: model card\n") and text.endswith("\n")
    assert "| cityscapes val | 4 | 24 × 32 |" in text and "19 classes: road, sidewalk," in text
    scores = json.loads((run_dir / "evaluate/task_informed/scores.json").read_text())
    miou = f"{100 * scores['rows'][0]['miou']:.1f}"
    assert f"task-informed, 3 labels, α = 0.5, γ = 10 | {miou} | 1 |" in text
    done = json.loads((run_dir / "finetune" / "done.json").read_text())
    assert (
        f"`finetune/translator.pt`, xxh3-128 {done['outputs']['translator.pt']['digest']}" in text
    )
    assert "selection split, labelled images that nothing trains on (1)" in text
    assert model_card.LOAD in text and "--evaluate 'evaluate/task_informed'" in text


def test_card_holds_the_configuration_of_what_leads_to_the_generator(run_dir: Path) -> None:
    blocks = card(run_dir).partition("## Configuration")[2].split("```")
    names = [block.strip().strip("`:") for block in blocks[::2] if block.strip()]
    assert names == ["pack_synthia", "pack_cityscapes", "segmenter", "gan", "finetune"]
    for name, block in zip(names, blocks[1::2], strict=True):
        frozen = yaml.safe_load((run_dir / name / "config.yaml").read_text())
        assert yaml.safe_load(block.removeprefix("yaml")) == frozen["science"]


def test_licences_follow_the_data(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "pack_cityscapes, other data, in the layout of Cityscapes" in card(run_dir)
    assert "| real images (Cityscapes layout) val |" in card(run_dir)
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    config = yaml.safe_load((run / "pack_synthia" / "config.yaml").read_text())
    config["inputs"] = {"raw": {"dir": "render_synthia", "hash": "0"}}
    (run / "pack_synthia" / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setitem(listing.PUBLISHED_COUNTS, "cityscapes", {"train": 7, "val": 4})
    text = card(run).partition("## Licences")[2].partition("## Configuration")[0]
    assert "MiniCity: made by this project, MIT" in text
    assert "Cityscapes: under its own licence" in text
    assert "SYNTHIA" not in text and "other data" not in text
    monkeypatch.setitem(listing.PUBLISHED_COUNTS, "synthia", {"train": 10})
    assert "CC BY-NC-SA 3.0" in card(run_dir)


def test_backbone_weights_are_named_without_their_path(tmp_path: Path, run_dir: Path) -> None:
    assert "backbone weights made elsewhere" not in card(run_dir)
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    config = yaml.safe_load((run / "segmenter" / "config.yaml").read_text())
    config["science"]["segmenter"]["pretrained"] = "/home/someone/resnet101.pth"
    (run / "segmenter" / "config.yaml").write_text(yaml.safe_dump(config))
    text = card(run)
    assert "pretrained: resnet101.pth" in text and "someone" not in text
    assert "backbone weights made elsewhere" in text


@pytest.mark.parametrize(
    ("size", "noise"), [((6, 8), 20), ((12, 16), 20), ((24, 32), 0), ((24, 12), 0)]
)
def test_loading_brings_photos_to_the_size_as_packing_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], noise: int
) -> None:
    imports, _, prepared = model_card.LOAD.split("\n\n")
    monkeypatch.chdir(tmp_path)
    photo = np.repeat(np.add.outer(np.arange(12), np.arange(16))[..., None] * 9, 3, -1)
    photo += np.random.default_rng(0).integers(0, noise + 1, photo.shape)
    write_png(tmp_path / "photo.png", photo.astype(np.uint8))
    found = {"about": {"height": size[0], "width": size[1]}}
    exec(imports + "\n" + prepared.partition("with torch")[0], found)
    images = (255 * found["images"][0]).round().permute(1, 2, 0).numpy()
    # Where it enlarges, the libraries are not the same bicubic: without noise, nearly.
    expected = resized(photo.astype(np.uint8), size).astype(int)
    assert abs(images - expected).max() <= (1 if noise else 3)


def test_card_of_a_run_that_is_not_finished(tmp_path: Path, run_dir: Path) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    (run / "evaluate" / "task_informed" / "done.json").unlink()
    text = card(run)
    assert "No task-informed generator is finished" in text and "How to load" not in text
    shutil.rmtree(run / "pack_synthia")
    assert "cityscapes train" in card(run) and "synthia train" not in card(run)
    assert "No data set is packed yet" in model_card.text("A run", CLASSES, [], [])

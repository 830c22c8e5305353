"""python -m tigan.export: Cityscapes' own scorer agrees, and the programs need none of our code."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from tiny_data import PACKED, write_png

from data_prep.config import load_class_set
from data_prep.labels import colour_table, lookup_table, regular_ids
from data_prep.shards import PackedSplit
from tigan import export, model_card, predict, scores
from tigan.pictures import pixels

pytestmark = pytest.mark.usefixtures("torch_as_before")


def call(run_dir: Path, out: Path, *options: str) -> int:
    return export.main(["--run", str(run_dir), str(out), *options])


def official_scores(predictions: list[str], truths: list[str]) -> dict[str, Any]:
    args = SimpleNamespace(**vars(official.args))
    args.evalInstLevelScore, args.quiet, args.JSONOutput = False, True, False
    return official.evaluateImgLists(predictions, truths, args)


def same(ours: float | None, theirs: float) -> bool:
    """Equal to 1e-12; not defined is None here and NaN there."""
    if ours is None or math.isnan(theirs):
        return ours is None and math.isnan(theirs)
    return abs(ours - theirs) <= 1e-12


def scored(
    folder: Path, class_set: str, ids: list[int]
) -> tuple[dict[str, float | None], float, dict[str, Any]]:
    """Random label maps of `ids`, random predictions: our class IoUs and mIoU, and theirs."""
    classes, rng = load_class_set(class_set), np.random.default_rng(5)
    count = len(classes.classes)
    confusion = torch.zeros(count, count, dtype=torch.int64)
    files: dict[str, list[str]] = {"gtFine_labelIds": [], "pred": []}
    for number in range(3):
        truth = rng.choice(np.array(ids, np.uint8), (40, 60))
        # Half of the pixels right, and two classes that are never predicted.
        right = lookup_table(classes, "cityscapes")[truth]
        seen = rng.integers(0, count - 2, truth.shape)
        seen = np.where((rng.random(truth.shape) < 0.5) & (right < count - 2), right, seen)
        confusion += scores.confusion_matrix(torch.from_numpy(right), torch.from_numpy(seen), count)
        for kind, picture in (("gtFine_labelIds", truth), ("pred", regular_ids(classes)[seen])):
            path = folder / f"city_{number:06d}_000019_{kind}.png"
            write_png(path, picture)
            files[kind].append(str(path))
    ious = dict(zip(classes.classes, scores.class_iou(confusion), strict=True))
    return ious, scores.mean_iou(confusion), official_scores(*reversed(files.values()))


@pytest.mark.parametrize("ids", [list(range(34)), [7, 8, 11, 26, 33, 0]], ids=["all", "few"])
def test_random_maps_score_as_the_official_scorer(tmp_path: Path, ids: list[int]) -> None:
    ious, miou, theirs = scored(tmp_path, "cityscapes19", ids)
    assert all(same(iou, theirs["classScores"][name]) for name, iou in ious.items())
    assert same(miou, theirs["averageScoreClasses"]) and 0.0 < miou < 1.0


def test_fewer_classes_agree_where_the_others_do_not_occur(tmp_path: Path) -> None:
    others = {22: "terrain", 27: "truck", 31: "train"}  # not in synthia16
    without = [label for label in range(34) if label not in others]
    ious, miou, theirs = scored(tmp_path / "without", "synthia16", without)
    assert all(same(iou, theirs["classScores"][name]) for name, iou in ious.items())
    assert same(miou, theirs["averageScoreClasses"])
    ious, miou, theirs = scored(tmp_path / "with", "synthia16", list(range(34)))
    found = theirs["classScores"]
    assert [found[name] for name in others.values()] == [0.0] * 3
    predicted = [name for name in ious if name not in list(ious)[-2:]]
    assert all(found[name] < (ious[name] or 0.0) for name in predicted)
    total = sum(found[name] for name in ious)
    assert theirs["averageScoreClasses"] == pytest.approx(total / 19) and total / 16 < miou


@pytest.mark.parametrize(
    "node", ["task_informed", "source_only", "cyclegan_matched,finetune.alpha=0.0"]
)
def test_exported_predictions_score_as_the_row(
    tmp_path: Path,
    run_dir: Path,
    cityscapes_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    node: str,
) -> None:
    options = [] if node == "task_informed" else ["--evaluate", f"evaluate/{node}"]
    assert call(run_dir, tmp_path, *options) == 0
    monkeypatch.setenv("CITYSCAPES_RESULTS", str(tmp_path))
    monkeypatch.setattr(official.args, "predictionPath", None)
    monkeypatch.setattr(official.args, "predictionWalk", None)
    truths = sorted(map(str, (cityscapes_root / "gtFine" / "val").rglob("*_labelIds.png")))
    found = [official.getPrediction(official.args, truth) for truth in truths]
    theirs = official_scores(found, truths)
    rows = json.loads((run_dir / "evaluate" / node / "scores.json").read_text())["rows"]
    row = next(row for row in rows if row["input"] == "cityscapes_val" and row["uint8"])
    assert row["images"] == len(truths) == 4
    assert same(row["miou"], theirs["averageScoreClasses"])
    assert all(same(iou, theirs["classScores"][c]) for c, iou in row["per_class"].items())


def test_a_cut_export_goes_on_and_nothing_is_overwritten(
    tmp_path: Path, run_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(run_dir, out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    first, second = sorted(name for name in before if name.endswith(".png"))[:2]
    (out / first).unlink()
    (out / second).write_bytes(b"kept as it is")
    assert call(run_dir, out) == 0
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert after == before | {second: b"kept as it is"}
    assert "1 predictions written" in (printed := capfd.readouterr().out)
    assert "3 were there already" in printed
    assert call(run_dir, out, "--evaluate", "evaluate/source_only") == 1
    assert "evaluate was evaluate/task_informed" in capfd.readouterr().err
    assert call(run_dir, out, "--programs") == 1
    assert "made was predictions, now programs" in capfd.readouterr().err
    assert call(run_dir, tmp_path / "other", "--evaluate", "task_informed") == 1
    assert "finished: evaluate/source_only, evaluate/cyclegan," in capfd.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == after


def test_an_input_that_was_made_anew_is_refused(
    tmp_path: Path, run_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    record = json.loads((run / "segmenter" / "done.json").read_text())
    record["output_digest"] = "another"
    (run / "segmenter" / "done.json").write_text(json.dumps(record))
    assert call(run, tmp_path / "out") == 1
    assert "'segmenter' (segmenter) was made anew since" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, run_dir: Path) -> Path:
    out = tmp_path_factory.mktemp("programs")
    assert call(run_dir, out, "--programs") == 0
    return out


def test_programs_give_what_the_networks_give(
    run_dir: Path, programs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in programs.iterdir()}
    assert before.keys() == {"translator.pt2", "segmenter.pt2", "export.json"}
    record = json.loads(before["export.json"])
    assert [record["height"], record["width"]] == list(PACKED)
    assert record["class_names"] == list(load_class_set("cityscapes19").classes)
    _, generator = predict.load_generator(run_dir / "finetune")
    f = predict.load_segmenter(run_dir / "segmenter", load_class_set("cityscapes19"))
    split = PackedSplit(run_dir / "pack_cityscapes", "val")
    images = torch.cat([predict.image_tensor(split.image(index)) for index in range(3)])
    translator, segmenter = (
        torch.export.load(programs / name).module() for name in ("translator.pt2", "segmenter.pt2")
    )
    with torch.no_grad():
        translated = predict.translate(generator, images, uint8=False)
        assert (translator(images) - translated).abs().max() <= 1e-6
        assert (segmenter(images) - f.logits(images)).abs().max() <= 1e-6
        with pytest.raises(Exception, match=str(PACKED[1])):
            segmenter(images[..., 1:])
    assert b"networks.py" not in before["translator.pt2"]  # no paths of the machine that wrote it
    assert call(run_dir, programs, "--programs") == 0
    assert "nothing, all were there" in capfd.readouterr().out
    assert {path.name: path.read_bytes() for path in programs.iterdir()} == before


@pytest.mark.slow
def test_programs_need_none_of_our_code(tmp_path: Path, run_dir: Path, programs: Path) -> None:
    # The model card's own words, in a process that does not find our packages.
    shutil.copytree(programs, tmp_path / "programs")
    image = PackedSplit(run_dir / "pack_cityscapes", "val").image(0)
    write_png(tmp_path / "photo.png", image)
    check = (
        'import sys\nassert not {"tigan", "data_prep"} & {n.split(".")[0] for n in sys.modules}\n'
    )
    (tmp_path / "use.py").write_text(model_card.LOAD + check)
    subprocess.run([sys.executable, "-I", "use.py"], cwd=tmp_path, check=True, timeout=300)
    classes = load_class_set("cityscapes19")
    _, generator = predict.load_generator(run_dir / "finetune")
    f = predict.load_segmenter(run_dir / "segmenter", classes)
    with torch.no_grad():
        translated = predict.translate(generator, predict.image_tensor(image), uint8=True)
        seen = f.logits(translated).argmax(1)[0].numpy()
    found = {
        name: cv2.imread(str(tmp_path / name))[..., ::-1] for name in ("translated.png", "seen.png")
    }
    assert (found["translated.png"] == pixels(translated)).all()
    assert (found["seen.png"] == colour_table(classes)[seen]).all()

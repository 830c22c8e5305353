"""A finished run of tiny stages on the packed data of conftest.py, laid out as the driver does."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from tiny_data import PACKED
from tiny_jobs import finetune_science, gan_science, job, segmenter_science

from data_prep.config import StrictModel
from pipeline.config import StageName
from pipeline.done import DoneRecord, combined, digest_of, load_done, write_done
from pipeline.frozen import FrozenStage, InputRef, Launch, write_frozen
from tigan import evaluate, finetune, gan, segmenter
from tigan.config import EvaluateStage, StageJob, StageResult

_PACKS = {"synthetic": "pack_synthia", "real": "pack_cityscapes"}
_F, _G = {"segmenter": "segmenter"}, {"gan": "gan"}
CONTROL = "finetune/finetune.alpha=0.0"


def tiny_run(basetemp: Path, packed_synthia: Path, packed_cityscapes: Path) -> Path:
    """The run directory, made once under `basetemp`; tests only read it (3 s)."""
    run_dir = basetemp / "tiny_run"
    if run_dir.exists():
        return run_dir
    for name, packed in (("pack_synthia", packed_synthia), ("pack_cityscapes", packed_cityscapes)):
        shutil.copytree(packed, run_dir / name)
        pack = {"height": PACKED[0], "width": PACKED[1]}
        _record(run_dir, name, {"pack": pack}, {}, ["index.json"])
    # Long enough to see several classes: wrong pixels must change a prediction.
    f = segmenter_science(images=200, learning_rate=1e-2)
    _node(run_dir, "segmenter", segmenter.run, f, _PACKS)
    _node(run_dir, "gan", gan.run, gan_science(), _PACKS)
    for name, alpha in (("finetune", 0.5), (CONTROL, 0.0)):
        science = finetune_science(alpha=alpha, labels=3, draw=2)
        _node(run_dir, name, finetune.run, science, _PACKS | _F | _G)
    for point, translator in (
        ("source_only", None),
        ("cyclegan", "gan"),
        ("cyclegan_matched,finetune.alpha=0.0", CONTROL),
        ("task_informed", "finetune"),
    ):
        inputs = _PACKS | _F | ({} if translator is None else {"translator": translator})
        science = evaluate_science(point.partition(",")[0])
        _node(run_dir, f"evaluate/{point}", evaluate.run, science, inputs)
    return run_dir


def evaluate_science(method: str, classes: str = "cityscapes19") -> EvaluateStage:
    """Of the same selection split as the stages of tiny_jobs.py."""
    return EvaluateStage.model_validate(
        {"classes": classes, "method": method, "selection_fraction": 0.3}
    )


def _node(
    run_dir: Path,
    name: str,
    run: Callable[[StageJob], StageResult],
    science: StrictModel,
    inputs: Mapping[str, str],
) -> None:
    """Run a stage and record it."""
    folders = {role: run_dir / other for role, other in inputs.items()}
    training = {"checkpoint_images": 1000, "log_images": 1000, "curve_points": 0}
    result = run(job(run_dir / name, science, folders, **training))  # type: ignore[arg-type]
    _record(run_dir, name, science.model_dump(), inputs, result.outputs)


def _record(
    run_dir: Path,
    name: str,
    science: dict[str, object],
    inputs: Mapping[str, str],
    files: list[str],
) -> None:
    """config.yaml and done.json, as the driver and the stage write them."""
    stage, _, point = name.partition("/")
    kind: StageName = stage  # type: ignore[assignment]
    frozen = FrozenStage(
        stage=kind,
        point=point,
        science_hash="0" * 64,
        stage_version=1,
        science=science,
        launch=Launch(),
        inputs={role: InputRef(dir=other, hash="0" * 64) for role, other in inputs.items()},
    )
    write_frozen(run_dir / name, frozen)
    outputs = {file: digest_of(run_dir / name / file) for file in files}
    record = DoneRecord(
        stage=stage,
        point=point,
        science_hash="0" * 64,
        stage_version=1,
        inputs={role: load_done(run_dir / other).output_digest for role, other in inputs.items()},
        output_digest=combined(outputs),
        outputs=outputs,
        figures={},
        versions={"torch": "2.14.1"},
        seconds=1.0,
        world_size=1,
        threads=1,
        restarts=0,
    )
    write_done(run_dir / name, record)

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from pipeline_runs import PROFILE, plan, tiny_run
from torch import Tensor

from data_prep.config import REPO_ROOT
from pipeline import weights
from pipeline.plan import make_plan
from pipeline.sweep import Run
from tigan import backbone
from tigan.config import SegmenterConfig
from tigan.networks import Segmenter

NAMES = ("resnet101", "resnet50", "mobilenet_v3_large")
SMALL = "mobilenet_v3_large"


def meta_segmenter(name: str) -> Segmenter:
    tree = {"architecture": "deeplabv3", "backbone": name, "crop": [8, 8], "images": 8}
    with torch.device("meta"):
        return Segmenter(SegmenterConfig.model_validate(tree | {"batch_size": 2}), 5)


def classifier_state(name: str) -> dict[str, Tensor]:
    """The names and shapes of torchvision's own checkpoint, on the meta device."""
    with torch.device("meta"):
        return dict(torchvision.models.get_model(name, weights=None).state_dict())


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Tensor]:
    """A whole checkpoint of the smallest backbone; every tensor is one number, spread out."""
    return {
        key: torch.zeros((), dtype=value.dtype).expand(value.shape)
        for key, value in classifier_state(SMALL).items()
    }


def saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_torchvisions_own_checkpoints_fit_our_backbones(tmp_path: Path, name: str) -> None:
    wanted = backbone.needed(name)
    prefix = "net.net.backbone."
    ours = {
        key.removeprefix(prefix): value
        for key, value in meta_segmenter(name).state_dict().items()
        if key.startswith(prefix)
    }
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in wanted.items()}
    # Without the counters, as in files of before PyTorch 0.4.1.
    state = {k: v for k, v in classifier_state(name).items() if "num_batches" not in k}
    file = saved(tmp_path / "w.pth", {k: torch.zeros(()).expand(v.shape) for k, v in state.items()})
    assert backbone.problems(file, name) == []
    others = {other: backbone.problems(file, other) for other in NAMES if other != name}
    assert all(f"it fits {name}: set" in found[-1] for found in others.values())


def test_names_and_shapes_are_counted_and_the_first_are_shown(
    tmp_path: Path, checkpoint: dict[str, Tensor]
) -> None:
    state = dict(checkpoint)
    first = [key for key in state if key.startswith("features.0.") and "num_batches" not in key]
    for key in first:
        state[f"extra.{key}"] = state.pop(key)
    state["features.1.block.0.0.weight"] = torch.zeros(2, 3)
    missing, unknown, shape = backbone.problems(saved(tmp_path / "w.pth", state), SMALL)
    shown = [key.removeprefix("features.") for key in first]
    assert len(shown) == 5
    assert missing == f"names missing (5 of 262): {', '.join(shown[:3])} and 2 more"
    assert unknown.startswith("names not of this backbone (5): extra.features.0.0.weight, ")
    assert shape == (
        "tensors of another shape (1): 1.block.0.0.weight (found [2, 3], expected [16, 1, 3, 3])"
    )


def test_names_of_data_parallel_are_told(tmp_path: Path, checkpoint: dict[str, Tensor]) -> None:
    state = {f"module.{key}": value for key, value in checkpoint.items()}
    (only,) = backbone.problems(saved(tmp_path / "w.pth", state), SMALL)
    assert "all names begin with 'module.'" in only and "model.module.state_dict()" in only


def test_what_is_no_state_dict_is_told(tmp_path: Path, checkpoint: dict[str, Tensor]) -> None:
    def problem(value: object, **keys: bool) -> str:
        path = tmp_path / "w.pth"
        torch.save(value, path, **keys)
        (only,) = backbone.problems(path, SMALL)
        return only

    conv = "torch.nn.modules.conv.Conv2d"
    assert f"holds a whole object ({conv})" in problem(torch.nn.Conv2d(1, 1, 1))
    old = {"_use_new_zipfile_serialization": False}
    assert f"holds a whole object ({conv})" in problem(torch.nn.Conv2d(1, 1, 1), **old)
    assert "lie under the key 'state_dict'" in problem({"epoch": 3, "state_dict": checkpoint})
    assert "holds a Tensor; expected a state dict" in problem(torch.zeros(3))
    assert "holds 1 entries, but no tensors" in problem({"epoch": 3})
    only_head = {k: v for k, v in checkpoint.items() if k.startswith("classifier.")}
    assert problem(only_head).startswith("names missing (262 of 262): ")


def test_what_torch_cannot_read_is_told(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.pth", {"a": torch.zeros(500)}).read_bytes()
    contents = {"text": b"<!DOCTYPE html>", "empty": b"", "cut": whole[: len(whole) // 2]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        (problem,) = backbone.problems(tmp_path / name, SMALL)
        assert problem.startswith("cannot be read: not a file of torch.save, or cut off")
    assert backbone.problems(tmp_path / "no", SMALL) == [
        "cannot be read: No such file or directory"
    ]


def test_old_format_without_zip_fits_too(tmp_path: Path, checkpoint: dict[str, Tensor]) -> None:
    path = tmp_path / "old.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    assert backbone.problems(path, SMALL) == []


def test_command_prints_a_line_for_each_problem(
    tmp_path: Path, checkpoint: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "w.pth", checkpoint)
    assert backbone.main([str(path), SMALL]) == 0
    assert capsys.readouterr().out == f"{path}: fits {SMALL}\n"
    odd = saved(tmp_path / "odd.pth", {**checkpoint, "two\nlines": torch.zeros(1)})
    assert backbone.main([str(odd), SMALL]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"{odd}: names not of this backbone (1): two lines"
    with pytest.raises(SystemExit, match="2"):
        backbone.main([str(path), "vgg16"])


class Interpreter:
    """Stands in for the process that has torch: what it would print, and its exit code."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[list[str]] = []
        self.code, self.out, self.err, self.late = 0, "", "", False
        weights._problems.cache_clear()
        monkeypatch.setattr(subprocess, "run", self)

    def __call__(
        self, command: list[str], timeout: float, **_: object
    ) -> subprocess.CompletedProcess[str]:
        self.calls.append(command)
        if self.late:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, self.code, self.out, self.err)


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Interpreter:
    return Interpreter(monkeypatch)


def run_with(path: Path, sweep: list[dict[str, Any]] | None = None) -> Run:
    keys = {"segmenter__architecture": "deeplabv3", "segmenter__pretrained": str(path)}
    return tiny_run(sweep, segmenter__backbone=SMALL, **keys)


@pytest.mark.slow
def test_real_process_answers_and_the_driver_loads_no_torch(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", {"conv1.weight": torch.zeros(2)})
    code = (
        "import sys\nfrom pathlib import Path\nfrom pipeline import weights\n"
        f"print(*weights.problems(Path('w.pth'), '{SMALL}'), sep='\\n')\n"
        "assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(REPO_ROOT)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    missing, unknown = result.stdout.splitlines()
    assert missing.startswith(f"{path}: names missing (262 of 262): 0.0.weight, ")
    assert unknown == f"{path}: names not of this backbone (1): conv1.weight"


def test_plan_lists_misfits_once_and_asks_once(tmp_path: Path, interpreter: Interpreter) -> None:
    path = saved(tmp_path / "w.pth", {})
    interpreter.code, interpreter.out = 1, f"{path}: one\n{path}: two\n"
    run = run_with(path, [{"segmenter.seed": [0, 1, 2]}])
    expected = [f"segmenter.pretrained: {path}: {word}" for word in ("one", "two")]
    assert plan(run, tmp_path / "run").problems == expected
    assert plan(run, tmp_path / "run").problems == expected
    assert [command[1:] for command in interpreter.calls] == [
        ["-m", "tigan.backbone", str(path), SMALL]
    ]
    path.write_bytes(path.read_bytes() + b"x")
    interpreter.code, interpreter.out = 0, "fits"
    assert plan(run, tmp_path / "run").problems == []
    assert len(interpreter.calls) == 2


def test_plan_asks_only_of_files_to_be_trained_from(
    tmp_path: Path, interpreter: Interpreter
) -> None:
    run = run_with(saved(tmp_path / "w.pth", {}))
    interpreter.code, interpreter.out = 1, "wrong\n"
    assert plan(run, tmp_path / "run", stage="gan").problems == []
    silent = make_plan(run, tmp_path / "run", "all", PROFILE, compare_weights=False)
    assert silent.problems == [] and interpreter.calls == []
    assert plan(tiny_run(), tmp_path / "run").problems == [] and interpreter.calls == []


def test_file_that_is_not_torchs_is_told_without_asking(
    tmp_path: Path, interpreter: Interpreter
) -> None:
    page = tmp_path / "w.pth"
    page.write_text("<!DOCTYPE html>")
    (problem,) = plan(run_with(page), tmp_path / "run").problems
    assert problem == (
        f"segmenter.pretrained: {page}: not a file of torch.save: it begins with b'<!DO'"
    )
    assert interpreter.calls == []


def test_comparison_that_fails_is_a_warning(tmp_path: Path, interpreter: Interpreter) -> None:
    path = saved(tmp_path / "w.pth", {})
    run = run_with(path, [{"segmenter.seed": [0, 1]}])
    interpreter.code, interpreter.err = 1, "Traceback\nModuleNotFoundError: No module 'torch'\n"
    made = plan(run, tmp_path / "run")
    assert made.problems == []
    assert made.warnings == [
        f"segmenter.pretrained: {path}: not compared with {SMALL}: "
        "ModuleNotFoundError: No module 'torch'"
    ]
    assert len(interpreter.calls) == 1
    interpreter.late = True
    assert "no answer within 300 s" in plan(run, tmp_path / "run").warnings[0]


def test_missing_file_is_a_problem_and_the_plan_is_still_made(tmp_path: Path) -> None:
    run = run_with(tmp_path / "no.pth", [{"segmenter.seed": [0, 1]}])
    made = plan(run, tmp_path / "run")
    assert made.problems == [
        f"segmenter.pretrained: no file {tmp_path / 'no.pth'}; segmenter is to start from it: "
        "correct the path"
    ]
    assert {"segmenter", "segmenter/segmenter.seed=1", "report"} <= set(made.todo)
    hashes = {name: node.hash for name, node in made.graph.items()}
    assert hashes["gan"] and hashes["pack_synthia"]
    assert not any(hashes[name] for name in ("segmenter", "finetune", "report"))
    assert plan(run, tmp_path / "run", stage="gan").problems == []


def test_two_missing_files_are_two_problems(tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("a.pth", "b.pth")]
    made = plan(run_with(tmp_path / "a.pth", [{"segmenter.pretrained": files}]), tmp_path / "run")
    assert [line.split(";")[0] for line in made.problems] == [
        f"segmenter.pretrained: no file {file}" for file in files
    ]

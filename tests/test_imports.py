"""The directions of imports: data_prep <- tigan <- pipeline, and what each may know."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("data_prep", "tigan", "pipeline")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
STAGES = {
    "segmenter",
    "gan",
    "finetune",
    "finetune_segmenter",
    "adaptsegnet",
    "evaluate",
    "report",
}
SHARED_PREP = {"listing", "shards", "atomic", "labels", "config"}
HEAVY = {"torch", "torchvision", "numpy", "cv2", "h5py", "matplotlib"}
SLURM_AWARE = {"distributed.py", "preemption.py"}


def imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names of all that a module imports; `from a import b` gives a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def tops(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def of_package(package: str) -> list[Path]:
    return [path for path in MODULES if path.parent.name == package]


def words_of_code(path: Path) -> Iterator[str]:
    """Every name and string of a module; comments do not count."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_no_module_bears_a_stdlib_name(path: Path) -> None:
    # `python pipeline/run.py` puts pipeline/ first on the path: a pipeline/signal.py would be
    # what subprocess imports.
    assert path.stem == "__init__" or path.stem not in sys.stdlib_module_names


@pytest.mark.parametrize("path", of_package("data_prep"), ids=relative)
def test_data_prep_needs_nothing_of_ours(path: Path) -> None:
    assert not tops(imported(path)) & {"tigan", "pipeline", "torch", "torchvision", "submitit"}


@pytest.mark.parametrize("path", of_package("tigan"), ids=relative)
def test_tigan_knows_data_but_no_pipeline(path: Path) -> None:
    names = imported(path)
    assert not tops(names) & {"pipeline", "submitit"}
    prep = {name.split(".")[1] for name in names if name.startswith("data_prep.")}
    assert prep <= SHARED_PREP


@pytest.mark.parametrize("path", of_package("tigan"), ids=relative)
def test_tigan_is_no_command_and_knows_no_slurm(path: Path) -> None:
    if "argparse" in tops(imported(path)):
        assert '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    if path.name not in SLURM_AWARE:
        assert not [word for word in words_of_code(path) if "slurm" in word.lower()]


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_stage_files_do_not_import_each_other(stage: str) -> None:
    path = ROOT / "tigan" / f"{stage}.py"
    names = {name.split(".")[1] for name in imported(path) if name.startswith("tigan.")}
    assert not names & (STAGES - {stage})


@pytest.mark.parametrize("path", of_package("pipeline"), ids=relative)
def test_pipeline_loads_no_heavy_library(path: Path) -> None:
    assert not tops(imported(path)) & HEAVY
    at_import = imported(path, top_level_only=True)
    learning = {name for name in at_import if name.startswith("tigan.")}
    assert {name.split(".")[1] for name in learning} <= {"config"}
    prep = {name.split(".")[1] for name in at_import if name.startswith("data_prep.")}
    assert prep <= {"atomic", "config", "lock", "processes"}


@pytest.mark.parametrize("path", of_package("pipeline"), ids=relative)
def test_only_two_modules_import_submitit(path: Path) -> None:
    if path.name not in {"launch.py", "stages.py"}:
        assert "submitit" not in tops(imported(path))

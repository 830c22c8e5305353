"""pyproject.toml, constraints.txt and environment.yml name the same packages."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
# conda-forge's name for a package of PyPI
CONDA_NAMES = {"python-xxhash": "xxhash"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def ranges() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    lines = project["dependencies"] + extras
    return {canonical(r.name): r for r in map(Requirement, lines)}


def test_every_dependency_is_pinned_within_its_range() -> None:
    pins = {
        canonical(line.split("==")[0]): Version(line.split("==")[1])
        for line in (ROOT / "constraints.txt").read_text().split("\n")
        if line and not line.startswith("#")
    }
    assert pins.keys() == ranges().keys()
    assert [name for name, r in ranges().items() if pins[name] not in r.specifier] == []


def test_conda_environment_has_the_same_ranges() -> None:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    lines = [line for line in listed if isinstance(line, str) and line != "pip"]
    lines += next(line["pip"] for line in listed if isinstance(line, dict))
    conda = [Requirement(line) for line in lines]
    found = {CONDA_NAMES.get(r.name, canonical(r.name)): str(r.specifier) for r in conda}
    assert found.pop("python") == ">=3.11"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["mpi"]
    expected = {canonical(r.name): str(r.specifier) for r in map(Requirement, wanted)}
    assert found == expected


def test_make_experiments_gives_the_driver_what_it_takes(tmp_path: Path) -> None:
    shown = subprocess.run(
        ["make", "--dry-run", "--always-make", "experiments"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.replace("\\\n", " ")  # fmt: skip
    (line,) = (line for line in shown.splitlines() if "pipeline/run.py" in line)
    options = shlex.split(line)[2:]
    options[options.index("--run-dir") + 1] = str(tmp_path / "run")
    planned = subprocess.run(
        [sys.executable, "pipeline/run.py", *options, "--dry-run"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert planned.returncode == 0, planned.stderr
    assert "0 done; nothing was started" in planned.stdout

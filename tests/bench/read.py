"""Samples per second of the packed reader beside other formats, all through DataLoader workers.

    python tests/bench/read.py        (make bench-read)

The same images, windows, machine and process layout for every reader; files in the page cache; no
compression. Readers are measured in turn, so that drift of the machine hits all alike; the figures
are medians over the rounds. WebDataset reads its files from end to end, the others in random order;
the windows are the same. Before anything is measured, each reader's pixels are compared with the
decoded PNG. See read_peers.py for what each reader does.
"""

import argparse
import contextlib
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from read_peers import READERS, Case, cases

from data_prep.minicity import render_cityscapes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEERS = ("webdataset", "mds", "litdata", "lmdb")
LIMIT_S = 300  # for one answer of a reader; a build and its check take the longest
Key = tuple[str, int, str]  # case, workers, reader


def make_environment(folder: Path) -> Path:
    """The Python of a virtual environment with the peers, on top of the packages of this one."""
    python, wanted = folder / "bin" / "python", HERE / "requirements.txt"
    installed = folder / "installed.txt"
    if installed.exists() and installed.read_text() == wanted.read_text():
        return python
    print(f"installing the peers into {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    base = {"base": str(folder), "platbase": str(folder)}
    below = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    lines = [f"import site; site.addsitedir({path!r})\n" for path in sorted(below)]
    Path(sysconfig.get_path("purelib", vars=base), "below.pth").write_text("".join(lines))
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    if subprocess.run([*pip, "--requirement", wanted]).returncode == 0:
        installed.write_text(wanted.read_text())
        return python
    for line in wanted.read_text().splitlines():  # all that can be had; the rest will be 'not run'
        if line[:1] not in ("", "#") and subprocess.run([*pip, "--retries=0", line]).returncode:
            print(f"could not be installed: {line}", flush=True)
    return python


def make_data(case: Case, processes: int) -> None:
    """Render a folder of PNG, pack it, and decode it once with cv2, the reference of the checks."""
    render_cityscapes(
        case.folder / "source",
        train_images=case.images,
        val_images=1,
        seed=0,
        height=case.height,
        width=case.width,
        processes=processes,
    )
    size = ["--height", str(case.height), "--width", str(case.width)]
    places = [case.folder / "source", case.folder / "ours"]
    command = [sys.executable, "-m", "data_prep.pack", "cityscapes", *places, *size, "--subset"]
    subprocess.run(command, env=environment(), check=True, stdout=subprocess.DEVNULL)
    images, labels = [], []
    for path in sorted((case.folder / "source/leftImg8bit/train").glob("*/*.png")):
        other = str(path).replace("leftImg8bit", "gtFine").replace("gtFine.", "gtFine_labelIds.")
        images.append(cv2.imread(str(path))[..., ::-1])
        labels.append(cv2.imread(other, cv2.IMREAD_UNCHANGED))
    np.save(case.folder / "images.npy", np.stack(images))
    np.save(case.folder / "labels.npy", np.stack(labels))  # last: it marks the data as complete


def environment() -> dict[str, str]:
    """The environment of a child: our code on its path, one thread."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


class Process:
    """One reader in its process; `failed` says why it cannot go on."""

    def __init__(self, name: str, python: Path, work: Path) -> None:
        self.failed = ""
        self._log = work / f"{name}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, HERE / "read_peers.py", name, work],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(),
                start_new_session=True,  # so that its workers can be ended with it
                text=True,
            )

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and wait for the answer; {} and `failed` where there is none."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if self.failed:
            return {}
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
            ready, _, _ = select.select([self._process.stdout], [], [], LIMIT_S)
            line = self._process.stdout.readline() if ready else ""
        except BrokenPipeError:
            line, ready = "", [self._process.stdout]
        reply: dict[str, Any] = json.loads(line) if line else {"error": self._last_words(ready)}
        if "error" in reply:
            self.failed = reply["error"]
            self.end(at_once=True)
            return {}
        return reply

    def _last_words(self, ended: list[Any]) -> str:
        if not ended:
            return f"no answer after {LIMIT_S} s"
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "ended without a word"

    def end(self, at_once: bool = False) -> None:
        """End the process and its workers."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(0 if at_once else 10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def measure(
    processes: dict[str, Process], names: list[str], rounds: int, seconds: float
) -> dict[Key, list[dict[str, float]]]:
    """The answers of all rounds; a reader that fails drops out."""
    found: dict[Key, list[dict[str, float]]] = {}
    for number in range(rounds):
        for case in names:
            for workers in (1, 2):
                print(f"round {number + 1} of {rounds}: {case}, {workers} worker(s)", flush=True)
                for name, process in processes.items():
                    reply = process.ask(do="measure", case=case, workers=workers, seconds=seconds)
                    if reply:
                        found.setdefault((case, workers, name), []).append(reply)
    return found


def print_case(case: str, title: str, found: dict[Key, Any], processes: dict[str, Process]) -> None:
    """One table: a line per reader."""
    rates = {key: statistics.median(r["rate"] for r in replies) for key, replies in found.items()}
    print(f"\n{title}")
    print(f"{'':28}{'1 worker':>12}{'ours is':>10}{'2 workers':>12}{'ours is':>10}{'MiB':>8}")
    for name, process in processes.items():
        line = f"{READERS[name].title:28}"
        if process.failed:
            print(f"{line}not run: {process.failed}")
            continue
        for workers in (1, 2):
            rate = rates[case, workers, name]
            ours = rates.get((case, workers, "ours"))
            line += f"{rate:12.1f}" + (f"{ours / rate:8.2f} x" if ours else f"{'-':>10}")
        peak = max(r["memory"] for workers in (1, 2) for r in found[case, workers, name])
        print(f"{line}{peak / 2**20:8.0f}")


def print_targets(found: dict[Key, Any], names: list[str]) -> None:
    """The three targets in the four cases."""
    rates = {key: statistics.median(r["rate"] for r in replies) for key, replies in found.items()}
    columns = [(case, workers) for case in names for workers in (1, 2)]
    print(f"\n{'target':32}" + "".join(f"{f'{case}, {w}w':>16}" for case, w in columns))
    for text, others, target in (
        (">= 10 x the PNG folder", ("png",), 10.0),
        (">= 1.0 x the best peer that ran", PEERS, 1.0),
        (">= 0.8 x numpy memmap", ("memmap",), 0.8),
    ):
        line = f"{text:32}"
        for column in columns:
            against = [rates[(*column, name)] for name in others if (*column, name) in rates]
            if not against or (*column, "ours") not in rates:
                line += f"{'not run':>16}"
                continue
            ratio = rates[(*column, "ours")] / max(against)
            line += f"{f'{ratio:.2f} ' + ('met' if ratio >= target else 'MISSED'):>16}"
        print(line)


def run(work: Path, python: Path, rounds: int, seconds: float) -> None:
    """Make the data, start the readers, measure, print."""
    every = cases(work)
    for case in every.values():
        if not (case.folder / "labels.npy").exists():
            print(f"rendering and packing {case.images} images into {case.folder}", flush=True)
            make_data(case, processes=os.cpu_count() or 1)
    processes = {name: Process(name, python, work) for name in READERS}
    try:
        for name, process in processes.items():
            print(f"writing and checking: {READERS[name].title}", flush=True)
            for case in every:
                process.ask(do="build", case=case)
        found = measure(processes, list(every), rounds, seconds)
    finally:
        for process in processes.values():
            process.end()
    for name, case in every.items():
        (height, width), source = case.window, f"{case.width} x {case.height}"
        title = f"{name}: {width} x {height} out of {case.images} images of {source}, samples/s"
        print_case(name, title, found, processes)
    print(
        "\nMiB: the most anonymous and shared memory of one worker, interpreter and torch included;"
        "\nmapped pages of files in the page cache are not counted."
    )
    print_targets(found, list(every))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="keep the data here (default: temporary)")
    parser.add_argument("--environment", type=Path, default=ROOT / "build" / "bench-venv")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    options = parser.parse_args()
    python = make_environment(options.environment.resolve())
    with tempfile.TemporaryDirectory(prefix="tigan-bench-") as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        run(work, python, options.rounds, options.seconds)


if __name__ == "__main__":
    main()

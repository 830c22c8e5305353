"""A process that behaves like a stage, or misbehaves: fake_stage.py STAGE_DIR TASK (JSON)."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def note(task: dict[str, Any], word: str) -> None:
    with Path(task["events"]).open("a") as file:
        file.write(f"{word} {task['name']}\n")


def write_done(folder: Path, task: dict[str, Any]) -> None:
    inputs = {}
    for role, path in task["inputs"].items():
        record = Path(path, "done.json")
        inputs[role] = json.loads(record.read_text())["output_digest"] if record.exists() else None
    (folder / "out.bin").write_text("made")
    done = {
        "stage": task["stage"],
        "point": task["point"],
        "science_hash": task["hash"],
        "stage_version": 1,
        "inputs": inputs,
        "output_digest": f"digest of {task['name']}",
        "outputs": {"out.bin": {"digest": "x", "size": 4}},
        "figures": {},
        "versions": {},
        "seconds": 0.1,
        "world_size": 1,
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "restarts": 0,
    }
    (folder / "done.json").write_text(json.dumps(done))


def main() -> int:
    folder, task = Path(sys.argv[1]), json.loads(sys.argv[2])
    behaviour = task["behaviour"]
    note(task, "start")
    if behaviour == "fail":
        print("Traceback of the fake stage")
        print("error: the fake stage broke")
        return 3
    if behaviour == "preempted once" and not (folder / "was_here").exists():
        (folder / "was_here").touch()
        return 75
    if behaviour == "always preempted":
        return 75
    if behaviour == "no record":
        return 0
    if behaviour in ("until stopped", "stubborn"):
        handler = signal.SIG_IGN if behaviour == "stubborn" else lambda *_: sys.exit(75)
        signal.signal(signal.SIGTERM, handler)
        (folder / "ready").write_text(str(os.getpid()))
        time.sleep(60)
    write_done(folder, task)
    note(task, "end")
    return 0


if __name__ == "__main__":
    sys.exit(main())

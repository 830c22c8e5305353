"""What the driver shows while it runs: bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from pipeline.progress import duration, last_reading

_LINE_EVERY_S = 20.0


class Display:
    """Shows started, running and ended nodes on `console`."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total, self._ended = console, total, 0
        self._last = time.monotonic()
        self._tasks: dict[str, TaskID] = {}
        self._bars: Progress | None = None
        if console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[text]}"),
                console=console,
                transient=True,
            )
            self._bars.start()

    def close(self) -> None:
        """Take the bars off the terminal."""
        if self._bars is not None:
            with suppress(OSError):
                self._bars.stop()

    def line(self, text: str) -> None:
        """One plain line. Silent once the terminal is gone: the stages must still be tended."""
        with suppress(OSError):
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def started(self, name: str) -> None:
        """Note that a node has been started."""
        if self._bars is not None:
            self._tasks[name] = self._bars.add_task(name, total=None, text="at work")
        else:
            self.line(f"{_clock()} {name}: started")

    def ended(self, name: str, how: str, seconds: float) -> None:
        """Note that a node has ended, and how."""
        if how == "done":
            self._ended += 1
        if self._bars is not None and name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))
        count = f"  [{self._ended}/{self._total}]" if how == "done" else ""
        self.line(f"{_clock()} {name}: {how} after {duration(seconds)}{count}")

    def tick(self, running: Mapping[str, Path]) -> None:
        """Show how far the running nodes are; `running` maps names to stage directories."""
        now = time.monotonic()
        if now - self._last < (1.0 if self._bars is not None else _LINE_EVERY_S):
            return
        self._last = now
        texts = {name: reading_text(folder) for name, folder in running.items()}
        if self._bars is None:
            self.line(f"{_clock()} " + " | ".join(f"{n}: {text}" for n, text in texts.items()))
            return
        for name, folder in running.items():
            reading = last_reading(folder)
            if reading is not None and name in self._tasks:
                with suppress(OSError):
                    self._bars.update(
                        self._tasks[name],
                        completed=reading.images,
                        total=reading.total,
                        text=texts[name],
                    )


def reading_text(stage_dir: Path) -> str:
    """`120/400 images, 2.5/s, 1m52s to go`."""
    reading = last_reading(stage_dir)
    if reading is None:
        return "at work"
    text = f"{reading.images}/{reading.total} images, {reading.rate:.3g}/s"
    return f"{text}, {duration(reading.eta_s)} to go"


def _clock() -> str:
    return time.strftime("%H:%M:%S")

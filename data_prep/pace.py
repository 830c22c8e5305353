"""Progress as lines for a log: images done, rate of the last minute, time left."""

import time
from collections import deque
from collections.abc import Callable

from data_prep.estimate import in_minutes

_WINDOW_S = 60.0


class Pace:
    """Called with (images done, images in all); tells a line every `every_s` seconds, and the last.

    The rate is of the last minute: shards that were there already are counted in no time.
    """

    def __init__(self, tell: Callable[[str], None], every_s: float = 10.0) -> None:
        self._tell, self._every_s = tell, every_s
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._told = self._started = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Note that `done` of `total` images are done."""
        now = time.monotonic()
        self._seen.append((now, done))
        while self._seen[0][0] < now - _WINDOW_S:
            self._seen.popleft()
        if done >= total:
            self._tell(f"{done:,} images done in {in_minutes(now - self._started)}")
        elif now - self._told >= self._every_s:
            self._told = now
            first, before = self._seen[0]
            rate = (done - before) / max(1e-9, now - first)
            left = f", about {in_minutes((total - done) / rate)} left" if rate > 0 else ""
            self._tell(f"{done:,} of {total:,} images, {rate:.1f} images/s{left}")

"""Drawing tools that all things of MiniCity share: the brush, body axes, flat figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_prep.minicity_canvas import Canvas, Colour, Kind, Material, Point

Outline = Sequence[tuple[float, float]]
DARK: Colour = (28, 28, 30)


@dataclass
class Brush:
    """What every drawing function needs: where to draw, with which colours, by which chance."""

    canvas: Canvas
    palette: Mapping[str, Sequence[Colour]]
    rng: np.random.Generator
    counts: dict[Kind, int] = field(default_factory=dict)

    def pick(self, name: str, spread: float = 0.06) -> Colour:
        """A colour of the palette, its brightness varied by up to `spread`."""
        colours = self.palette[name]
        r, g, b = colours[int(self.rng.integers(len(colours)))]
        gain = self.uniform(1 - spread, 1 + spread)
        return (r * gain, g * gain, b * gain)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.rng.random())

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def number(self, kind: Kind) -> int:
        """The next object number of a kind, 0..999."""
        count = self.counts.get(kind, 0)
        self.counts[kind] = count + 1
        return min(count, 999)


def scaled(colour: Colour, gain: float) -> Colour:
    return (colour[0] * gain, colour[1] * gain, colour[2] * gain)


@dataclass(frozen=True)
class Place:
    """A body's own axes (l along it, y up, w to its right) at a spot of the street."""

    x: float
    z: float
    heading: float  # 0: away from the eye
    base: float = 0.0

    def at(self, along: float, up: float, across: float) -> Point:
        sin, cos = math.sin(self.heading), math.cos(self.heading)
        return (
            self.x + along * sin + across * cos,
            self.base + up,
            self.z + along * cos - across * sin,
        )


def inset(quad: Sequence[Point], u0: float, u1: float, v0: float, v1: float) -> list[Point]:
    """A part of a quad (corners 0-1 along u, 0-3 along v), in shares of its sides."""

    def mix(u: float, v: float) -> Point:
        a, b, c, d = ((1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v)
        p, q, r, s = quad
        return (
            a * p[0] + b * q[0] + c * r[0] + d * s[0],
            a * p[1] + b * q[1] + c * r[1] + d * s[1],
            a * p[2] + b * q[2] + c * r[2] + d * s[2],
        )

    return [mix(u0, v0), mix(u1, v0), mix(u1, v1), mix(u0, v1)]


@dataclass(frozen=True)
class Sprite:
    """A flat figure that faces the eye; `turn` narrows it as if it stood at an angle."""

    brush: Brush
    x: float
    base: float
    z: float
    turn: float = 1.0

    def points(self, outline: Outline) -> list[Point]:
        return [(self.x + u * self.turn, self.base + v, self.z) for u, v in outline]

    def part(
        self, outline: Outline, colour: Colour, what: Material, kind: Kind, number: int = 0
    ) -> None:
        self.brush.canvas.polygon(self.points(outline), colour, what, kind, number, flat=True)

    def claim(self, outline: Outline, kind: Kind, number: int) -> None:
        self.brush.canvas.claim(self.points(outline), kind, number)


def disc(u: float, v: float, radius: float, corners: int = 12) -> Outline:
    angles = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    return [(u + radius * math.cos(a), v + radius * math.sin(a)) for a in angles]


def limb(u0: float, v0: float, u1: float, v1: float, width: float) -> Outline:
    """A bar between two points."""
    length = math.hypot(u1 - u0, v1 - v0) or 1.0
    du, dv = (v1 - v0) / length * width / 2, (u0 - u1) / length * width / 2
    return [(u0 - du, v0 - dv), (u0 + du, v0 + dv), (u1 + du, v1 + dv), (u1 - du, v1 - dv)]

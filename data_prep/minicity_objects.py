"""What moves in MiniCity: cars, buses, people, bicycles, motorcycles and their riders."""

import math
from collections.abc import Sequence

import numpy as np

from data_prep.minicity_brush import DARK, Brush, Outline, Place, Sprite, disc, inset, limb, scaled
from data_prep.minicity_canvas import Colour, Kind, Material, Point


def prism(
    brush: Brush,
    place: Place,
    profile: Outline,
    half: float,
    colour: Colour,
    kind: Kind,
    number: int,
    material: Material = Material.PAINT,
) -> list[tuple[str, list[Point]]]:
    """A convex (l, y) profile drawn out to +-half; returns its visible faces by name."""
    canvas = brush.canvas
    middle_l = sum(p[0] for p in profile) / len(profile)
    middle_y = sum(p[1] for p in profile) / len(profile)
    inside = place.at(middle_l, middle_y, 0)
    seen: list[tuple[str, list[Point]]] = []
    for i, (l0, y0) in enumerate(profile):
        l1, y1 = profile[(i + 1) % len(profile)]
        quad = [place.at(*c) for c in ((l0, y0, -half), (l0, y0, half), (l1, y1, half))]
        quad.append(place.at(l1, y1, -half))
        if canvas.sees(quad, inside):
            canvas.polygon(quad, colour, material, kind, number)
            seen.append((f"edge{i}", quad))
    for name, w in (("left", -half), ("right", half)):
        face = [place.at(along, up, w) for along, up in profile]
        if canvas.sees(face, inside):
            canvas.polygon(face, colour, material, kind, number)
            seen.append((name, face))
    return seen


def wheels(
    brush: Brush, place: Place, axles: Sequence[float], half: float, radius: float, kind: Kind,
    number: int,
) -> None:  # fmt: skip
    """Wheels on the sides that the eye can see."""
    inside = place.at(0, 1, 0)
    for w in (-half, half):
        side = [place.at(-1, 0, w), place.at(1, 0, w), place.at(1, 1, w)]
        if not brush.canvas.sees(side, inside):
            continue
        for axle in axles:
            for r, colour in ((radius, DARK), (radius * 0.55, (120.0, 120.0, 124.0))):
                ring = [
                    place.at(axle + r * math.cos(a), radius + r * math.sin(a), w * 1.01)
                    for a in np.linspace(0, 2 * math.pi, 12, endpoint=False)
                ]
                brush.canvas.polygon(ring, colour, Material.METAL, kind, number)


# name -> body profile, cabin profile, half width; both profiles start at the rear, bottom
CAR_SHAPES: dict[str, tuple[Outline, Outline, float]] = {
    "sedan": (
        [(-2.2, 0.28), (-2.2, 0.92), (1.0, 0.92), (2.15, 0.78), (2.2, 0.28)],
        [(-1.75, 0.9), (-1.15, 1.43), (0.3, 1.43), (1.05, 0.9)],
        0.88,
    ),
    "hatch": (
        [(-1.9, 0.28), (-1.95, 0.95), (1.0, 0.95), (1.85, 0.8), (1.9, 0.28)],
        [(-1.9, 0.93), (-1.6, 1.5), (0.2, 1.5), (1.0, 0.93)],
        0.86,
    ),
    "suv": (
        [(-2.2, 0.35), (-2.25, 1.08), (1.1, 1.08), (2.15, 0.98), (2.2, 0.35)],
        [(-2.2, 1.06), (-1.95, 1.76), (0.35, 1.76), (1.05, 1.06)],
        0.94,
    ),
    "van": (
        [(-2.4, 0.35), (-2.4, 1.15), (1.7, 1.15), (2.35, 0.95), (2.4, 0.35)],
        [(-2.4, 1.13), (-2.35, 2.05), (0.9, 2.05), (1.7, 1.13)],
        0.97,
    ),
}


def car(brush: Brush, place: Place) -> None:
    """A passenger car or van."""
    canvas, number = brush.canvas, brush.number(Kind.CAR)
    body, cabin, half = CAR_SHAPES[
        str(brush.rng.choice(list(CAR_SHAPES), p=[0.3, 0.35, 0.2, 0.15]))
    ]
    paint, glass = brush.pick("car"), brush.pick("car_glass")
    ground = [
        place.at(u, 0, w) for u, w in ((-2.1, -half), (-2.1, half), (2.1, half), (2.1, -half))
    ]
    footprint = [(x, z) for x, _, z in ground]
    canvas.cast(footprint, 0.0, 0.3)
    canvas.cast(footprint, 0.3, 1.3)
    under = [(x, place.base + 0.25, z) for x, _, z in ground]
    canvas.polygon(under, DARK, Material.METAL, Kind.CAR, number)
    for name, face in prism(brush, place, body, half, paint, Kind.CAR, number):
        if name in ("edge0", "edge3"):
            _car_end(brush, face, name == "edge0", number)
        elif name in ("left", "right"):
            sill = [place.at(u, v, -half if name == "left" else half)
                    for u, v in ((-2.1, 0.28), (2.1, 0.28), (2.1, 0.4), (-2.1, 0.4))]  # fmt: skip
            canvas.polygon(sill, scaled(paint, 0.45), Material.PAINT, Kind.CAR, number)
    for name, face in prism(brush, place, cabin, half * 0.9, paint, Kind.CAR, number):
        if name in ("edge0", "edge2"):
            pane = inset(face, 0.07, 0.93, 0.12, 0.9)
            canvas.polygon(pane, glass, Material.GLASS, Kind.CAR, number)
        elif name != "edge1":
            for u0, u1 in ((0.1, 0.5), (0.55, 0.93)):
                pane = inset([face[0], face[3], face[2], face[1]], u0, u1, 0.15, 0.85)
                canvas.polygon(pane, glass, Material.GLASS, Kind.CAR, number)
    wheels(brush, place, (-1.3, 1.3), half, 0.33, Kind.CAR, number)


def _car_end(brush: Brush, face: list[Point], rear: bool, number: int) -> None:
    """Bumper, lamps and number plate on the rear or front face of a car."""
    low = 0.0 if rear else 1.0

    def part(u0: float, u1: float, v0: float, v1: float, colour: Colour, what: Material) -> None:
        corners = inset(face, u0, u1, abs(low - v0), abs(low - v1))
        brush.canvas.polygon(corners, colour, what, Kind.CAR, number)

    lamp: Colour = (215, 30, 28) if rear else (250, 248, 225)
    part(0.0, 1.0, 0.0, 0.3, (52, 52, 55), Material.PAINT)
    for u in (0.04, 0.76):
        part(u, u + 0.2, 0.55, 0.85, lamp, Material.LAMP)
    part(0.36, 0.64, 0.3, 0.5, (225, 225, 215), Material.PAINT)
    if not rear:
        part(0.28, 0.72, 0.55, 0.8, (40, 40, 44), Material.PAINT)


def bus(brush: Brush, place: Place) -> None:
    """A city bus with window bands, doors and a destination display."""
    canvas, number, half = brush.canvas, brush.number(Kind.BUS), 1.28
    paint, glass = brush.pick("bus"), brush.pick("car_glass")
    length = brush.uniform(4.6, 5.8)
    ground = [
        place.at(u, 0, w)
        for u, w in ((-length, -half), (-length, half), (length, half), (length, -half))
    ]
    canvas.cast([(x, z) for x, _, z in ground], 0.0, 3.0)
    profile = [(-length, 0.3), (-length, 3.1), (length, 3.1), (length, 0.3)]
    for name, face in prism(brush, place, profile, half, paint, Kind.BUS, number):
        if name in ("edge0", "edge2"):
            quad = face if name == "edge0" else [face[3], face[2], face[1], face[0]]
            lamp: Colour = (215, 30, 28) if name == "edge0" else (250, 248, 225)
            parts = [(0.06, 0.94, 0.36, 0.8, glass, Material.GLASS),
                     (0.2, 0.8, 0.83, 0.95, (240.0, 150.0, 30.0), Material.LAMP),
                     (0.0, 1.0, 0.0, 0.1, (45.0, 45.0, 48.0), Material.PAINT),
                     (0.04, 0.18, 0.14, 0.24, lamp, Material.LAMP),
                     (0.82, 0.96, 0.14, 0.24, lamp, Material.LAMP)]  # fmt: skip
            for u0, u1, v0, v1, colour, what in parts:
                canvas.polygon(inset(quad, u0, u1, v0, v1), colour, what, Kind.BUS, number)
        elif name in ("left", "right"):
            side = [face[0], face[3], face[2], face[1]]
            band = inset(side, 0.0, 1.0, 0.0, 0.12)
            canvas.polygon(band, scaled(paint, 0.5), Material.PAINT, Kind.BUS, number)
            for i in range(8):
                low = 0.05 if i in (2, 6) else 0.42
                pane = inset(side, 0.03 + i * 0.12, 0.135 + i * 0.12, low, 0.85)
                canvas.polygon(pane, glass, Material.GLASS, Kind.BUS, number)
    wheels(brush, place, (-length * 0.55, length * 0.6), half, 0.48, Kind.BUS, number)


def person(brush: Brush, x: float, base: float, z: float) -> None:
    """A pedestrian, walking or standing."""
    number, s = brush.number(Kind.PERSON), brush.uniform(0.9, 1.08)
    coat, trousers, skin = brush.pick("coat"), brush.pick("trousers"), brush.pick("skin")
    stride, swing = brush.uniform(0.03, 0.32), brush.uniform(0.05, 0.25)
    brush.canvas.cast([(x - 0.25, z), (x + 0.25, z), (x + 0.2, z + 0.2)], 0.0, 1.75)
    figure = Sprite(brush, x, base, z, 1.0 if brush.chance(0.5) else -1.0)
    parts = [
        (limb(0.05, 0.85, stride, 0.06, 0.17), trousers, Material.CLOTH),
        (limb(-0.05, 0.85, -stride, 0.06, 0.17), scaled(trousers, 0.85), Material.CLOTH),
        (limb(stride - 0.08, 0.04, stride + 0.16, 0.04, 0.09), DARK, Material.CLOTH),
        (limb(-stride - 0.08, 0.04, 0.16 - stride, 0.04, 0.09), DARK, Material.CLOTH),
        (limb(-0.2, 1.38, -0.24 - swing, 0.85, 0.13), scaled(coat, 0.85), Material.CLOTH),
        ([(-0.24, 0.78), (0.24, 0.78), (0.25, 1.35), (0.15, 1.5), (-0.15, 1.5), (-0.25, 1.35)],
         coat, Material.CLOTH),
        (limb(0.2, 1.38, 0.24 + swing, 0.88, 0.13), scaled(coat, 0.9), Material.CLOTH),
        (disc(0.0, 1.63, 0.125), skin, Material.CLOTH),
        ([(-0.13, 1.63), (0.13, 1.66), (0.1, 1.77), (-0.1, 1.77)], brush.pick("hair"),
         Material.CLOTH),
    ]  # fmt: skip
    if brush.chance(0.35):
        bag = [(0.2, 0.8), (0.45, 0.8), (0.45, 1.15), (0.2, 1.15)]
        parts.append((bag, brush.pick("coat"), Material.CLOTH))
    for outline, colour, what in parts:
        figure.part([(u * s, v * s) for u, v in outline], colour, what, Kind.PERSON, number)


def bicycle(brush: Brush, x: float, base: float, z: float, turn: float) -> None:
    """A bicycle, `turn` in 0.2 (seen along its length) .. 1 (from its side)."""
    number, frame = brush.number(Kind.BICYCLE), brush.pick("frame")
    figure = Sprite(brush, x, base, z, turn)
    hull = [(-0.85, 0.3), (-0.5, 0), (0.5, 0), (0.85, 0.3), (0.6, 0.95), (-0.3, 0.95), (-0.7, 0.6)]
    figure.claim(hull, Kind.BICYCLE, number)
    brush.canvas.cast([(x - 0.8 * abs(turn), z), (x + 0.8 * abs(turn), z), (x, z + 0.1)], 0, 0.6)
    for u in (-0.52, 0.52):
        rim = disc(u, 0.34, 0.34, 14)
        for a, b in zip(rim, [*rim[1:], rim[0]], strict=True):
            figure.part(limb(*a, *b, 0.075), DARK, Material.METAL, Kind.BICYCLE, number)
        for i in range(3):
            figure.part(limb(*rim[i * 2], *rim[i * 2 + 7], 0.02), (130, 130, 132), Material.METAL,
                        Kind.BICYCLE, number)  # fmt: skip
    bars = [(-0.52, 0.34, -0.2, 0.75), (-0.2, 0.75, 0.38, 0.78), (0.52, 0.34, 0.36, 0.95),
            (-0.02, 0.32, 0.38, 0.76), (-0.02, 0.32, -0.24, 0.92),
            (-0.52, 0.34, -0.02, 0.32)]  # fmt: skip
    for bar in bars:
        figure.part(limb(*bar, 0.075), frame, Material.PAINT, Kind.BICYCLE, number)
    figure.part(limb(-0.38, 0.95, -0.1, 0.95, 0.1), DARK, Material.CLOTH, Kind.BICYCLE, number)
    figure.part(limb(0.26, 0.98, 0.44, 1.02, 0.07), DARK, Material.METAL, Kind.BICYCLE, number)


def motorcycle(brush: Brush, x: float, base: float, z: float, turn: float) -> None:
    """A motorcycle or scooter."""
    number, paint = brush.number(Kind.MOTORCYCLE), brush.pick("frame")
    figure = Sprite(brush, x, base, z, turn)
    side = 0.9 * abs(turn)
    brush.canvas.cast([(x - side, z), (x + side, z), (x, z + 0.3)], 0.0, 0.8)
    metal, kind = (96.0, 96.0, 100.0), Kind.MOTORCYCLE
    thick = 1.0 if abs(turn) > 0.5 else 1.3
    for u in (-0.68, 0.68):
        figure.part(disc(u * thick, 0.32, 0.33), DARK, Material.METAL, kind, number)
        figure.part(disc(u * thick, 0.32, 0.15), metal, Material.METAL, kind, number)
    figure.part([(-0.4, 0.2), (0.35, 0.2), (0.4, 0.55), (-0.45, 0.6)], metal, Material.METAL,
                kind, number)  # fmt: skip
    figure.part([(-1.0, 0.62), (-0.2, 0.5), (0.35, 0.55), (0.5, 0.92), (0.05, 0.98), (-0.3, 0.78),
                 (-0.95, 0.85)], paint, Material.PAINT, kind, number)  # fmt: skip
    figure.part(limb(-0.75, 0.85, -0.05, 0.85, 0.14), DARK, Material.CLOTH, kind, number)
    figure.part(limb(0.68, 0.32, 0.4, 1.08, 0.09), metal, Material.METAL, kind, number)
    figure.part(limb(0.2, 1.1, 0.5, 1.12, 0.08), DARK, Material.METAL, kind, number)
    figure.part(disc(0.55, 0.9, 0.11), (240, 238, 215), Material.LAMP, kind, number)
    figure.part([(-1.0, 0.7), (-0.9, 0.7), (-0.9, 0.8), (-1.0, 0.8)], (210, 30, 30),
                Material.LAMP, kind, number)  # fmt: skip


def rider(brush: Brush, x: float, base: float, z: float, turn: float, motor: bool) -> None:
    """A rider on a bicycle or a motorcycle."""
    (motorcycle if motor else bicycle)(brush, x, base, z, turn)
    number, kind = brush.number(Kind.RIDER), Kind.RIDER
    coat, trousers = brush.pick("coat"), brush.pick("trousers")
    figure = Sprite(brush, x, base, z - 0.02, math.copysign(max(abs(turn), 0.55), turn))
    brush.canvas.cast([(x - 0.3, z), (x + 0.3, z), (x, z + 0.3)], 0.6, 1.7)
    head = brush.pick("helmet") if motor or brush.chance(0.5) else brush.pick("hair")
    lean = 0.12 if motor else 0.22
    for outline, colour in [
        (limb(-0.2, 0.92, 0.1, 0.62, 0.2), trousers),
        (limb(0.1, 0.65, 0.0, 0.2, 0.15), trousers),
        ([(-0.42, 0.85), (0.0, 0.85), (lean + 0.2, 1.38), (lean, 1.5), (lean - 0.3, 1.4)], coat),
        (limb(lean, 1.38, 0.38, 1.02, 0.13), scaled(coat, 0.88)),
        (disc(lean + 0.03, 1.6, 0.13), brush.pick("skin")),
        ([(lean - 0.12, 1.6), (lean + 0.16, 1.64), (lean + 0.1, 1.76), (lean - 0.06, 1.76)], head),
    ]:
        figure.part(outline, colour, Material.CLOTH, kind, number)

"""What stands along the streets of MiniCity: trees, lamps, lights, signs, fences, walls."""

import math

import numpy as np

from data_prep.minicity_brush import Brush, Outline, Sprite, disc, limb, scaled
from data_prep.minicity_canvas import Colour, Kind, Material

LIGHTS: tuple[Colour, Colour, Colour] = ((235, 40, 30), (245, 180, 30), (40, 215, 90))


_CIRCLE = np.exp(2j * np.pi * np.arange(22) / 22)


def _blob(brush: Brush, u: float, v: float, radius: float) -> Outline:
    """A ragged round outline, such as a tuft of leaves."""
    edge = _CIRCLE * (radius * brush.rng.uniform(0.7, 1.18, len(_CIRCLE)))
    return list(zip((u + edge.real).tolist(), (v + 0.85 * edge.imag).tolist(), strict=True))


def tree(brush: Brush, x: float, base: float, z: float, size: float = 1.0) -> None:
    """A deciduous tree, a poplar or a bush-like young one; trunk and crown are vegetation."""
    height, radius = brush.uniform(5.5, 9.5) * size, brush.uniform(1.8, 3.1) * size
    slim = brush.chance(0.2)
    if slim:
        radius *= 0.5
    stem = height - radius * (1.1 if not slim else 3.0)
    stem = max(stem, 1.6 * size)
    leaf, bark = brush.pick("leaf", 0.15), brush.pick("bark")
    figure, kind = Sprite(brush, x, base, z), Kind.VEGETATION
    width = 0.16 + 0.03 * height
    trunk = [(-width / 2, 0), (width / 2, 0), (width / 3, stem + 0.5), (-width / 3, stem + 0.5)]
    brush.canvas.cast([(x - width / 2, z), (x + width / 2, z), (x, z + width)], 0.0, stem)
    hull = [(x + radius * math.cos(a), z + radius * math.sin(a)) for a in np.arange(0, 6.2, 0.7)]
    brush.canvas.cast(hull, stem, height)
    figure.part(trunk, bark, Material.BARK, kind)
    for side in (-0.5, 0.5):
        branch = limb(0, stem * 0.8, side * radius, stem + radius * 0.6, width * 0.4)
        figure.part(branch, bark, Material.BARK, kind)
    sunny = 1.0 if brush.canvas.sun[0] > 0 else -1.0
    tufts = 11 if z < 60 else 6
    for i in range(tufts):
        share = i / (tufts - 1)
        angle = brush.uniform(0, 2 * math.pi)
        reach = radius * brush.uniform(0.1, 0.62)
        u = reach * math.cos(angle) + sunny * 0.18 * radius * (share - 0.5)
        rise = 3.0 if slim else 1.0
        v = stem + radius * 0.7 * rise + reach * 0.75 * rise * math.sin(angle)
        v += radius * 0.3 * (share - 0.5)
        tuft = _blob(brush, u, v, radius * brush.uniform(0.42, 0.62))
        figure.part(tuft, scaled(leaf, 0.68 + 0.5 * share), Material.FOLIAGE, kind)


def hedge(brush: Brush, x: float, z0: float, z1: float, height: float, base: float) -> None:
    """A clipped hedge along the street at `x`."""
    colour, away = brush.pick("leaf", 0.15), math.copysign(0.8, x)
    faces = [
        [(x, base, z0), (x, base, z1), (x, base + height, z1), (x, base + height, z0)],
        [(x, base + height, z0), (x, base + height, z1), (x + away, base + height, z1),
         (x + away, base + height, z0)],
        [(x, base, z0), (x + away, base, z0), (x + away, base + height, z0),
         (x, base + height, z0)],
    ]  # fmt: skip
    for face, gain in zip(faces, (0.85, 1.1, 0.9), strict=True):
        brush.canvas.polygon(face, scaled(colour, gain), Material.FOLIAGE, Kind.VEGETATION)
    brush.canvas.cast([(x, z0), (x, z1), (x + away, z1), (x + away, z0)], 0, height)


def _mast(brush: Brush, x: float, base: float, z: float, height: float, width: float) -> Sprite:
    figure = Sprite(brush, x, base, z)
    metal = brush.pick("pole")
    bar = [(-width / 2, 0), (width / 2, 0), (width / 2.5, height), (-width / 2.5, height)]
    figure.part(bar, metal, Material.METAL, Kind.POLE)
    dark = [(0.1 * width, 0), (width / 2, 0), (width / 2.5, height), (0.1 * width, height)]
    figure.part(dark, scaled(metal, 0.75), Material.METAL, Kind.POLE)
    brush.canvas.cast([(x - width, z), (x + width, z), (x, z + width)], 0.0, height)
    return figure


def lamp_post(brush: Brush, x: float, base: float, z: float) -> None:
    """A street lamp whose arm reaches over the road."""
    height, reach = brush.uniform(5.5, 7.5), -math.copysign(brush.uniform(1.0, 2.0), x)
    figure = _mast(brush, x, base, z, height, 0.24)
    colour = brush.pick("pole")
    figure.part(limb(0, height, reach, height + 0.25, 0.13), colour, Material.METAL, Kind.POLE)
    head = limb(reach * 0.75, height + 0.2, reach * 1.3, height + 0.22, 0.24)
    figure.part(head, scaled(colour, 1.15), Material.METAL, Kind.POLE)


def traffic_light(brush: Brush, x: float, base: float, z: float, lit: int) -> None:
    """A signal on a mast; `lit` 0 red, 1 amber, 2 green. Half of them hang over the road too."""
    over = brush.chance(0.35)
    height = 5.4 if over else 3.4
    figure = _mast(brush, x, base, z, height, 0.2)
    spots = [(0.0, 2.4)]
    if over:
        reach = -math.copysign(brush.uniform(2.2, 3.6), x)
        figure.part(limb(0, 5.2, reach, 5.3, 0.15), brush.pick("pole"), Material.METAL, Kind.POLE)
        spots.append((reach, 4.5))
    for u, v in spots:
        box = [(u - 0.26, v), (u + 0.26, v), (u + 0.26, v + 1.3), (u - 0.26, v + 1.3)]
        figure.part(box, brush.pick("signal_box"), Material.METAL, Kind.TRAFFIC_LIGHT)
        for i, colour in enumerate(LIGHTS):
            shown = colour if i == lit else scaled(colour, 0.22)
            what = Material.LAMP if i == lit else Material.METAL
            figure.part(disc(u, v + 1.07 - 0.42 * i, 0.16), shown, what, Kind.TRAFFIC_LIGHT)


def sign(brush: Brush, x: float, base: float, z: float) -> None:
    """A traffic sign on a post: warning, prohibition, mandatory, stop, priority, direction."""
    top = brush.uniform(2.1, 2.8)
    figure, kind = _mast(brush, x, base, z, top + 0.3, 0.13), Kind.TRAFFIC_SIGN
    red, white, blue = brush.palette["sign"][:3]
    yellow = brush.palette["sign"][3]
    choice, size = int(brush.rng.integers(7)), brush.uniform(0.42, 0.58)
    square = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    board = [(-2, -1.1), (2, -1.1), (2, 1.1), (-2, 1.1)]
    triangle = [(-1.1, -0.8), (1.1, -0.8), (0, 1.1)]
    diamond = [(0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)]
    upper, lower = limb(-1.4, 0.4, 1.4, 0.4, 0.25), limb(-1.4, -0.4, 0.8, -0.4, 0.25)
    designs: list[list[tuple[Outline, Colour, float]]] = [
        [(triangle, red, 1.0), (triangle, white, 0.62)],
        [(disc(0, 0, 1), red, 1.0), (disc(0, 0, 1), white, 0.68)],
        [(disc(0, 0, 1), blue, 1.0), (limb(-0.5, 0, 0.5, 0, 0.4), white, 1.0)],
        [(disc(0, 0, 1.05, 8), red, 1.0), (limb(-0.6, 0, 0.6, 0, 0.4), white, 1.0)],
        [(diamond, white, 1.0), (diamond, yellow, 0.72)],
        [(square, blue, 1.0), (limb(-0.2, -0.6, -0.2, 0.6, 0.3), white, 1.0)],
        [(board, blue, 1.0), (upper, white, 1.0), (lower, white, 1.0)],
    ]
    for outline, colour, share in designs[choice]:
        grown = [(u * size * share, top + v * size * share) for u, v in outline]
        figure.part(grown, colour, Material.SIGN, kind)


def bollard(brush: Brush, x: float, base: float, z: float) -> None:
    """A short post at the kerb."""
    _mast(brush, x, base, z, 0.95, 0.16)


def bin_box(brush: Brush, x: float, base: float, z: float) -> None:
    """A litter bin or a cabinet: in no class, so ignored in training and scoring."""
    height, half = brush.uniform(0.8, 1.5), brush.uniform(0.25, 0.45)
    outline = [(-half, 0), (half, 0), (half, height), (-half, height)]
    Sprite(brush, x, base, z).part(outline, brush.pick("pole"), Material.METAL, Kind.VOID)


def fence(brush: Brush, x: float, z0: float, z1: float, base: float) -> None:
    """A fence along the street: planks, or bars that one can see through."""
    height, colour = brush.uniform(1.2, 2.0), brush.pick("fence")
    panel = [(x, base, z0), (x, base, z1), (x, base + height, z1), (x, base + height, z0)]
    brush.canvas.cast([(x, z0), (x, z1), (x + 0.05, z1)], 0.0, height)
    if brush.chance(0.45):
        brush.canvas.polygon(panel, colour, Material.WOOD, Kind.FENCE, params=(0.18,))
        return
    brush.canvas.claim(panel, Kind.FENCE)
    step, bar = 0.22, 0.075
    for z in np.arange(max(z0, 0.4), min(z1, 45.0), step).tolist():
        quad = [
            (x, base, z),
            (x, base, z + bar),
            (x, base + height, z + bar),
            (x, base + height, z),
        ]
        brush.canvas.polygon(quad, colour, Material.METAL, None)
    for low in (0.12, height - 0.14):
        rail = [(x, base + low, z0), (x, base + low, z1), (x, base + low + 0.1, z1),
                (x, base + low + 0.1, z0)]  # fmt: skip
        brush.canvas.polygon(rail, colour, Material.METAL, None)
    for z in np.arange(z0, z1, 2.5).tolist():
        post = [
            (x, base, z),
            (x, base, z + 0.14),
            (x, base + height, z + 0.14),
            (x, base + height, z),
        ]
        brush.canvas.polygon(post, colour, Material.METAL, None)


def wall(brush: Brush, x: float, z0: float, z1: float, base: float) -> None:
    """A brick or concrete wall along the street with a coping."""
    height, colour, away = brush.uniform(1.4, 2.8), brush.pick("wall"), math.copysign(0.35, x)
    top = base + height
    end = [(x, base, z0), (x + away, base, z0), (x + away, top, z0), (x, top, z0)]
    face = [(x, base, z0), (x, base, z1), (x, top, z1), (x, top, z0)]
    coping = [(x, top - 0.15, z0), (x, top - 0.15, z1), (x, top, z1), (x, top, z0)]
    cap = [(x, top, z0), (x, top, z1), (x + away, top, z1), (x + away, top, z0)]
    for quad in (cap, end, face):
        brush.canvas.polygon(quad, colour, Material.MASONRY, Kind.WALL, params=(1.0,))
    brush.canvas.polygon(coping, scaled(colour, 1.15), Material.MASONRY, Kind.WALL)
    brush.canvas.cast([(x, z0), (x, z1), (x + away, z1), (x + away, z0)], 0.0, height)

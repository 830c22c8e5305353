"""The layout of one MiniCity street scene: blocks, crossing, traffic; where everything stands.

Both styles draw their scenes from the same distributions, so that the gap between the two data
sets is one of camera and looks, which an image translation can learn to close.
"""

import numpy as np

from data_prep import minicity_street as street
from data_prep.minicity_brush import Brush, scaled
from data_prep.minicity_canvas import Colour, Kind, Material
from data_prep.minicity_traffic import KERB, Plan, furniture, people, traffic

STREET_END = 150.0
BEHIND = -3.0  # the ground starts here, a little behind the eye


def paint_scene(brush: Brush, plan: Plan) -> None:
    """Paint everything, far to near."""
    _ground(brush, plan)
    _markings(brush, plan)
    _horizon(brush)
    for side in (-1, 1):
        _cross_row(brush, plan, side)
        for z0, z1 in reversed(_lots(brush, plan)):
            _lot(brush, plan.front(side), side, z0, z1)
    things = furniture(brush, plan) + traffic(brush, plan) + people(brush, plan)
    for _, paint in sorted(things, key=lambda thing: -thing[0]):
        paint()


def _strip(
    brush: Brush, x0: float, x1: float, z0: float, z1: float, y: float, colour: Colour,
    what: Material, kind: Kind, params: tuple[float, ...] = (),
) -> None:  # fmt: skip
    """A level rectangle."""
    corners = [(x0, y, z0), (x1, y, z0), (x1, y, z1), (x0, y, z1)]
    brush.canvas.polygon(corners, colour, what, kind, params=params)


def _ground(brush: Brush, plan: Plan) -> None:
    """Carriageways, kerbs and sidewalks."""
    paving, asphalt = brush.pick("paving"), brush.pick("asphalt")
    lane = (plan.lane,)
    tile = (brush.uniform(0.5, 1.1),)
    ground = (-400.0, 400.0, BEHIND, 500.0, 0.0)
    _strip(brush, *ground, paving, Material.PAVING, Kind.SIDEWALK, tile)
    left, right = plan.kerb(-1), plan.kerb(1)
    _strip(brush, left, right, BEHIND, 500, 0, asphalt, Material.ASPHALT, Kind.ROAD, lane)
    if plan.crossing is not None:
        half = plan.cross_width / 2
        z0, z1 = plan.crossing - half, plan.crossing + half
        _strip(brush, -200, 200, z0, z1, 0, asphalt, Material.ASPHALT, Kind.ROAD)
    near, far = plan.gap()
    kerb_colour = scaled(paving, 0.88)
    for z0, z1 in ((far - 2.5, STREET_END * 2), (BEHIND, near + 2.5)):
        if z1 <= BEHIND:
            continue
        for side in (-1, 1):
            x, out = plan.kerb(side), plan.kerb(side) + side * 200
            start = max(z0, BEHIND)
            _strip(brush, x, out, start, z1, KERB, paving, Material.PAVING, Kind.SIDEWALK, tile)
            edge = x + side * 0.28
            _strip(brush, x, edge, start, z1, KERB, kerb_colour, Material.MASONRY, Kind.SIDEWALK)
            faces = [
                [(x, 0, start), (x, 0, z1), (x, KERB, z1), (x, KERB, start)],
                [(x, 0, start), (out, 0, start), (out, KERB, start), (x, KERB, start)],
            ]
            for face in faces:
                colour = scaled(kerb_colour, 0.8)
                brush.canvas.polygon(face, colour, Material.MASONRY, Kind.SIDEWALK)


def _markings(brush: Brush, plan: Plan) -> None:
    """Centre line, lane and edge lines, zebra crossing and stop line."""
    white = brush.pick("marking")
    near, far = plan.gap()
    solid, dash = brush.chance(0.25), brush.uniform(2.0, 4.0)
    edge = brush.chance(0.5)

    def line(x: float, z0: float, z1: float, width: float) -> None:
        _strip(brush, x - width / 2, x + width / 2, z0, z1, 0.004, white, Material.MARKING,
               Kind.MARKING)  # fmt: skip

    for z0, z1 in ((far + 1, 110.0), (BEHIND, near - 2)):
        if z1 <= BEHIND:
            continue
        lines = [side * plan.lane * i for side in (-1, 1) for i in range(1, plan.lanes)]
        z = max(z0, BEHIND)
        while z < z1:
            for x in lines if solid else [0.0, *lines]:
                line(x, z, min(z + dash, z1), 0.14)
            z += 2.2 * dash
        if solid:
            line(0.0, max(z0, BEHIND), z1, 0.16)
        for side in (-1, 1):
            if plan.parking[(side + 1) // 2] or edge:
                line(side * (plan.lane * plan.lanes - 0.1), max(z0, BEHIND), z1, 0.12)
    if plan.zebra is not None:
        for x in np.arange(plan.kerb(-1) + 0.5, plan.kerb(1) - 0.4, 1.05).tolist():
            line(x + 0.25, plan.zebra, plan.zebra + 3.0, 0.52)
        _strip(brush, 0.1, plan.lane * plan.lanes, plan.zebra - 1.6, plan.zebra - 1.2, 0.004,
               white, Material.MARKING, Kind.MARKING)  # fmt: skip


def _horizon(brush: Brush) -> None:
    """Houses and trees across the end of the street."""
    x = -160.0
    while x < 160:
        width = brush.uniform(10, 26)
        height = brush.uniform(4, 17) if abs(x) < 60 else brush.uniform(8, 24)
        _facade(brush, [(x, STREET_END), (x + width, STREET_END)], height)
        x += width * brush.uniform(0.8, 1.1)
    for _ in range(int(brush.rng.integers(4, 14))):
        street.tree(brush, brush.uniform(-40, 40), 0, STREET_END - 4, 1.4)


def _facade(
    brush: Brush,
    ends: list[tuple[float, float]],
    height: float,
    *,
    colour: Colour | None = None,
    params: tuple[float, ...] | None = None,
) -> None:
    """An upright wall with windows between two (x, z) points of the ground."""
    (x0, z0), (x1, z1) = ends
    quad = [(x0, 0, z0), (x1, 0, z1), (x1, height, z1), (x0, height, z0)]
    params = params or _windows(brush, height)
    tint = colour or brush.pick("facade", 0.1)
    brush.canvas.polygon(quad, tint, Material.FACADE, Kind.BUILDING, params=params)


def _windows(brush: Brush, height: float) -> tuple[float, ...]:
    """Bay, storey, window width and height (shares), shop height, top, seed, glass."""
    shop = brush.uniform(3.0, 3.8) if brush.chance(0.45) else 0.0
    return (
        brush.uniform(1.8, 3.4),
        brush.uniform(2.7, 3.5),
        brush.uniform(0.4, 0.75),
        brush.uniform(0.45, 0.68),
        shop,
        height,
        brush.uniform(0, 100),
        brush.uniform(0, 1),
    )


def _building(brush: Brush, x: float, side: int, z0: float, z1: float, height: float) -> None:
    """A house: street front, end wall towards the eye, roof, shop sign and awning."""
    colour, params = brush.pick("facade", 0.1), _windows(brush, height)
    out = x + side * 16
    brush.canvas.cast([(x, z0), (x, z1), (out, z1), (out, z0)], 0.0, height)
    if brush.chance(0.5):
        roof, rise = brush.pick("roof"), brush.uniform(1.5, 3.5)
        ridge = x + side * rise * 1.2
        slope = [
            (x, height, z0),
            (x, height, z1),
            (ridge, height + rise, z1),
            (ridge, height + rise, z0),
        ]
        gable = [
            (x, height, z0),
            (ridge, height + rise, z0),
            (out, height + rise, z0),
            (out, height, z0),
        ]
        brush.canvas.polygon(gable, scaled(colour, 0.9), Material.MASONRY, Kind.BUILDING)
        brush.canvas.polygon(slope, roof, Material.ROOF, Kind.BUILDING)
    _facade(brush, [(x, z0), (out, z0)], height, colour=scaled(colour, 0.92), params=params)
    _facade(brush, [(x, z0), (x, z1)], height, colour=colour, params=params)
    if params[4] <= 0:
        return
    low, high, tint = params[4] - 0.75, params[4] - 0.1, brush.pick("shop")
    board = [(x, low, z0 + 0.3), (x, low, z1 - 0.3), (x, high, z1 - 0.3), (x, high, z0 + 0.3)]
    brush.canvas.polygon(board, tint, Material.PAINT, Kind.BUILDING)
    if brush.chance(0.4):
        eave = x - side * brush.uniform(0.8, 1.3)
        awning = [(x, low, z0 + 0.5), (x, low, z1 - 0.5), (eave, low - 0.6, z1 - 0.5),
                  (eave, low - 0.6, z0 + 0.5)]  # fmt: skip
        brush.canvas.polygon(awning, brush.pick("shop"), Material.CLOTH, Kind.BUILDING)


def _lots(brush: Brush, plan: Plan) -> list[tuple[float, float]]:
    """z ranges of the plots of one side, near to far, none in the crossing street."""
    near, far = plan.gap()
    lots, z = [], -8.0
    while z < STREET_END - 15:
        end = z + brush.uniform(8, 20)
        if z < near and end > near - 5:
            end = near
        if near <= z < far:
            z = far
            continue
        lots.append((z, end))
        z = end
    return lots


def _lot(brush: Brush, x: float, side: int, z0: float, z1: float) -> None:
    """One plot: a house at the street, or a garden behind a fence, wall or hedge."""
    choice = brush.rng.random()
    if choice < 0.42:
        _building(brush, x, side, z0, z1, brush.uniform(6, 19))
        return
    back = x + side * brush.uniform(8, 16)
    if brush.chance(0.7):
        _building(brush, back, side, z0 + 1, z1 - 1, brush.uniform(5, 13))
    lawn = [
        (x, KERB + 0.02, z0),
        (x, KERB + 0.02, z1),
        (back, KERB + 0.02, z1),
        (back, KERB + 0.02, z0),
    ]
    brush.canvas.polygon(lawn, brush.pick("leaf", 0.1), Material.FOLIAGE, Kind.VEGETATION)
    for z in sorted((brush.uniform(z0 + 1, z1 - 1) for _ in range(3)), reverse=True):
        street.tree(brush, x + side * brush.uniform(2, 6), KERB, z, brush.uniform(0.6, 1.0))
    if choice < 0.66:
        street.fence(brush, x, z0, z1, KERB)
    elif choice < 0.86:
        street.wall(brush, x, z0, z1, KERB)
    else:
        street.hedge(brush, x, z0, z1, brush.uniform(0.8, 1.8), KERB)


def _cross_row(brush: Brush, plan: Plan, side: int) -> None:
    """Houses along the far side of the crossing street."""
    if plan.crossing is None:
        return
    z = plan.gap()[1] + 0.5
    x = plan.front(side) + side * 16
    while abs(x) < 90:
        width = brush.uniform(9, 18)
        if brush.chance(0.25):
            for _ in range(3):
                street.tree(brush, x + side * brush.uniform(0, width), KERB, z + 1, 0.9)
        _facade(brush, [(x, z), (x + side * width, z)], brush.uniform(6, 16))
        x += side * width

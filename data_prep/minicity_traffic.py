"""The plan of a street of MiniCity, and everything that stands or moves on it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from data_prep import minicity_objects as objects
from data_prep import minicity_street as street
from data_prep.minicity_brush import Brush, Place

KERB = 0.13  # metres
PARKING_WIDTH = 2.3


@dataclass(frozen=True)
class Plan:
    """Measures of one street, metres; x = 0 is the line between the two directions."""

    lane: float
    lanes: int
    parking: tuple[bool, bool]  # left, right
    sidewalk: tuple[float, float]
    crossing: float | None  # z of the middle of the crossing street
    cross_width: float
    zebra: float | None  # z of the near edge of a zebra crossing

    def kerb(self, side: int) -> float:
        """x of the kerb on side -1 or +1 (signed)."""
        width = self.lane * self.lanes + PARKING_WIDTH * self.parking[(side + 1) // 2]
        return side * width

    def front(self, side: int) -> float:
        """x of the line of house fronts on side -1 or +1 (signed)."""
        return self.kerb(side) + side * self.sidewalk[(side + 1) // 2]

    def gap(self) -> tuple[float, float]:
        """z range of the opening between the blocks at the crossing."""
        middle = -100.0 if self.crossing is None else self.crossing
        half = self.cross_width / 2 + 2.5
        return middle - half, middle + half


def draw_plan(rng: np.random.Generator) -> Plan:
    """Choose a street."""
    crossing = float(rng.uniform(16, 48)) if rng.random() < 0.6 else None
    cross_width = float(rng.uniform(6.5, 10))
    zebra = None
    if crossing is not None and rng.random() < 0.7:
        zebra = crossing - cross_width / 2 - 4.6
    elif rng.random() < 0.25:
        zebra = float(rng.uniform(8, 25))
    return Plan(
        lane=float(rng.uniform(2.9, 3.5)),
        lanes=2 if rng.random() < 0.15 else 1,
        parking=(bool(rng.random() < 0.5), bool(rng.random() < 0.5)),
        sidewalk=(float(rng.uniform(2.6, 6.0)), float(rng.uniform(2.6, 6.0))),
        crossing=crossing,
        cross_width=cross_width,
        zebra=zebra,
    )


Thing = tuple[float, Callable[[], None]]  # z, painter


def furniture(brush: Brush, plan: Plan) -> list[Thing]:
    """Trees, lamps, signs, signals, railings and bins on the sidewalks."""
    things: list[Thing] = []
    near, far = plan.gap()

    def put(z: float, paint: Callable[[], None]) -> None:
        if not near - 0.5 < z < far + 0.5:
            things.append((z, paint))

    for side in (-1, 1):
        kerb = plan.kerb(side) + side * 0.6
        planted, step = brush.chance(0.5), brush.uniform(7, 13)
        z = brush.uniform(5, 12)
        while z < 90:
            if planted and brush.chance(0.85):
                size = brush.uniform(0.65, 1.0)
                put(z, partial(street.tree, brush, kerb, KERB, z, size))
            elif brush.chance(0.4):
                put(z, partial(street.lamp_post, brush, kerb, KERB, z))
            z += step
        for _ in range(int(brush.rng.integers(1, 4))):
            z, x = brush.uniform(6, 36), kerb + side * brush.uniform(-0.1, 0.5)
            put(z, partial(street.sign, brush, x, KERB, z))
        if brush.chance(0.3):
            z = brush.uniform(5, 25)
            put(z, partial(street.bin_box, brush, kerb, KERB, z))
        if brush.chance(0.25):
            for z in np.arange(brush.uniform(4, 10), 24, 2.0).tolist():
                put(z, partial(street.bollard, brush, kerb, KERB, z))
        elif brush.chance(0.25):
            z0 = brush.uniform(5, 16)
            z1 = min(z0 + brush.uniform(4, 9), near - 1.0) if near > 0 else z0 + 7
            if z1 > z0 + 2:
                put(z1, partial(street.fence, brush, kerb - side * 0.3, z0, z1, KERB))
    things += _signals(brush, plan)
    return things


def _signals(brush: Brush, plan: Plan) -> list[Thing]:
    """Traffic lights at the crossing or at the zebra crossing."""
    spots = []
    if plan.crossing is not None and brush.chance(0.75):
        spots = [plan.gap()[0] - 0.8, plan.gap()[1] + 0.8]
    elif plan.zebra is not None and brush.chance(0.6):
        spots = [plan.zebra - 0.6]
    lit = int(brush.rng.choice(3, p=[0.45, 0.1, 0.45]))
    things: list[Thing] = []
    for z in spots:
        for side in (-1, 1):
            x = plan.kerb(side) + side * 0.7
            things.append((z, partial(street.traffic_light, brush, x, KERB, z, lit)))
    return things


def traffic(brush: Brush, plan: Plan) -> list[Thing]:
    """Moving and parked cars, buses, and parked two-wheelers."""
    things: list[Thing] = []
    near, far = plan.gap()
    for side in (-1, 1):
        heading = 0.0 if side > 0 else math.pi
        for lane in range(plan.lanes):
            x = side * plan.lane * (lane + 0.5)
            z = brush.uniform(5, 26) if side < 0 or lane else brush.uniform(8, 34)
            while z < 80:
                turn = heading + brush.uniform(-0.04, 0.04)
                middle = x + brush.uniform(-0.3, 0.3)
                large = brush.chance(0.12)
                paint = objects.bus if large else objects.car
                place = Place(middle, z + 4.0 if large else z, turn)
                things.append((z, partial(paint, brush, place)))
                z += brush.uniform(9, 40) + (6 if large else 0)
        if not plan.parking[(side + 1) // 2]:
            continue
        x = plan.kerb(side) - side * PARKING_WIDTH * 0.47
        z, share = brush.uniform(1.5, 8), brush.uniform(0.3, 0.9)
        while z < 75:
            if brush.chance(share) and not near - 6 < z < far + 4:
                place = Place(x, z, heading + (math.pi if brush.chance(0.1) else 0.0))
                things.append((z, partial(objects.car, brush, place)))
            elif z > 4 and brush.chance(0.3) and not near - 4 < z < far + 2:
                turn = brush.uniform(0.4, 1.0)
                things.append((z, partial(objects.motorcycle, brush, x, 0, z, turn)))
            z += brush.uniform(5.4, 6.6)
    if plan.crossing is not None and brush.chance(0.45):
        way = 1 if brush.chance(0.5) else -1
        z = plan.crossing - way * plan.cross_width / 4
        place = Place(brush.uniform(-9, 9), z, way * math.pi / 2)
        things.append((z, partial(objects.car, brush, place)))
    return things


def people(brush: Brush, plan: Plan) -> list[Thing]:
    """Pedestrians, riders and parked two-wheelers."""
    things: list[Thing] = []
    near, far = plan.gap()
    for side in (-1, 1):
        kerb, front = plan.kerb(side), plan.front(side)
        for _ in range(int(brush.rng.integers(2, 8))):
            x, z = brush.uniform(kerb + side * 0.7, front - side * 0.4), brush.uniform(4.5, 32)
            base = KERB if not near < z < far else 0.0
            things.append((z, partial(objects.person, brush, x, base, z)))
        if brush.chance(0.5):
            z, x = brush.uniform(5, 22), front - side * brush.uniform(0.5, 1.0)
            for _ in range(int(brush.rng.integers(1, 5))):
                if not near < z < far:
                    motor = brush.chance(0.22)
                    paint = objects.motorcycle if motor else objects.bicycle
                    turn = brush.uniform(0.45, 1.0) * (1 if brush.chance(0.5) else -1)
                    things.append((z, partial(paint, brush, x, KERB, z, turn)))
                z += brush.uniform(0.7, 1.6)
        for _ in range(int(brush.rng.integers(0, 3))):
            lane_edge = side * (plan.lane * plan.lanes - brush.uniform(0.3, 1.0))
            z, turn = brush.uniform(5, 28), brush.uniform(0.3, 1.0)
            motor = brush.chance(0.4)
            turn *= 1 if brush.chance(0.5) else -1
            things.append((z, partial(objects.rider, brush, lane_edge, 0.0, z, turn, motor)))
    if plan.zebra is not None:
        for _ in range(int(brush.rng.integers(0, 4))):
            x, z = brush.uniform(plan.kerb(-1), plan.kerb(1)), plan.zebra + brush.uniform(0.4, 2.5)
            things.append((z, partial(objects.person, brush, x, 0.0, z)))
    return things

"""The drawing surface of MiniCity: a perspective painter that fills an index image.

Polygons are painted far to near. A pixel holds only the number of the surface that it shows and
the object that it belongs to; colour, light and texture are worked out afterwards, once per
pixel, from the table of surfaces (`minicity_style.develop`). World axes: x right, y up,
z forward, in metres; the street runs along z and the eye stands at z = 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import cv2
import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float, float]
Colour = tuple[float, float, float]
FloatArray = NDArray[np.float32]

SUPERSAMPLING = 2  # pictures are painted at twice their size and averaged: smooth edges
NEAR = 0.35  # metres; nothing nearer than this is drawn
FAR = 600.0
_SUBPIXEL_BITS = 3


class Kind(IntEnum):
    """What a pixel belongs to; `minicity.LABEL_IDS` gives the ids of either layout."""

    VOID = 0
    ROAD = 1
    SIDEWALK = 2
    BUILDING = 3
    WALL = 4
    FENCE = 5
    POLE = 6
    TRAFFIC_LIGHT = 7
    TRAFFIC_SIGN = 8
    VEGETATION = 9
    SKY = 10
    PERSON = 11
    RIDER = 12
    CAR = 13
    BUS = 14
    MOTORCYCLE = 15
    BICYCLE = 16
    MARKING = 17


class Material(IntEnum):
    """How a surface is textured."""

    SKY = 0
    ASPHALT = 1
    MARKING = 2
    PAVING = 3
    FACADE = 4
    ROOF = 5
    FOLIAGE = 6
    BARK = 7
    PAINT = 8
    GLASS = 9
    METAL = 10
    CLOTH = 11
    MASONRY = 12
    WOOD = 13
    SIGN = 14
    LAMP = 15


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; angles in radians, `focal` as a share of the picture's width."""

    x: float
    height: float
    pitch: float
    yaw: float
    focal: float

    def axes(self) -> NDArray[np.float64]:
        """[3, 3]: columns are the camera's right, down and forward axes in world axes."""
        cos_p, sin_p = math.cos(self.pitch), math.sin(self.pitch)
        cos_y, sin_y = math.cos(self.yaw), math.sin(self.yaw)
        right = (cos_y, 0.0, -sin_y)
        forward = (sin_y * cos_p, -sin_p, cos_y * cos_p)
        down = (-sin_y * sin_p, -cos_p, -cos_y * sin_p)
        return np.array([right, down, forward]).T


@dataclass(frozen=True)
class Surfaces:
    """The finished picture before shading: index images and the table they point into."""

    index: NDArray[np.int32]  # [H, W] row of the table
    owner: NDArray[np.int32]  # [H, W] kind * 1000 + object number
    shadow: NDArray[np.uint8]  # [H, W] 255 where the ground lies in shadow
    colour: FloatArray  # [N, 3] 0..255
    material: NDArray[np.int64]  # [N]
    normal: FloatArray  # [N, 3] unit, towards the eye
    offset: FloatArray  # [N] normal . (point - eye), metres
    flat: NDArray[np.bool_]  # [N] a sprite: lit the same from all sides
    params: FloatArray  # [N, 8] numbers of the texture
    rays: FloatArray  # [H, W, 3] world direction of each pixel, of depth 1
    eye: FloatArray  # [3]


class Canvas:
    """Paints polygons of the world into index images of `SUPERSAMPLING` times the size."""

    def __init__(self, camera: Camera, sun: Point, height: int, width: int) -> None:
        rows, columns = height * SUPERSAMPLING, width * SUPERSAMPLING
        self.sun = sun  # unit vector towards the sun
        self.eye = (camera.x, camera.height, 0.0)
        self._axes = camera.axes()
        self._rows: list[list[float]] = self._axes.tolist()
        self._focal = camera.focal * columns
        self._size = (columns, rows)
        self.index = np.zeros((rows, columns), np.int32)
        self.owner = np.full((rows, columns), Kind.SKY * 1000, np.int32)
        self.shadow = np.zeros((rows, columns), np.uint8)
        self._table: list[tuple[float, ...]] = []
        self._add((0, 0, 0), Material.SKY, (0.0, 0.0, -1.0), -FAR, False, ())

    def _add(
        self,
        colour: Colour,
        material: Material,
        normal: Point,
        offset: float,
        flat: bool,
        params: Sequence[float],
    ) -> int:
        padded = (*params, *([0.0] * (8 - len(params))))
        self._table.append((*colour, material, *normal, offset, flat, *padded))
        return len(self._table) - 1

    def _outline(self, points: Sequence[Point]) -> NDArray[np.int32] | None:
        """The polygon in fixed-point pixels; None where nothing of it is in the picture."""
        # Plain numbers: NumPy's overhead on four corners costs more than all the rest.
        (rx, dx, fx), (ry, dy, fy), (rz, dz, fz) = self._rows
        eye_x, eye_y, eye_z = self.eye
        seen = []
        for px, py, pz in points:
            x, y, z = px - eye_x, py - eye_y, pz - eye_z
            seen.append(
                (rx * x + ry * y + rz * z, dx * x + dy * y + dz * z, fx * x + fy * y + fz * z)
            )
        if min(corner[2] for corner in seen) < NEAR:
            seen = _clip_near(seen)
            if len(seen) < 3:
                return None
        unit = 1 << _SUBPIXEL_BITS
        focal, (columns, rows) = self._focal * unit, self._size
        middle_x, middle_y = (columns - 1) / 2 * unit, (rows - 1) / 2 * unit
        across = [round(x / z * focal + middle_x) for x, _, z in seen]
        down = [round(y / z * focal + middle_y) for _, y, z in seen]
        if max(across) < 0 or min(across) > columns * unit:
            return None
        if max(down) < 0 or min(down) > rows * unit:
            return None
        return np.array((across, down), np.int32).T.copy()

    def polygon(
        self,
        points: Sequence[Point],
        colour: Colour,
        material: Material,
        kind: Kind | None,
        number: int = 0,
        *,
        flat: bool = False,
        params: Sequence[float] = (),
    ) -> None:
        """Fill a plane polygon; `kind` None repaints the look of what is there, not its label."""
        outline = self._outline(points)
        if outline is None:
            return
        normal, offset = self._plane(points)
        surface = self._add(colour, material, normal, offset, flat, params)
        cv2.fillPoly(self.index, [outline], surface, shift=_SUBPIXEL_BITS)
        if kind is not None:
            owner = kind * 1000 + number
            cv2.fillPoly(self.owner, [outline], owner, shift=_SUBPIXEL_BITS)

    def claim(self, points: Sequence[Point], kind: Kind, number: int = 0) -> None:
        """Label a polygon and leave its look: the gaps of a fence, the spokes of a wheel."""
        outline = self._outline(points)
        if outline is not None:
            owner = kind * 1000 + number
            cv2.fillPoly(self.owner, [outline], owner, shift=_SUBPIXEL_BITS)

    def cast(self, footprint: Sequence[tuple[float, float]], low: float, high: float) -> None:
        """Shadow on the ground of an upright body over `footprint` (x, z), low..high metres."""
        slope_x, slope_z = self.sun[0] / self.sun[1], self.sun[2] / self.sun[1]
        corners = [(x - slope_x * h, z - slope_z * h) for x, z in footprint for h in (low, high)]
        hull = cv2.convexHull(np.array(corners, np.float32))[:, 0]
        outline = self._outline([(float(x), 0.05, float(z)) for x, z in hull])
        if outline is not None:
            cv2.fillPoly(self.shadow, [outline], 255, shift=_SUBPIXEL_BITS)

    def _plane(self, points: Sequence[Point]) -> tuple[Point, float]:
        """Unit normal towards the eye and its offset; three first points must not be in line."""
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = points[0], points[1], points[2]
        ux, uy, uz, vx, vy, vz = bx - ax, by - ay, bz - az, cx - ax, cy - ay, cz - az
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        length = math.sqrt(nx * nx + ny * ny + nz * nz) or 1.0
        ex, ey, ez = self.eye
        offset = (nx * (ax - ex) + ny * (ay - ey) + nz * (az - ez)) / length
        sign = -1.0 if offset > 0 else 1.0
        scale = sign / length
        return (nx * scale, ny * scale, nz * scale), offset * sign

    def sees(self, points: Sequence[Point], inside: Point) -> bool:
        """Whether a face of a convex body around `inside` is turned towards the eye."""
        (nx, ny, nz), offset = self._plane(points)
        px, py, pz = points[0]
        # The normal points to the eye, so the body must lie on the other side of the face.
        depth = nx * (inside[0] - px) + ny * (inside[1] - py) + nz * (inside[2] - pz)
        return depth < 0 and offset < 0

    def finish(self) -> Surfaces:
        """The index images and the table of surfaces as arrays."""
        table = np.array(self._table, np.float32)
        columns, rows = self._size
        x = (np.arange(columns, dtype=np.float32) + 0.5 - columns / 2) / self._focal
        y = (np.arange(rows, dtype=np.float32) + 0.5 - rows / 2) / self._focal
        right, down, forward = self._axes.T.astype(np.float32)
        rays = (x[None, :, None] * right + y[:, None, None] * down + forward).astype(np.float32)
        return Surfaces(
            index=self.index,
            owner=self.owner,
            shadow=self.shadow,
            colour=table[:, 0:3],
            material=table[:, 3].astype(np.int64),
            normal=table[:, 4:7],
            offset=table[:, 7],
            flat=table[:, 8] > 0,
            params=table[:, 9:17],
            rays=rays,
            eye=np.array(self.eye, np.float32),
        )


def _clip_near(seen: list[Point]) -> list[Point]:
    """Cut a polygon in camera axes at the near plane (Sutherland and Hodgman 1974)."""
    kept: list[Point] = []
    for a, b in zip(seen, [*seen[1:], seen[0]], strict=True):
        if a[2] >= NEAR:
            kept.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            t = (NEAR - a[2]) / (b[2] - a[2])
            kept.append((a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, NEAR))
    return kept

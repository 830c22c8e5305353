"""The two looks of MiniCity: palettes, light, textures, air and camera.

`synthetic` is a clean game engine: saturated colours, a blue sky, crisp shadows, hardly any
texture. `real` is a photograph: muted colours, grainy surfaces, warm or dull light, haze, and
the traces of lens, sensor and JPEG. The changes keep the classes apart, so that an image
translation between the looks is well posed.
"""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.minicity_canvas import (
    FAR,
    SUPERSAMPLING,
    Camera,
    Colour,
    FloatArray,
    Material,
    Point,
    Surfaces,
)
from data_prep.minicity_palette import GRAIN, PALETTES, Style

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Look:
    """Light, air and camera of one picture."""

    real: bool
    sun: Point  # unit vector towards the sun
    sunlight: Colour  # gain of light from the sun
    ambient: Colour  # gain of light from the sky
    shade: float  # share of the sunlight that a shadow takes away
    soft: float  # blur of shadows, share of the picture's height
    haze: float  # metres after which 63 % of the light is haze
    zenith: Colour
    horizon: Colour
    clouds: float
    exposure: float
    saturation: float
    tint: Colour
    vignette: float
    blur: float  # sigma, pixels of a 192 x 256 picture
    noise: float  # sigma at mid grey, 0..255
    jpeg: int  # quality; 0: none


def draw_camera(style: Style, lane: float, rng: np.random.Generator) -> Camera:
    """A camera in the right-hand lane; the two data sets have other rigs."""
    game = style == "synthetic"
    return Camera(
        x=lane / 2 + float(rng.uniform(-0.4, 0.4)),
        height=float(rng.uniform(1.45, 2.0) if game else rng.uniform(1.3, 1.6)),
        pitch=float(rng.uniform(0.0, 0.05) if game else rng.uniform(0.01, 0.05)),
        yaw=float(rng.normal(0, 0.05 if game else 0.035)),
        focal=float(rng.uniform(0.78, 0.92) if game else rng.uniform(0.9, 1.04)),
    )


def draw_look(style: Style, rng: np.random.Generator) -> Look:
    """Weather, time of day and camera settings of one picture."""
    palette = PALETTES[style]
    azimuth, real = float(rng.uniform(0, 2 * np.pi)), style == "real"
    elevation = float(rng.uniform(0.45, 0.9) if real else rng.uniform(0.7, 1.1))
    flat = np.cos(elevation)
    sun = (float(flat * np.sin(azimuth)), float(np.sin(elevation)), float(flat * np.cos(azimuth)))
    sky, horizon = palette["sky"], palette["horizon"]
    zenith_at, horizon_at = int(rng.integers(len(sky))), int(rng.integers(len(horizon)))
    zenith, low = sky[zenith_at], horizon[horizon_at]
    if not real:
        return Look(
            real=False, sun=sun, sunlight=(0.62, 0.6, 0.56), ambient=(0.6, 0.63, 0.68),
            shade=0.8, soft=0.0, haze=900.0, zenith=zenith, horizon=low,
            clouds=float(rng.uniform(0.0, 0.5)), exposure=float(rng.uniform(0.95, 1.08)),
            saturation=1.05, tint=(1.0, 1.0, 1.0), vignette=0.0, blur=0.0, noise=0.0, jpeg=0,
        )  # fmt: skip
    dull = float(rng.random() ** 2)  # 0: clear and sunny, 1: overcast
    direct, warm = 0.95 * (1 - dull) + 0.1, float(rng.uniform(0.0, 1.0))
    return Look(
        real=True, sun=sun,
        sunlight=(direct * (1.04 + 0.1 * warm), direct, direct * (0.92 - 0.18 * warm)),
        ambient=(0.4 + 0.42 * dull, 0.42 + 0.42 * dull, 0.45 + 0.42 * dull),
        shade=0.95, soft=0.004 + 0.02 * dull, haze=float(rng.uniform(300, 1000)),
        zenith=zenith, horizon=low, clouds=float(rng.uniform(0.05, 0.35)),
        exposure=float(rng.uniform(1.0, 1.3)), saturation=float(rng.uniform(1.0, 1.4)),
        tint=(float(rng.uniform(0.99, 1.025)), 1.0, float(rng.uniform(0.94, 1.0))),
        vignette=float(rng.uniform(0.06, 0.18)), blur=float(rng.uniform(0.36, 0.6)),
        noise=float(rng.uniform(0.9, 2.4)), jpeg=int(rng.integers(62, 88)),
    )  # fmt: skip


@cache
def _noise_tile(coarse: bool) -> FloatArray:
    """[256, 256] wrap-around noise, mean 0, within about -1..1; the same in every process."""
    rng = np.random.default_rng(20220817 + coarse)
    total = np.zeros((256, 256), np.float32)
    for octave in (4, 8, 16, 32) if coarse else (64, 128, 256):
        cells = rng.standard_normal((octave, octave)).astype(np.float32)
        padded = np.pad(cells, 2, mode="wrap")
        scale = 256 // octave
        grown = cv2.resize(padded, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        part = grown[2 * scale : 2 * scale + 256, 2 * scale : 2 * scale + 256]
        total += part * (1.0 if coarse else 0.8) * (4 / octave if coarse else 1.0) ** 0.5
    return np.clip(total / (2.2 * total.std()), -1, 1)


def _sample(tile: FloatArray, a: FloatArray, b: FloatArray, scale: float) -> FloatArray:
    """The tile's value at surface coordinates (a, b) in metres, `scale` cells to the metre."""
    row = np.floor(a * scale).astype(np.int32) & 255
    column = np.floor(b * scale).astype(np.int32) & 255
    return tile[row, column]


def _smooth(tile: FloatArray, a: FloatArray, b: FloatArray) -> FloatArray:
    """The tile between its cells, linearly."""
    row, column = np.floor(a).astype(np.int32), np.floor(b).astype(np.int32)
    da, db = a - row, b - column
    upper = tile[row & 255, column & 255] * (1 - db) + tile[row & 255, (column + 1) & 255] * db
    row += 1
    lower = tile[row & 255, column & 255] * (1 - db) + tile[row & 255, (column + 1) & 255] * db
    return upper * (1 - da) + lower * da


def develop(surfaces: Surfaces, look: Look, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Light, texture and photograph the surfaces: [H, W, 3] RGB at the final size."""
    index, eye = surfaces.index, surfaces.eye
    normal = surfaces.normal[index]
    facing = np.einsum("hwc,hwc->hw", normal, surfaces.rays)
    depth = np.clip(surfaces.offset[index] / np.minimum(facing, -1e-4), 0.3, FAR)
    x, y, z = (surfaces.rays[..., i] * depth + eye[i] for i in range(3))
    table = np.abs(surfaces.normal)
    level, side = (table[:, 1] > 0.7)[index], (table[:, 0] > 0.6)[index]
    along, up = np.where(side, z, x), np.where(level, z, y)
    material = surfaces.material.astype(np.uint8)[index]
    colour = surfaces.colour[index]
    wall = np.flatnonzero(material == Material.FACADE)
    params = surfaces.params[index.ravel()[wall]]
    flat = [field.ravel()[wall] for field in (along, up, depth)]
    rows = colour.reshape(-1, 3)
    rows[wall] = _facades(rows[wall], flat[0], flat[1], flat[2], params, look)
    gain = _grain(material, along, up, depth, look, rng)
    _joints(gain, material, along, up, depth, surfaces.params[:, 0][index], look)
    light = _light(surfaces, look, normal, index, level & (y < 0.3))
    light[material == Material.LAMP] = 1
    colour *= light * np.clip(gain, 0.15, 2)[..., None]
    air = np.array(look.horizon, np.float32)
    colour = air + (colour - air) * np.exp(-depth / np.float32(look.haze))[..., None]
    sky = index == 0
    colour[sky] = _sky(surfaces.rays[sky], look, rng)
    return _photograph(colour, look, rng)


def _light(
    surfaces: Surfaces, look: Look, normal: FloatArray, index: NDArray[np.int32], ground: Mask
) -> FloatArray:
    """[H, W, 3] light that falls on each pixel."""
    sun = np.array(look.sun, np.float32)
    lambert = np.clip(normal @ sun, 0, None)
    lambert = np.where(surfaces.flat[index], 0.55, lambert)
    shadow = surfaces.shadow.astype(np.float32)
    if look.soft > 0:
        shadow = cv2.GaussianBlur(shadow, (0, 0), look.soft * len(shadow)).astype(np.float32)
    lambert = lambert * np.where(ground, 1 - shadow * np.float32(look.shade / 255), 1)
    from_sky = 0.82 + 0.18 * normal[..., 1]
    ambient = from_sky[..., None] * np.array(look.ambient, np.float32)
    return ambient + lambert[..., None] * np.array(look.sunlight, np.float32)


def _grain(
    material: NDArray[np.uint8], along: FloatArray, up: FloatArray, depth: FloatArray,
    look: Look, rng: np.random.Generator,
) -> FloatArray:  # fmt: skip
    """[H, W] gain of brightness by grain and stains; the grain fades with the distance."""
    table = np.zeros((len(Material), 2), np.float32)
    for name, strength in GRAIN["real" if look.real else "synthetic"].items():
        table[name] = strength
    fine, coarse = table[:, 0][material], table[:, 1][material]
    shift_a, shift_b = rng.uniform(0, 100, 2).astype(np.float32)
    a, b = along + shift_a, up + shift_b
    near = 1 / (1 + depth / 25)
    # Far away one pixel spans many grains, so leaves keep more of their contrast than asphalt.
    reach = np.where(material == Material.FOLIAGE, np.sqrt(near), near)
    gain = 1 + coarse * _sample(_noise_tile(True), a, b, 16.0)
    gain += fine * reach * _sample(_noise_tile(False), a, b, 24.0)
    return gain


def _joints(
    gain: FloatArray, material: NDArray[np.uint8], along: FloatArray, up: FloatArray,
    depth: FloatArray, param: FloatArray, look: Look,
) -> None:  # fmt: skip
    """Joints of paving and brick, gaps of planks, wheel tracks: multiplied into `gain`."""
    depths = 0.22 if look.real else 0.12

    def where(name: Material) -> tuple[Mask, FloatArray, FloatArray, FloatArray, FloatArray]:
        mask = (material == name) & (param > 0)
        a, b, size = along[mask], up[mask], param[mask]
        return mask, a, b, size, depths / (1 + depth[mask] / 25)

    mask, a, b, size, deep = where(Material.PAVING)
    gain[mask] -= deep * (((a / size) % 1 < 0.09) | ((b / size) % 1 < 0.09))
    mask, a, b, size, deep = where(Material.WOOD)
    gain[mask] -= 2 * deep * ((a / size) % 1 < 0.2)
    mask, a, b, size, deep = where(Material.MASONRY)
    course = b / 0.24
    shifted = a / 0.5 + 0.5 * (np.floor(course) % 2)
    gain[mask] -= deep * ((course % 1 < 0.2) | (shifted % 1 < 0.1))
    if look.real:
        # Tyres polish two bands of each lane.
        mask, a, b, size, deep = where(Material.ASPHALT)
        across = np.abs((a / size) % 1 - 0.5) - 0.25
        gain[mask] += 0.09 * np.exp(-((across / 0.1) ** 2))


def _facades(
    base: FloatArray, along: FloatArray, v: FloatArray, depth: FloatArray,
    params: FloatArray, look: Look,
) -> FloatArray:  # fmt: skip
    """[N, 3] `base` with windows, shop fronts, doors, sills and bricks at (along, v), metres."""
    bay, storey, width, height, shop, top, seed, glass = params.T
    u = along / bay + seed
    floor = (v - np.maximum(shop, 0.5)) / storey
    column, level, fu, fv = np.floor(u), np.floor(floor), u % 1, floor % 1
    inside = (v > np.maximum(shop, 0.5)) & (v < top - 0.5)
    across, high = np.abs(fu - 0.5), np.abs(fv - 0.5)
    pane = inside & (across < width / 2) & (high < height / 2)
    frame = inside & (across < width / 2 + 0.06) & (high < height / 2 + 0.06) & ~pane
    ground = (shop > 0) & (v < shop - 0.8)
    front = ground & (v > 0.45) & (np.abs(fu - 0.5) < 0.44)
    door = (column % 4 == 1) & (across < 0.24) & (v < 2.4)
    # One number per window; the tile serves as a hash.
    chance = 0.5 + 0.5 * _sample(_noise_tile(False), column * 37 + seed * 11, level * 91, 1.0)
    panes = np.array([(70, 104, 150), (120, 166, 206)] if not look.real
                     else [(62, 66, 68), (104, 110, 112)], np.float32)  # fmt: skip
    lit = (0.25 * glass + 0.75 * chance)[:, None]
    pane_colour = panes[0] * (1 - lit) + panes[1] * lit
    if look.real:
        curtain = (chance > 0.72)[:, None]
        pane_colour = np.where(curtain, pane_colour * 0.4 + 110, pane_colour)
        joints = ((v / 0.3) % 1 < 0.2) & (np.floor(seed) % 2 == 0)
        base = base * (1 - 0.25 * (joints / (1 + depth / 12)))[:, None]
    ledge = (fv < 0.05) & inside
    base = np.where((frame | ledge)[:, None], np.minimum(base * 1.22, 245), base)
    base = np.where((v > top - 0.35)[:, None], np.minimum(base * 1.15, 240), base)
    base = np.where((ground & ~front)[:, None], base * 0.8, base)
    base = np.where((pane | front)[:, None], pane_colour, base)
    return np.where(door[:, None], base * 0.3 + 24, base).astype(np.float32)


def _sky(rays: FloatArray, look: Look, rng: np.random.Generator) -> FloatArray:
    """[N, 3] sky with clouds in the given directions."""
    height = np.clip(rays[:, 1] / np.linalg.norm(rays, axis=1), 0, 1)
    blend = np.clip(height * 2.2, 0, 1)[:, None] ** 0.7
    base = np.array(look.horizon) * (1 - blend) + np.array(look.zenith) * blend
    # Clouds lie on a level ceiling: seen as (x, z) over the height of the ray.
    reach = 1 / (height + 0.15)
    a, b = rays[:, 0] * reach + rng.uniform(0, 100), reach + rng.uniform(0, 100)
    puff = _smooth(_noise_tile(True), 14 * a.astype(np.float32), 14 * b.astype(np.float32))
    cover = np.clip((puff - 0.5 + look.clouds) * (1.0 if look.real else 2.5), 0, 1)
    cover = cover[:, None] * np.clip(height * 6, 0, 1)[:, None]
    white = np.array((238, 238, 236) if look.real else (250, 251, 255))
    shaded: NDArray[np.float64] = base * (1 - cover) + white * cover
    return shaded.astype(np.float32)


def _photograph(colour: FloatArray, look: Look, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Exposure, colour cast, lens, sensor and file format; shrinks to the final size."""
    rows, columns = colour.shape[0] // SUPERSAMPLING, colour.shape[1] // SUPERSAMPLING
    small = cv2.resize(np.clip(colour, 0, 400), (columns, rows), interpolation=cv2.INTER_AREA)
    picture = small.astype(np.float32)
    picture *= look.exposure * np.array(look.tint, np.float32)
    grey = picture.mean(2, keepdims=True)
    picture = grey + (picture - grey) * look.saturation
    if not look.real:
        return np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    # A film-like curve: rolled-off highlights, deep shadows, slightly lifted blacks.
    share = 1 - np.exp(-np.clip(picture, 0, None) / 175)
    share = 0.4 * share + 0.6 * share * share * (3 - 2 * share)
    picture = 8 + 240 * share
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j].astype(np.float32)
    picture *= (1 - look.vignette * (x * x + y * y) / 2)[..., None]
    sigma = look.blur * rows / 192
    picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    grain = rng.standard_normal(picture.shape, np.float32)
    picture += grain * look.noise * np.sqrt(np.clip(picture, 4, None) / 128)
    shot = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    ok, encoded = cv2.imencode(".jpg", shot[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, look.jpeg])
    assert ok
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.ascontiguousarray(decoded[..., ::-1]).astype(np.uint8)

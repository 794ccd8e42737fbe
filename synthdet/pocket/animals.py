"""The things on the rendered sea: animals, boats and drift, each drawn from polygons.

A thing is drawn in *body coordinates*: ``u`` runs forward along the body (tail -0.5, head +0.5),
``v`` to the animal's left, both in body lengths. A :class:`Pen` bends, turns and scales them onto a
small canvas of its own at four times the resolution, and :meth:`Pen.finish` makes the
:class:`Sprite` that ``sea.py`` blends into the water. Colours are RGB, 0..255, as seen in air; what
the water takes away is computed when the sprite is placed, from the depth that each part carries.

Depth has no unit of length: 0 is at the surface, and at 1 a palette's water leaves
``exp(-absorption)`` of each colour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Points = NDArray[np.float64]
Rgb = tuple[int, int, int]
MarkKind = Literal["foam", "mist", "shadow", "slick"]

HUMPBACK: Final = "humpback whale"

_SUPERSAMPLING: Final = 4
_SUBPIXEL_BITS: Final = 4
_DEPTH_SCALE: Final = 100.0  # the canvas keeps depth as a byte, in hundredths
_MAX_BENT_U: Final = 0.6  # beyond the body the spine goes on straight, so a wake does not coil


@dataclass(frozen=True, slots=True)
class Mark:
    """A trace that a thing leaves on the water; never part of its mask or box.

    Attributes:
        kind: ``foam`` (wash, wake, surf), ``mist`` (blow), ``shadow`` or ``slick`` (smooth water).
        points: float64 (n, 2), polygon in pixels, x right and y down, from the body's origin.
        strength: 0..1.
    """

    kind: MarkKind
    points: Points
    strength: float


@dataclass(frozen=True, slots=True)
class Sprite:
    """One drawn thing in its own small square.

    Attributes:
        color: float32 (s, s, 3), RGB 0..1 in air, premultiplied by ``coverage``.
        coverage: float32 (s, s), 0..1.
        depth: float32 (s, s), 0 at the surface; meaningful where ``coverage`` > 0.
        marks: Traces on the water around it.

    The body's origin is the middle of the square.
    """

    color: Floats
    coverage: Floats
    depth: Floats
    marks: tuple[Mark, ...]


def smooth(points: Points, rounds: int = 2) -> Points:
    """Round a closed polygon by cutting its corners.

    Source: G. Chaikin, "An algorithm for high-speed curve generation", 1974.
    """
    for _ in range(rounds):
        following = np.roll(points, -1, axis=0)
        cut = np.stack((0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following), axis=1)
        points = cut.reshape(-1, 2)
    return points


def noise_field(rng: np.random.Generator, shape_hw: tuple[int, int], cell: float) -> Floats:
    """Smooth noise, float32 (h, w), about standard normal, with bumps about ``cell`` pixels wide."""
    height, width = shape_hw
    grid = rng.standard_normal(
        (max(2, int(np.ceil(height / cell)) + 1), max(2, int(np.ceil(width / cell)) + 1)),
        dtype=np.float32,
    )
    return np.asarray(
        cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.float32
    )


class Pen:
    """Draws one thing, in body coordinates, on a supersampled canvas.

    Args:
        length: Body length in pixels of the final picture.
        heading: Direction of the head, radians, 0 to the right, growing clockwise on screen.
        bend: Turn of the spine from tail to head, radians.
        depth: Depth of the back; see the module's docstring.
        dive: Depth gained per body length towards the head (negative: towards the tail).
        sun: Unit vector (x, y) on screen that points at the sun.
        reach: Half the canvas, in body lengths.
    """

    def __init__(
        self,
        length: float,
        heading: float,
        *,
        bend: float = 0.0,
        depth: float = 0.0,
        dive: float = 0.0,
        sun: tuple[float, float] = (0.0, -1.0),
        reach: float = 0.64,
    ) -> None:
        self.length = length
        self.heading = heading
        self.bend = bend
        self.depth = depth
        self.dive = dive
        self.sun = sun
        self._radius = int(np.ceil(length * reach)) + 2
        side = 2 * self._radius * _SUPERSAMPLING
        self._paint = np.zeros((side, side, 4), np.uint8)  # RGB and relative depth
        self._cover = np.zeros((side, side), np.uint8)
        self._marks: list[Mark] = []

    def to_pixels(self, points: Points) -> Points:
        """Map body coordinates (n, 2) to pixels (n, 2), x right and y down, from the origin."""
        u, v = points[:, 0], points[:, 1]
        inner = np.clip(u, -_MAX_BENT_U, _MAX_BENT_U)
        beyond = u - inner
        curve = self.bend if abs(self.bend) > 1e-3 else 1e-3
        angle = curve * inner
        along = np.sin(angle) / curve + beyond * np.cos(angle) - v * np.sin(angle)
        across = (1 - np.cos(angle)) / curve + beyond * np.sin(angle) + v * np.cos(angle)
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        return self.length * np.stack((along * cos + across * sin, along * sin - across * cos), 1)

    def _to_canvas(self, points: Points) -> NDArray[np.int32]:
        scale = _SUPERSAMPLING * (1 << _SUBPIXEL_BITS)
        return np.rint((self.to_pixels(points) + self._radius) * scale).astype(np.int32)

    def fill(self, points: Points, rgb: Rgb, *, depth: float = 0.0, rounds: int = 2) -> None:
        """Paint a closed polygon, ``depth`` below the thing's own, over what is there."""
        polygon = [self._to_canvas(smooth(points, rounds))]
        deep = min(255.0, depth * _DEPTH_SCALE)
        cv2.fillPoly(self._paint, polygon, (*rgb, deep), cv2.LINE_8, _SUBPIXEL_BITS)
        cv2.fillPoly(self._cover, polygon, (255,), cv2.LINE_8, _SUBPIXEL_BITS)

    def line(self, points: Points, rgb: Rgb, width: float, *, depth: float = 0.0) -> None:
        """Paint an open polyline, ``width`` in body lengths."""
        thick = max(1, round(width * self.length * _SUPERSAMPLING))
        path = [self._to_canvas(points)]
        color = (*rgb, min(255.0, depth * _DEPTH_SCALE))
        cv2.polylines(self._paint, path, False, color, thick, cv2.LINE_8, _SUBPIXEL_BITS)
        cv2.polylines(self._cover, path, False, (255,), thick, cv2.LINE_8, _SUBPIXEL_BITS)

    def dot(self, u: float, v: float, radius: float, rgb: Rgb, *, depth: float = 0.0) -> None:
        """Paint a disc, ``radius`` in body lengths."""
        self.fill(ellipse(u, v, radius, radius, corners=8), rgb, depth=depth, rounds=1)

    def mark(
        self,
        kind: MarkKind,
        points: Points,
        strength: float,
        *,
        rounds: int = 1,
        shift: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Leave a trace on the water; ``shift`` moves it by pixels (x, y) on screen."""
        pixels = self.to_pixels(smooth(points, rounds)) + np.asarray(shift)
        self._marks.append(Mark(kind, pixels, float(np.clip(strength, 0.0, 1.0))))

    def cast_shadow(self, points: Points, height: float, strength: float) -> None:
        """Leave the shadow of an outline ``height`` pixels away from the sun."""
        shift = (-self.sun[0] * height, -self.sun[1] * height)
        self.mark("shadow", points, strength, shift=shift)

    def finish(self, rng: np.random.Generator, *, round_body: float) -> Sprite:
        """Shade, ripple and shrink the canvas.

        Args:
            rng: Draws mottling and ripples.
            round_body: 0 for flat things out of the water, 1 for a body whose flanks fall away.
        """
        side = 2 * self._radius
        shrunk = cv2.resize(self._paint, (side, side), interpolation=cv2.INTER_AREA)
        cover = cv2.resize(self._cover, (side, side), interpolation=cv2.INTER_AREA)
        layers = shrunk.astype(np.float32) / 255.0
        coverage = cover.astype(np.float32) / 255.0
        grown = cv2.GaussianBlur(coverage, (0, 0), max(0.8, self.length / 22))
        east = cv2.Sobel(grown, cv2.CV_32F, 1, 0, ksize=3)
        south = cv2.Sobel(grown, cv2.CV_32F, 0, 1, ksize=3)
        lit = 1.0 - (0.35 + 0.25 * round_body) * (self.sun[0] * east + self.sun[1] * south)
        lit *= 1.0 + 0.07 * noise_field(rng, (side, side), max(3.0, self.length / 12))
        layers[..., :3] *= np.clip(lit, 0.5, 1.6)[..., None]

        axis = np.arange(side, dtype=np.float32) - self._radius + 0.5
        forward = (
            axis[None, :] * np.cos(self.heading) + axis[:, None] * np.sin(self.heading)
        ) / self.length
        part = layers[..., 3] * (255.0 / _DEPTH_SCALE) / np.maximum(coverage, 1e-3)
        sunk = self.depth + part + self.dive * (forward + 0.5 * np.sign(self.dive))
        sunk += 0.22 * round_body * (1.0 - grown)
        depth = np.maximum(np.where(coverage > 0, sunk, self.depth), 0.0).astype(np.float32)
        return self._ripple(rng, layers[..., :3], coverage, depth)

    def _ripple(
        self, rng: np.random.Generator, color: Floats, coverage: Floats, depth: Floats
    ) -> Sprite:
        """Refract and soften what lies under water: the deeper, the more."""
        if self.depth > 0.02:
            side = len(coverage)
            sway = 0.25 + 1.1 * min(self.depth, 1.0)
            grid = np.arange(side, dtype=np.float32)
            map_x = grid[None, :] + sway * noise_field(rng, (side, side), 6.0)
            map_y = grid[:, None] + sway * noise_field(rng, (side, side), 6.0)
            stack = np.dstack((color, coverage))
            stack = cv2.remap(stack, map_x, map_y, cv2.INTER_LINEAR)
            stack = cv2.GaussianBlur(stack, (0, 0), 0.3 + 0.8 * min(self.depth, 1.0))
            color, coverage = stack[..., :3], stack[..., 3]
        return Sprite(
            np.ascontiguousarray(np.clip(color, 0.0, 1.0), dtype=np.float32),
            np.ascontiguousarray(np.clip(coverage, 0.0, 1.0), dtype=np.float32),
            depth,
            tuple(self._marks),
        )


# Shapes in body coordinates


def spindle(profile: Sequence[tuple[float, float]]) -> Points:
    """A body symmetric about its spine, from (u, half width) pairs head to tail."""
    left = np.asarray(profile, dtype=np.float64)
    return np.concatenate((left, (left * (1.0, -1.0))[::-1]))


def ellipse(u: float, v: float, half_u: float, half_v: float, *, corners: int = 12) -> Points:
    """An ellipse with axes along and across the body."""
    angle = np.linspace(0.0, 2 * np.pi, corners, endpoint=False)
    return np.stack((u + half_u * np.cos(angle), v + half_v * np.sin(angle)), axis=1)


_FIN_TAPER: Final = np.array([0.75, 1.0, 1.0, 0.92, 0.78, 0.55, 0.12])


def fin(
    root: tuple[float, float],
    length: float,
    width: float,
    sweep: float,
    side: int,
    *,
    curve: float = 0.35,
) -> Points:
    """A limb that leaves the body at ``root`` and points sideways, then back.

    Args:
        root: (u, v) on the left flank; mirrored for ``side`` -1.
        length: From root to tip, body lengths.
        width: Widest, body lengths.
        sweep: Angle from straight sideways towards the tail, radians.
        side: +1 left, -1 right.
        curve: Further sweep gained up to the tip, radians.
    """
    share = np.linspace(0.0, 1.0, len(_FIN_TAPER))
    angle = sweep + curve * share
    outward = np.stack((-np.sin(angle), np.cos(angle)), axis=1)
    ahead = np.stack((np.cos(angle), np.sin(angle)), axis=1)
    middle = np.asarray(root) + np.cumsum(outward, axis=0) * (length / len(share))
    half = 0.5 * width * _FIN_TAPER[:, None]
    edge = np.concatenate((middle + half * ahead, (middle - half * ahead)[::-1]))
    return edge * (1.0, float(side))


def fluke(u: float, span: float, chord: float) -> Points:
    """A whale's tail: two swept lobes with a notch; ``u`` is where the peduncle meets it."""
    half = np.array(
        [
            (0.10, 0.06), (-0.15, 0.20), (-0.50, 0.62), (-0.95, 1.0), (-1.05, 0.98),
            (-0.92, 0.55), (-0.95, 0.16), (-0.78, 0.0),
        ]
    )  # fmt: skip
    left = half * (chord, span / 2) + (u, 0.0)
    return np.concatenate((left, (left * (1.0, -1.0))[::-1]))


def _tint(rng: np.random.Generator, rgb: Rgb, spread: float = 8.0) -> Rgb:
    """``rgb`` a little lighter or darker, and a little off in hue."""
    moved = (
        np.asarray(rgb) + spread * rng.standard_normal() + 0.35 * spread * rng.standard_normal(3)
    )
    red, green, blue = (int(value) for value in np.clip(moved, 0, 255))
    return red, green, blue


def _mix(first: Rgb, second: Rgb, share: float) -> Rgb:
    """``first`` with ``share`` 0..1 of ``second``."""
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _wash(pen: Pen, rng: np.random.Generator, half_width: float, strength: float) -> None:
    """White water along both flanks and behind a body at the surface."""
    for side in (1, -1):
        edge = [
            (u, side * (half_width * (1.0 - 1.6 * u * u) + rng.uniform(-0.01, 0.03)))
            for u in np.linspace(0.45, -0.4, 6)
        ]
        outer = [(u - 0.04, v + side * rng.uniform(0.015, 0.06)) for u, v in reversed(edge)]
        pen.mark("foam", np.array(edge + outer), strength * rng.uniform(0.6, 1.0))
    tail = rng.uniform(0.15, 0.5)
    wake = spindle([(-0.4, 0.03), (-0.5, 0.07), (-0.5 - tail, 0.05), (-0.55 - tail, 0.0)])
    pen.mark("foam", wake, strength * rng.uniform(0.3, 0.8))


# Whales and their like

_HUMPBACK_BODY: Final = spindle(
    [
        (0.505, 0.0), (0.495, 0.035), (0.45, 0.064), (0.37, 0.084), (0.26, 0.106), (0.13, 0.118),
        (0.0, 0.112), (-0.12, 0.089), (-0.24, 0.056), (-0.34, 0.03), (-0.43, 0.018),
    ]
)  # fmt: skip


def draw_humpback(pen: Pen, rng: np.random.Generator) -> None:
    """Dark, stout, tapering to a fluke, with two pale pectoral fins a third of its length."""
    skin = _tint(rng, (36, 41, 48), 7)
    pale = _tint(rng, (228, 234, 236), 9)
    sweep = rng.uniform(0.05, 0.75)
    for side in (1, -1):
        angle = sweep + rng.uniform(-0.2, 0.2)
        reach = rng.uniform(0.34, 0.4)
        limb = fin((0.2, 0.075), reach, 0.085, angle, side, curve=rng.uniform(0.1, 0.55))
        pen.fill(limb, pale, depth=0.06)
        for _ in range(2):  # the dark mottling near the shoulder differs from whale to whale
            v = side * rng.uniform(0.1, 0.14)
            pen.dot(0.18 + rng.uniform(-0.03, 0.01), v, 0.018, _mix(pale, skin, 0.5), depth=0.06)
    tail = fluke(-0.42, rng.uniform(0.29, 0.35), 0.1)
    pen.fill(tail, _mix(skin, (84, 92, 98), rng.uniform(0.0, 0.5)), depth=0.1)
    pen.fill(_HUMPBACK_BODY, skin)
    back = spindle([(0.42, 0.01), (0.3, 0.045), (0.1, 0.05), (-0.15, 0.03), (-0.36, 0.005)])
    pen.fill(back, _mix(skin, (96, 106, 116), 0.3))
    ridge = np.array([(0.48, 0.0), (0.36, 0.0), (0.29, 0.0)])
    pen.line(ridge, _mix(skin, (150, 156, 160), 0.35), 0.012)
    for _ in range(rng.integers(3, 7)):  # tubercles and barnacles on the snout
        u = rng.uniform(0.36, 0.47)
        v = rng.uniform(-0.05, 0.05)
        pen.dot(u, v, 0.008, _mix(skin, (190, 194, 190), 0.6))
    hump = np.array([(-0.07, 0.0), (-0.12, 0.017), (-0.17, 0.0), (-0.12, -0.017)])
    pen.fill(hump, _mix(skin, (8, 10, 14), 0.6), rounds=1)
    for _ in range(rng.integers(0, 4)):  # scars
        u, v = rng.uniform(-0.25, 0.3), rng.uniform(-0.06, 0.06)
        scar = np.array([(u, v), (u - rng.uniform(0.03, 0.08), v + rng.uniform(-0.03, 0.03))])
        pen.line(scar, _mix(skin, (200, 204, 206), 0.45), 0.008)
    if pen.depth < 0.1:
        _wash(pen, rng, 0.115, rng.uniform(0.35, 0.9))
        if pen.dive < 0.4 and rng.random() < 0.4:
            _blow(pen, rng)
    if rng.random() < 0.3:  # the smooth footprints that each stroke of the fluke leaves
        for step in range(rng.integers(1, 4)):
            print_ = ellipse(-0.75 - 0.42 * step, rng.uniform(-0.08, 0.08), 0.17, 0.15)
            pen.mark("slick", print_, 0.9 - 0.2 * step)


def _blow(pen: Pen, rng: np.random.Generator) -> None:
    """The cloud of a breath, drifting off the blowhole."""
    drift = rng.uniform(0, 2 * np.pi)
    for puff in range(4):
        off = 0.035 * puff
        cloud = ellipse(
            0.3 + off * np.cos(drift),
            off * np.sin(drift),
            0.045 + 0.016 * puff,
            0.04 + 0.016 * puff,
        )
        pen.mark("mist", cloud, 0.75 - 0.13 * puff)


def draw_orca(pen: Pen, rng: np.random.Generator) -> None:
    """Black, with white eye patches and flank flares, a grey saddle and round dark flippers."""
    skin = _tint(rng, (20, 22, 26), 4)
    white = (238, 240, 240)
    for side in (1, -1):
        limb = fin((0.2, 0.07), 0.19, 0.1, rng.uniform(0.2, 0.7), side, curve=0.1)
        pen.fill(limb, skin, depth=0.05)
    pen.fill(fluke(-0.41, 0.29, 0.1), skin, depth=0.05)
    for side in (1, -1):  # white flank seen past the curve of the back
        flare = [(-0.02, 0.1), (-0.16, 0.088), (-0.26, 0.058), (-0.14, 0.065)]
        pen.fill(np.array(flare) * (1.0, side), white)
    body = [
        (0.5, 0.0), (0.48, 0.04), (0.42, 0.075), (0.3, 0.1), (0.14, 0.11), (-0.02, 0.1),
        (-0.16, 0.074), (-0.28, 0.046), (-0.42, 0.018),
    ]  # fmt: skip
    pen.fill(spindle(body), skin)
    for side in (1, -1):
        pen.fill(ellipse(0.32, side * 0.062, 0.06, 0.021), white)
    saddle = [(-0.06, 0.0), (-0.1, 0.05), (-0.2, 0.045), (-0.17, 0.0)]
    pen.fill(spindle(saddle), _tint(rng, (140, 146, 150), 10))
    dorsal = np.array(
        [(0.03, 0.0), (-0.05, 0.018), (-0.12, 0.006), (-0.12, -0.006), (-0.05, -0.018)]
    )
    pen.fill(dorsal, (8, 9, 12), rounds=1)
    if pen.depth < 0.1:
        _wash(pen, rng, 0.105, rng.uniform(0.3, 0.8))
        pen.cast_shadow(dorsal * (1.0, 2.0), 0.08 * pen.length, 0.4)


def draw_beluga(pen: Pen, rng: np.random.Generator) -> None:
    """White all over, with a bulging brow, short flippers and a small fluke."""
    skin = _tint(rng, (226, 232, 230), 8)
    for side in (1, -1):
        limb = fin((0.18, 0.07), 0.13, 0.08, rng.uniform(0.3, 0.8), side)
        pen.fill(limb, _mix(skin, (150, 160, 165), 0.4), depth=0.05)
    pen.fill(fluke(-0.42, 0.23, 0.09), _mix(skin, (150, 160, 165), 0.35), depth=0.05)
    body = [
        (0.5, 0.0), (0.49, 0.03), (0.45, 0.052), (0.4, 0.06), (0.28, 0.088), (0.1, 0.105),
        (-0.08, 0.096), (-0.22, 0.062), (-0.34, 0.032), (-0.43, 0.018),
    ]  # fmt: skip
    pen.fill(spindle(body), skin)
    pen.line(np.array([(0.1, 0.0), (-0.3, 0.0)]), _mix(skin, (140, 150, 155), 0.5), 0.014)
    if pen.depth < 0.1:
        _wash(pen, rng, 0.1, rng.uniform(0.2, 0.6))


def draw_dolphin(pen: Pen, rng: np.random.Generator) -> None:
    """Slate, slender and beaked, with a hooked dorsal fin and small dark flippers."""
    skin = _tint(rng, (78, 88, 98), 12)
    dark = _mix(skin, (20, 24, 30), 0.55)
    for side in (1, -1):
        pen.fill(fin((0.16, 0.06), 0.15, 0.07, rng.uniform(0.5, 0.9), side), dark, depth=0.05)
    pen.fill(fluke(-0.42, 0.26, 0.1), dark, depth=0.04)
    body = [
        (0.51, 0.0), (0.505, 0.014), (0.43, 0.02), (0.41, 0.045), (0.32, 0.072), (0.15, 0.09),
        (-0.02, 0.084), (-0.18, 0.055), (-0.32, 0.026), (-0.43, 0.016),
    ]  # fmt: skip
    pen.fill(spindle(body), skin)
    cape = spindle([(0.36, 0.01), (0.2, 0.042), (0.0, 0.045), (-0.2, 0.016)])
    pen.fill(cape, _mix(skin, dark, 0.6))
    dorsal = np.array([(0.03, 0.0), (-0.07, 0.022), (-0.12, 0.0), (-0.07, -0.022)])
    pen.fill(dorsal, _mix(dark, (5, 5, 8), 0.5), rounds=1)
    if pen.depth < 0.1:
        _wash(pen, rng, 0.09, rng.uniform(0.4, 1.0))


# Fish and turtles


def draw_shark(pen: Pen, rng: np.random.Generator) -> None:
    """Brown-grey, pointed, with triangular pectoral fins and an upright, blade-thin tail."""
    skin = _tint(rng, (98, 96, 88), 14)
    dark = _mix(skin, (30, 30, 28), 0.5)
    for side in (1, -1):
        pen.fill(fin((0.2, 0.05), 0.21, 0.12, 0.45, side, curve=0.35), dark, depth=0.05, rounds=1)
        pen.fill(fin((-0.2, 0.03), 0.08, 0.06, 0.6, side), dark, depth=0.05, rounds=1)
    body = [
        (0.5, 0.0), (0.47, 0.028), (0.38, 0.056), (0.24, 0.075), (0.08, 0.07), (-0.1, 0.05),
        (-0.26, 0.026), (-0.36, 0.013), (-0.5, 0.006),
    ]  # fmt: skip
    pen.fill(spindle(body), skin)
    swing = rng.uniform(-0.06, 0.06)
    pen.line(np.array([(-0.34, 0.0), (-0.44, swing), (-0.56, 1.6 * swing)]), dark, 0.026)
    dorsal = np.array([(0.12, 0.0), (0.02, 0.014), (-0.03, 0.0), (0.02, -0.014)])
    pen.fill(dorsal, _mix(dark, (10, 10, 10), 0.4), rounds=1)


def draw_whale_shark(pen: Pen, rng: np.random.Generator) -> None:
    """Broad flat head, ridged blue-grey back in rows of pale spots, upright tail."""
    skin = _tint(rng, (58, 72, 84), 8)
    dark = _mix(skin, (20, 26, 34), 0.4)
    for side in (1, -1):
        pen.fill(fin((0.2, 0.075), 0.2, 0.11, rng.uniform(0.4, 0.7), side), dark, depth=0.08)
        pen.fill(fin((-0.2, 0.03), 0.08, 0.06, 0.7, side), dark, depth=0.08)
    body = [
        (0.48, 0.0), (0.485, 0.05), (0.46, 0.085), (0.36, 0.105), (0.2, 0.11), (0.02, 0.095),
        (-0.14, 0.065), (-0.28, 0.034), (-0.38, 0.018), (-0.46, 0.012),
    ]  # fmt: skip
    pen.fill(spindle(body), skin)
    swing = rng.uniform(-0.06, 0.06)
    pen.line(np.array([(-0.38, 0.0), (-0.47, swing), (-0.57, 1.5 * swing)]), dark, 0.034)
    spot = _tint(rng, (214, 222, 222), 8)
    for u in np.arange(0.42, -0.34, -0.065):
        half = float(np.interp(u, [-0.38, -0.14, 0.2, 0.45], [0.012, 0.06, 0.1, 0.085]))
        for v in np.linspace(-0.8, 0.8, 5 if half > 0.05 else 3):
            near_u, near_v = rng.uniform(-0.008, 0.008, 2)
            pen.dot(u + near_u, v * half + near_v, rng.uniform(0.009, 0.014), spot)
    dorsal = np.array([(-0.06, 0.0), (-0.13, 0.016), (-0.17, 0.0), (-0.13, -0.016)])
    pen.fill(dorsal, dark, rounds=1)


def draw_manta(pen: Pen, rng: np.random.Generator) -> None:
    """A dark diamond as wide as its length says, with pale shoulders and a whip of a tail."""
    skin = _tint(rng, (32, 36, 42), 8)
    flap = rng.uniform(0.86, 1.0)  # wings raised in the stroke look shorter from above
    half = [
        (0.21, 0.0), (0.2, 0.05), (0.27, 0.07), (0.28, 0.095), (0.19, 0.11), (0.11, 0.28 * flap),
        (-0.02, 0.47 * flap), (-0.08, 0.52 * flap), (-0.09, 0.4 * flap), (-0.09, 0.26 * flap),
        (-0.17, 0.12), (-0.22, 0.03),
    ]  # fmt: skip
    pen.line(np.array([(-0.18, 0.0), (-0.36, 0.02), (-0.56, -0.01)]), skin, 0.014, depth=0.03)
    pen.fill(spindle(half), skin, rounds=2)
    pale = _tint(rng, (206, 212, 212), 12)
    for side in (1, -1):
        patch = [(0.14, 0.05), (0.13, 0.16), (0.06, 0.24), (0.05, 0.14), (0.08, 0.06)]
        pen.fill(np.array(patch) * (1.0, side), pale)
    if rng.random() < 0.5:
        pen.fill(spindle([(-0.1, 0.02), (-0.15, 0.06), (-0.18, 0.01)]), _mix(pale, skin, 0.4))


def draw_turtle(pen: Pen, rng: np.random.Generator) -> None:
    """An oval shell in plates, long front flippers, short hind ones and a blunt head."""
    shell = _tint(rng, (104, 92, 58), 14)
    limb = _mix(shell, (188, 176, 128), 0.45)
    stroke = rng.uniform(-0.1, 0.9)
    for side in (1, -1):
        sweep = stroke + rng.uniform(-0.12, 0.12)
        pen.fill(fin((0.2, 0.16), 0.42, 0.14, sweep, side, curve=0.5), limb, depth=0.04)
        pen.fill(fin((-0.27, 0.12), 0.2, 0.11, 0.9, side, curve=0.2), limb, depth=0.04)
    pen.fill(ellipse(0.42, 0.0, 0.1, 0.07), limb)
    pen.fill(
        spindle(
            [(0.36, 0.0), (0.32, 0.14), (0.16, 0.25), (-0.1, 0.25), (-0.3, 0.14), (-0.42, 0.0)]
        ),
        shell,
    )
    seam = _mix(shell, (40, 34, 20), 0.6)
    pen.line(np.array([(0.3, 0.1), (0.0, 0.11), (-0.3, 0.07)]), seam, 0.02)
    pen.line(np.array([(0.3, -0.1), (0.0, -0.11), (-0.3, -0.07)]), seam, 0.02)
    for u in (0.2, 0.05, -0.1, -0.24):
        pen.line(np.array([(u, -0.2), (u + 0.02, 0.0), (u, 0.2)]), seam, 0.016)


def draw_seal(pen: Pen, rng: np.random.Generator) -> None:
    """A plump spindle, silver to brown and spotted, with hind flippers held together."""
    skin = _tint(rng, ((132, 128, 118), (86, 78, 70), (168, 166, 158))[rng.integers(3)], 10)
    dark = _mix(skin, (36, 32, 30), 0.6)
    for side in (1, -1):
        pen.fill(fin((0.16, 0.1), 0.13, 0.08, 0.8, side), dark, depth=0.05)
        hind = [(-0.36, 0.02), (-0.42, 0.07), (-0.52, 0.1), (-0.5, 0.03), (-0.42, 0.0)]
        pen.fill(np.array(hind) * (1.0, side), dark, depth=0.03)
    body = [
        (0.49, 0.0), (0.47, 0.04), (0.4, 0.068), (0.31, 0.075), (0.2, 0.115), (0.04, 0.14),
        (-0.12, 0.12), (-0.26, 0.075), (-0.38, 0.035),
    ]  # fmt: skip
    pen.fill(spindle(body), skin)
    for _ in range(10):
        u, v = rng.uniform(-0.25, 0.3), rng.uniform(-0.08, 0.08)
        pen.dot(u, v, rng.uniform(0.01, 0.022), _mix(skin, dark, 0.7))
    if pen.depth < 0.1:
        _wash(pen, rng, 0.13, rng.uniform(0.2, 0.5))


def draw_seabird(pen: Pen, rng: np.random.Generator) -> None:
    """White, on long narrow wings (its length is the span), with a shadow on the water below."""
    mantle = _tint(rng, ((236, 238, 238), (172, 180, 188), (96, 100, 106))[rng.integers(3)], 8)
    sweep = rng.uniform(-0.1, 0.25)
    wings = [fin((0.02, 0.03), 0.5, 0.11, sweep, side, curve=0.55) for side in (1, -1)]
    body = spindle(
        [
            (0.2, 0.0),
            (0.18, 0.03),
            (0.1, 0.045),
            (-0.06, 0.05),
            (-0.2, 0.03),
            (-0.24, 0.05),
            (-0.25, 0.0),
        ]
    )
    height = rng.uniform(0.25, 0.9) * pen.length
    for part in (*wings, body):
        pen.cast_shadow(part, height, 0.45)
    for wing, side in zip(wings, (1, -1), strict=True):
        pen.fill(wing, mantle)
        tip = fin((-0.1, 0.36), 0.17, 0.06, sweep + 0.4, side, curve=0.2)
        pen.fill(tip, _mix(mantle, (24, 24, 28), 0.85))
    pen.fill(body, (240, 241, 240))
    pen.dot(0.2, 0.0, 0.016, (226, 170, 60))


# Boats and drift


def draw_boat(pen: Pen, rng: np.random.Generator) -> None:
    """A motor boat: hull, deck, cabin or console, shadow; under way it draws a wake."""
    hulls: tuple[Rgb, ...] = (
        (240, 242, 244),
        (236, 236, 230),
        (38, 60, 100),
        (150, 36, 34),
        (70, 76, 80),
    )
    hull = _tint(rng, hulls[rng.integers(len(hulls))], 6)
    beam = rng.uniform(0.13, 0.19)
    shape = spindle(
        [
            (0.5, 0.0),
            (0.43, 0.4 * beam),
            (0.28, 0.85 * beam),
            (0.05, beam),
            (-0.4, 0.95 * beam),
            (-0.48, 0.85 * beam),
        ]
    )
    pen.cast_shadow(shape, rng.uniform(0.06, 0.14) * pen.length, 0.6)
    speed = 0.0 if rng.random() < 0.3 else rng.uniform(0.4, 1.0)
    if speed:
        _wake(pen, rng, beam, speed)
    pen.fill(shape, hull, rounds=1)
    deck = _tint(rng, ((206, 198, 178), (188, 192, 194), (150, 120, 84))[rng.integers(3)], 8)
    pen.fill(shape * (0.82, 0.72) - (0.03, 0.0), deck, rounds=1)
    front, back, wide = rng.uniform(0.08, 0.22), rng.uniform(-0.2, -0.05), 0.6 * beam
    cabin = np.array([(front, -0.8 * wide), (front, 0.8 * wide), (back, wide), (back, -wide)])
    pen.fill(cabin, _tint(rng, (236, 238, 240), 6), rounds=0)
    glass = np.array(
        [(front, -0.8 * wide), (front, 0.8 * wide), (front - 0.04, wide), (front - 0.04, -wide)]
    )
    pen.fill(glass, (38, 48, 58), rounds=0)
    pen.fill(ellipse(-0.49, 0.0, 0.035, 0.03), (34, 34, 36), rounds=1)
    for _ in range(rng.integers(0, 3)):  # people, crates, buoys on deck
        color = _tint(rng, ((220, 60, 40), (240, 190, 40), (40, 110, 180))[rng.integers(3)], 12)
        pen.dot(rng.uniform(-0.4, -0.22), rng.uniform(-0.5, 0.5) * beam, 0.025, color)


def _wake(pen: Pen, rng: np.random.Generator, beam: float, speed: float) -> None:
    """Propeller wash behind the hull and two arms of a V from the bow."""
    run = -0.5 - speed * rng.uniform(0.8, 1.8)
    wash = spindle([(-0.42, 0.5 * beam), (-0.7, 0.7 * beam), (run, 0.9 * beam), (run - 0.1, 0.0)])
    pen.mark("foam", wash, 0.55 + 0.4 * speed)
    opening = rng.uniform(0.24, 0.36)
    for side in (1, -1):
        inner, far = beam * 0.9, beam + opening * (0.35 - run)
        arm = [(0.35, 0.6 * beam), (-0.3, inner + 0.1), (run, far), (run, far - 0.1), (-0.3, inner)]
        pen.mark("foam", np.array(arm) * (1.0, side), 0.4 + 0.45 * speed)


def draw_kayak(pen: Pen, rng: np.random.Generator) -> None:
    """A bright sliver with a paddler whose paddle crosses it."""
    hulls: tuple[Rgb, ...] = (
        (236, 70, 40),
        (244, 196, 40),
        (60, 170, 90),
        (60, 120, 220),
        (244, 244, 240),
    )
    hull = _tint(rng, hulls[rng.integers(len(hulls))], 8)
    shape = spindle(
        [(0.5, 0.0), (0.36, 0.045), (0.15, 0.078), (-0.15, 0.078), (-0.36, 0.045), (-0.5, 0.0)]
    )
    pen.cast_shadow(shape, 0.05 * pen.length, 0.5)
    pen.mark("foam", spindle([(-0.42, 0.02), (-0.6, 0.05), (-0.9, 0.01)]), rng.uniform(0.0, 0.5))
    pen.fill(shape, hull, rounds=1)
    pen.fill(ellipse(-0.02, 0.0, 0.11, 0.05), (40, 36, 34))
    tilt = rng.uniform(-0.2, 0.2)
    ends = np.array([(0.04 + tilt, 0.27), (0.04, 0.0), (0.04 - tilt, -0.27)])
    pen.line(ends, (60, 60, 60), 0.018)
    for u, v in (ends[0], ends[2]):
        pen.fill(ellipse(u, v, 0.03, 0.055), (240, 240, 236))
    vest = _tint(rng, ((230, 90, 30), (40, 60, 120), (210, 40, 60))[rng.integers(3)], 8)
    pen.fill(ellipse(-0.03, 0.0, 0.05, 0.065), vest)
    pen.dot(-0.02, 0.0, 0.03, (196, 150, 120))


def draw_log(pen: Pen, rng: np.random.Generator) -> None:
    """A drifting trunk, bark and broken branches: the near miss of a still whale."""
    bark = _tint(rng, (92, 72, 54), 12)
    half = rng.uniform(0.035, 0.06)
    for _ in range(rng.integers(1, 4)):
        u, side = rng.uniform(-0.4, 0.4), rng.choice((-1, 1))
        tip = (u + rng.uniform(-0.16, 0.16), side * (half + rng.uniform(0.05, 0.16)))
        pen.line(np.array([(u, 0.0), tip]), _mix(bark, (40, 30, 22), 0.3), 0.026)
    stations = np.linspace(0.5, -0.5, 8)
    left = [(u, half * rng.uniform(0.75, 1.15)) for u in stations]
    right = [(u, -half * rng.uniform(0.75, 1.15)) for u in stations[::-1]]
    pen.fill(np.array(left + right), bark, rounds=1)
    for _ in range(4):
        u, v = rng.uniform(-0.1, 0.4), rng.uniform(-0.6, 0.6) * half
        grain = np.array([(u, v), (u - rng.uniform(0.15, 0.35), v)])
        pen.line(grain, _mix(bark, (190, 168, 140), rng.uniform(0.2, 0.6)), 0.01)
    pen.fill(ellipse(0.49, 0.0, 0.018, half), (196, 168, 126), rounds=1)
    pen.mark(
        "foam", spindle([(0.5, half), (0.0, half + 0.03), (-0.5, half)]), rng.uniform(0.0, 0.35)
    )


def draw_kelp(pen: Pen, rng: np.random.Generator) -> None:
    """A bed of kelp: amber blades streaming one way, with floats; ``u`` is the current."""
    for _ in range(rng.integers(26, 46)):
        u, v = rng.normal(0.0, 0.17, 2).clip(-0.36, 0.36)
        color = _tint(rng, ((104, 88, 34), (78, 76, 30), (128, 104, 44))[rng.integers(3)], 12)
        steps = np.linspace(0.0, rng.uniform(0.12, 0.26), 6)
        sway = (
            0.03 * np.sin(steps * rng.uniform(20, 40) + rng.uniform(0, 6))
            + rng.uniform(-0.2, 0.2) * steps
        )
        pen.line(
            np.stack((u - steps, v + sway), axis=1),
            color,
            rng.uniform(0.012, 0.032),
            depth=rng.uniform(0, 0.5),
        )
        if rng.random() < 0.5:
            pen.dot(u, v, 0.011, _mix(color, (220, 200, 130), 0.5))


def draw_rocks(pen: Pen, rng: np.random.Generator) -> None:
    """A reef of grey-brown facets, wet at the foot, in a ring of surf."""
    for _ in range(rng.integers(2, 5)):
        u, v = rng.uniform(-0.24, 0.24, 2)
        size = rng.uniform(0.1, 0.24)
        angle = np.linspace(0, 2 * np.pi, 9, endpoint=False)
        reach = size * rng.uniform(0.65, 1.15, len(angle))
        shape = np.stack((u + reach * np.cos(angle), v + reach * np.sin(angle)), axis=1)
        centre = np.array((u, v))
        pen.mark("foam", centre + (shape - centre) * rng.uniform(1.25, 1.6), rng.uniform(0.5, 1.0))
        stone = _tint(rng, ((104, 98, 90), (78, 74, 70), (126, 112, 94))[rng.integers(3)], 10)
        pen.fill(centre + (shape - centre) * 1.12, _mix(stone, (26, 28, 24), 0.7), rounds=1)
        pen.fill(shape, stone, rounds=1)
        top = centre + (shape - centre) * 0.6 + np.array(rng.uniform(-0.02, 0.02, 2))
        pen.fill(top, _mix(stone, (190, 182, 168), 0.4), rounds=0)
        pen.fill(top[: len(top) // 2 + 1], _mix(stone, (40, 38, 36), 0.3), rounds=0)


@dataclass(frozen=True, slots=True)
class Kind:
    """What is known of one kind of thing.

    Attributes:
        plural: As the caption says it.
        length: Shortest and longest, pixels at altitude 1.
        depth: Shallowest and deepest.
        draw: Draws one.
        social: Neighbours head the same way.
        reach: Half its canvas, body lengths.
        weight: How often the base world holds it, relative to the others.
        afloat: Out of the water: flat light, no depth.
    """

    plural: str
    length: tuple[float, float]
    depth: tuple[float, float]
    draw: Callable[[Pen, np.random.Generator], None]
    social: bool = False
    reach: float = 0.64
    weight: float = 1.0
    afloat: bool = False


KINDS: Final[dict[str, Kind]] = {
    HUMPBACK: Kind("humpback whales", (46, 75), (0.0, 0.4), draw_humpback, social=True, weight=0),
    "orca": Kind("orcas", (38, 68), (0.0, 0.25), draw_orca, social=True, weight=1.3),
    "beluga": Kind("belugas", (32, 58), (0.0, 0.5), draw_beluga, social=True, weight=1.1),
    "dolphin": Kind("dolphins", (24, 44), (0.0, 0.3), draw_dolphin, social=True, weight=1.2),
    "shark": Kind("sharks", (30, 60), (0.05, 0.4), draw_shark, weight=1.1),
    "whale shark": Kind("whale sharks", (50, 75), (0.03, 0.4), draw_whale_shark, weight=1.2),
    "manta ray": Kind("manta rays", (34, 66), (0.05, 0.45), draw_manta, weight=1.2),
    "sea turtle": Kind("sea turtles", (22, 46), (0.02, 0.4), draw_turtle, reach=0.72),
    "seal": Kind("seals", (22, 40), (0.0, 0.35), draw_seal),
    "seabird": Kind("seabirds", (22, 46), (0.0, 0.0), draw_seabird, afloat=True),
    "boat": Kind("boats", (26, 66), (0.0, 0.0), draw_boat, afloat=True, weight=1.2),
    "kayak": Kind("kayaks", (26, 46), (0.0, 0.0), draw_kayak, afloat=True),
    "log": Kind("logs", (26, 66), (0.0, 0.08), draw_log),
    "kelp": Kind("kelp", (60, 120), (0.0, 0.3), draw_kelp, weight=0.8),
    "rocks": Kind("rocks", (60, 120), (0.0, 0.0), draw_rocks, afloat=True, weight=0.8),
}


def draw_thing(
    name: str,
    rng: np.random.Generator,
    *,
    length: float,
    heading: float,
    sun: tuple[float, float],
) -> Sprite:
    """Draw one thing of a kind in :data:`KINDS`.

    Args:
        name: A key of :data:`KINDS`.
        rng: Draws pose, colours and traces.
        length: Pixels.
        heading: Radians, 0 to the right, clockwise on screen.
        sun: Unit vector (x, y) on screen that points at the sun.
    """
    kind = KINDS[name]
    low, high = kind.depth
    depth = low + (high - low) * rng.beta(1.0, 1.4)
    bend = 0.0 if kind.afloat else float(np.clip(rng.normal(0.0, 0.35), -0.8, 0.8))
    dive = 0.0
    if kind.social and rng.random() < (0.25 if name == HUMPBACK else 0.12):
        dive = rng.uniform(0.3, 1.0) * rng.choice((-1.0, 1.0))
    pen = Pen(length, heading, bend=bend, depth=depth, dive=dive, sun=sun, reach=kind.reach)
    kind.draw(pen, rng)
    return pen.finish(rng, round_body=0.0 if kind.afloat else 1.0)

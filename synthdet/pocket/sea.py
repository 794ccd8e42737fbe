"""The rendered sea: drone pictures with exact boxes, the ground truth of the embedded default.

A picture is built from the water up: the colour of the water column, the things in and on it (see
``animals.py``) dimmed by the water above them, the waves with their sky light and glint, foam and
whitecaps, and last what the camera does. Everything is drawn from the seed alone.

Two worlds share one sea. The *base world* is what the pocket models are built on: animals, boats,
drift, kelp, rocks, open water, and **never a humpback**. Humpbacks are the rare animal that a user
brings photos of, through `survey.py`.

**Boxes.** A thing's *visible mask* is where ``coverage x transmission >= MASK_OPACITY``:
``coverage`` is the share of the pixel that the thing fills, ``transmission`` the share of its light
that the water lets through, mean over RGB. A box is the tight bounds of that mask inside the picture,
so a fluke that fades into the deep ends where the eye loses it. Wakes, shadows and blows are no part.

The ground scale is fixed: things are as many pixels long in a large picture as in a small one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from synthdet.pocket.animals import (
    HUMPBACK,
    KINDS,
    Floats,
    Mark,
    MarkKind,
    Sprite,
    draw_thing,
    noise_field,
)

__all__ = [
    "BASE_CLASSES",
    "HUMPBACK",
    "MASK_OPACITY",
    "SEAS",
    "Scene",
    "SceneBox",
    "caption_vocabulary",
    "plan_caption",
    "render_scene",
]

MASK_OPACITY: Final = 0.25
OPEN_WATER: Final = "open water"
UNCOUNTED: Final = ("kelp", "rocks")  # in captions, but without number and without boxes
BASE_CLASSES: Final[tuple[str, ...]] = tuple(
    name for name in KINDS if name != HUMPBACK and name not in UNCOUNTED
)
BASE_SUBJECTS: Final[tuple[str, ...]] = (*BASE_CLASSES, *UNCOUNTED, OPEN_WATER)
MAX_COUNTED: Final = 3

_Window = tuple[slice, slice]  # rows, columns

_COUNTS: Final = ("one", "two", "three")
_OPEN_WATER_WEIGHT: Final = 0.8
_MIN_VISIBLE: Final = 0.4  # a thing cut by the picture's edge more than this is moved inwards
_SMALLEST: Final = 0.6  # share of its drawn size that a thing may shrink to, to find room
_MIN_MASK_PIXELS: Final = 40  # fewer are a speck, not a thing that a person would box


@dataclass(frozen=True, slots=True)
class SceneBox:
    """One thing in a picture.

    Attributes:
        xyxy: Pixels, clipped to the picture, tight around the visible mask; right and bottom edges
            are exclusive, so a mask of one pixel has a box of size 1 x 1.
        class_name: One of :data:`BASE_CLASSES`, or :data:`HUMPBACK`.
        visible: 0..1, the share of the thing's visible mask that lies inside the picture.
    """

    xyxy: tuple[float, float, float, float]
    class_name: str
    visible: float


@dataclass(frozen=True, slots=True)
class Scene:
    """A rendered picture and all that is known of it.

    Attributes:
        image: uint8 (height, width, 3), RGB.
        caption: In the grammar of :func:`plan_caption`.
        boxes: The countable things the caption names.
        sea: The palette, one of :data:`SEAS`.
    """

    image: NDArray[np.uint8]
    caption: str
    boxes: tuple[SceneBox, ...]
    sea: str


@dataclass(frozen=True, slots=True)
class _Palette:
    """Colours of a sea, RGB 0..255, and how strongly its water takes each colour away."""

    deep: tuple[int, int, int]
    shallow: tuple[int, int, int]
    absorption: tuple[float, float, float]


_PALETTES: Final[dict[str, _Palette]] = {
    "deep blue": _Palette((12, 48, 98), (26, 82, 136), (1.9, 0.95, 0.65)),
    "turquoise": _Palette((22, 122, 142), (72, 180, 182), (1.8, 0.7, 0.7)),
    "green": _Palette((26, 76, 62), (60, 118, 86), (1.5, 0.9, 1.3)),
    "grey": _Palette((84, 99, 108), (118, 131, 136), (1.3, 1.0, 1.0)),
    "dark": _Palette((9, 21, 33), (22, 42, 56), (1.6, 1.1, 0.95)),
    "milky": _Palette((88, 136, 140), (130, 172, 170), (1.6, 1.2, 1.2)),
}
SEAS: Final[tuple[str, ...]] = tuple(_PALETTES)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What all photos of one flight share: the sea, the light and the altitude.

    Attributes:
        sea: Palette.
        whitecaps: Whether waves break.
        altitude: Pixels of a thing are divided by it; about 1.
        wind: Direction the waves run, radians on screen.
        roughness: 0 calm .. 1 lively.
        wavelength: Longest waves, pixels.
        sun: Unit vector on screen towards the sun.
        glint: 0 none .. 1 strong sun glitter.
        turbidity: Scales the absorption; about 1.
        exposure: Gain of the camera, about 1.
        warmth: Colour cast, -1 cold .. 1 warm.
        gradient: Brightening across the picture along ``sun``, share.
        vignette: Darkening of the corners, share.
    """

    sea: str
    whitecaps: bool
    altitude: float
    wind: float
    roughness: float
    wavelength: float
    sun: tuple[float, float]
    glint: float
    turbidity: float
    exposure: float
    warmth: float
    gradient: float
    vignette: float

    @property
    def absorption(self) -> Floats:
        """float32 (3,), per unit of depth, RGB."""
        base = np.asarray(_PALETTES[self.sea].absorption, dtype=np.float32)
        return np.asarray(base * np.float32(self.turbidity), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Placed:
    """A sprite with its square's top left corner in the picture, and its visible mask."""

    name: str
    sprite: Sprite
    left: int
    top: int
    mask: NDArray[np.bool_]

    @property
    def origin(self) -> tuple[float, float]:
        """The body's middle in pixels of the picture."""
        half = len(self.mask) / 2
        return self.left + half, self.top + half

    def meet(self, shape_hw: tuple[int, int]) -> tuple[_Window, _Window]:
        """Where the square lies in the picture; see :func:`_meet`."""
        return _meet(self.left, self.top, len(self.mask), shape_hw)


# Captions


def _thing_words(subject: str, num_subjects: int) -> str:
    if subject in (*UNCOUNTED, OPEN_WATER):
        return subject if subject != "rocks" else "rocks with surf"
    words = subject if num_subjects == 1 else KINDS[subject].plural
    return f"{_COUNTS[num_subjects - 1]} {words}"


def plan_caption(subject: str, num_subjects: int, sea: str, whitecaps: bool) -> str:
    """Say what a picture shows; the only grammar captions and prompts are written in.

    Args:
        subject: A base class, ``"humpback whale"``, ``"kelp"``, ``"rocks"`` or ``"open water"``.
        num_subjects: 1 to 3; not used for kelp, rocks and open water.
        sea: One of :data:`SEAS`.
        whitecaps: Whether waves break.

    Raises:
        ValueError: The subject, the sea or the number is none of these.

    Example:
        >>> plan_caption("dolphin", 2, "deep blue", True)
        'aerial photo of two dolphins in a deep blue sea, whitecaps'
        >>> plan_caption("open water", 0, "grey", False)
        'aerial photo of open water in a grey sea'
    """
    if sea not in _PALETTES:
        raise ValueError(f"sea: {sea!r} is none of {', '.join(SEAS)}")
    tail = ", whitecaps" if whitecaps else ""
    if subject != OPEN_WATER and subject not in KINDS:
        raise ValueError(f"subject: {subject!r} is none of {', '.join((HUMPBACK, *BASE_SUBJECTS))}")
    if subject not in (*UNCOUNTED, OPEN_WATER) and not 1 <= num_subjects <= MAX_COUNTED:
        raise ValueError(f"num_subjects: {num_subjects} is not between 1 and {MAX_COUNTED}")
    return f"aerial photo of {_thing_words(subject, num_subjects)} in a {sea} sea{tail}"


def caption_vocabulary() -> tuple[str, ...]:
    """Every lowercase word that a caption can hold, sorted; commas apart."""
    captions = [
        plan_caption(subject, count, sea, whitecaps=True)
        for subject in (HUMPBACK, *BASE_SUBJECTS)
        for count in (1, 2, 3)
        for sea in SEAS
    ]
    return tuple(sorted({word for line in captions for word in line.replace(",", "").split()}))


# Water


def draw_conditions(
    rng: np.random.Generator, sea: str | None = None, whitecaps: bool | None = None
) -> Conditions:
    """Draw a flight's sea and light; what is given is kept."""
    palette = SEAS[rng.integers(len(SEAS))]
    breaking = bool(rng.random() < 0.35)
    bearing = rng.uniform(0.0, 2 * np.pi)
    whitecaps = breaking if whitecaps is None else whitecaps
    return Conditions(
        sea=palette if sea is None else sea,
        whitecaps=whitecaps,
        altitude=rng.uniform(0.92, 1.1),
        wind=rng.uniform(0.0, 2 * np.pi),
        roughness=rng.uniform(0.55, 1.0) if whitecaps else rng.uniform(0.15, 0.85),
        wavelength=rng.uniform(18.0, 48.0),
        sun=(float(np.cos(bearing)), float(np.sin(bearing))),
        glint=rng.uniform(0.25, 1.0) if rng.random() < 0.33 else 0.0,
        turbidity=rng.uniform(0.7, 1.2),
        exposure=rng.uniform(0.88, 1.15),
        warmth=rng.uniform(-1.0, 1.0),
        gradient=rng.uniform(0.0, 0.16),
        vignette=rng.uniform(0.0, 0.16),
    )


def _waves(
    rng: np.random.Generator, shape_hw: tuple[int, int], conditions: Conditions
) -> tuple[Floats, Floats, Floats]:
    """Make a wind sea: height and slopes along x and y, each float32 (h, w) of unit deviation.

    Source: J. Tessendorf, "Simulating Ocean Water", 2001, section 4 (directional spectrum, FFT).
    """
    height, width = shape_hw
    rows, columns = (-(-side // 32) * 32 for side in shape_hw)  # sizes that the FFT likes
    ky = np.fft.fftfreq(rows).astype(np.float32)[:, None]
    kx = np.fft.rfftfreq(columns).astype(np.float32)[None, :]
    square = kx * kx + ky * ky
    square[0, 0] = 1.0
    along = (kx * np.cos(conditions.wind) + ky * np.sin(conditions.wind)) ** 2 / square
    longest = np.float32((1.0 / (conditions.wavelength * conditions.altitude**-1)) ** 2)
    shortest = np.float32((1.0 / 4.5) ** 2)
    size = (0.04 + along**2) * square**-1.05 * np.exp(-longest / square - square / shortest)
    size[0, 0] = 0.0
    phase = rng.standard_normal((2, rows, kx.shape[1]), dtype=np.float32)
    spectrum = (size * (phase[0] + 1j * phase[1])).astype(np.complex64)
    fields = []
    for factor in (1.0, 1j * kx, 1j * ky):
        field = np.fft.irfft2(spectrum * factor, s=(rows, columns)).astype(np.float32)
        fields.append(field[:height, :width])
    slope = np.float32(np.sqrt(0.5 * (fields[1].std() ** 2 + fields[2].std() ** 2)))
    return fields[0] / fields[0].std(), fields[1] / slope, fields[2] / slope


def _ramp(shape_hw: tuple[int, int], direction: tuple[float, float]) -> Floats:
    """A ramp from -1 to 1 across the picture, growing along ``direction``, float32 (h, w)."""
    height, width = shape_hw
    x = np.linspace(-1.0, 1.0, width, dtype=np.float32) * np.float32(direction[0])
    y = np.linspace(-1.0, 1.0, height, dtype=np.float32) * np.float32(direction[1])
    return np.asarray((x[None, :] + y[:, None]) / 1.4, dtype=np.float32)


def _column_of_water(
    rng: np.random.Generator, shape_hw: tuple[int, int], conditions: Conditions
) -> Floats:
    """The sea's own colour under the waves, float32 (h, w, 3), 0..1: patches, depth, turbidity."""
    palette = _PALETTES[conditions.sea]
    deep = np.asarray(palette.deep, dtype=np.float32) / 255
    shallow = np.asarray(palette.shallow, dtype=np.float32) / 255
    patches = noise_field(rng, shape_hw, 70.0) + 0.45 * noise_field(rng, shape_hw, 24.0)
    level = np.float32(rng.uniform(0.15, 0.75))
    slant = _ramp(shape_hw, (np.cos(rng.uniform(0, 6.28)), np.sin(rng.uniform(0, 6.28))))
    share = np.clip(level + 0.16 * patches + 0.2 * slant, 0.0, 1.0)[..., None]
    return np.asarray(deep + share * (shallow - deep), dtype=np.float32)


# Things


def _visible_mask(sprite: Sprite, conditions: Conditions) -> NDArray[np.bool_]:
    transmission = np.exp(-sprite.depth[..., None] * conditions.absorption).mean(axis=-1)
    return np.asarray(sprite.coverage * transmission >= MASK_OPACITY, dtype=np.bool_)


def _meet(left: int, top: int, side: int, shape_hw: tuple[int, int]) -> tuple[_Window, _Window]:
    """Where a square lies in the picture: rows and columns of the picture, then of the square.

    Both windows are empty if the square lies outside.
    """
    height, width = shape_hw
    x0, y0 = min(max(left, 0), width), min(max(top, 0), height)
    x1, y1 = max(min(left + side, width), x0), max(min(top + side, height), y0)
    return (
        (slice(y0, y1), slice(x0, x1)),
        (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)),
    )


def _try_place(
    taken: NDArray[np.bool_], mask: NDArray[np.bool_], left: int, top: int
) -> tuple[float, bool]:
    """Share of a mask inside the picture, and whether it touches what is there already."""
    in_picture, in_square = _meet(left, top, len(mask), (taken.shape[0], taken.shape[1]))
    inside = mask[in_square]
    return float(inside.sum()) / float(mask.sum()), bool((taken[in_picture] & inside).any())


def _place(
    rng: np.random.Generator,
    sprite: Sprite,
    taken: NDArray[np.bool_],
    conditions: Conditions,
    name: str,
    near: Placed | None,
) -> Placed | None:
    """Find room for a sprite, beside ``near`` or anywhere; None if 24 tries found none."""
    mask = _visible_mask(sprite, conditions)
    pixels = int(mask.sum())
    if pixels < _MIN_MASK_PIXELS:
        return None
    height, width = taken.shape
    half = len(mask) / 2
    cut_off = bool(rng.random() < 0.14)  # some things are cut by the picture's edge
    for attempt in range(24):
        if near is not None and attempt < 12:
            angle, away = rng.uniform(0.0, 2 * np.pi), rng.uniform(0.5, 1.0) * half
            x = near.origin[0] + away * np.cos(angle)
            y = near.origin[1] + away * np.sin(angle)
        else:
            margin = -2.0 if cut_off else min(0.62 * half, 0.3 * min(height, width))
            x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
        left, top = round(x - half), round(y - half)
        share, touching = _try_place(taken, mask, left, top)
        wanted = max(_MIN_VISIBLE if cut_off else 0.8, _MIN_MASK_PIXELS / pixels)
        if share >= wanted and not touching:
            return Placed(name, sprite, left, top, mask)
    return None


def _occupy(taken: NDArray[np.bool_], placed: Placed) -> None:
    """Mark a thing's pixels, and two around them, as taken."""
    in_picture, in_square = placed.meet((taken.shape[0], taken.shape[1]))
    grown = cv2.dilate(placed.mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    taken[in_picture] |= grown[in_square]


def put_things(
    rng: np.random.Generator,
    name: str,
    count: int,
    taken: NDArray[np.bool_],
    conditions: Conditions,
    *,
    patience: float = float("inf"),
) -> list[Placed]:
    """Draw and place ``count`` things of a kind, smaller ones where there is no room.

    Fewer are placed if ``patience`` drawings found no room; without it, all of them are: on an
    empty sea of 96 x 96 pixels three of the largest kind fit at :data:`_SMALLEST` of their size.
    """
    kind = KINDS[name]
    low, high = kind.length
    common = rng.uniform(0.0, 2 * np.pi)
    family = name == HUMPBACK and count >= 2 and bool(rng.random() < 0.5)  # mother and calf
    placed: list[Placed] = []
    shrink = 1.0 if count == 1 else (0.94, 0.86)[min(count, 3) - 2]
    mother = 0.0
    while len(placed) < count and patience > 0:
        calf = family and len(placed) == 1
        length = mother * rng.uniform(0.48, 0.62) if calf else rng.uniform(low, high)
        mother = mother or length
        heading = common + rng.normal(0.0, 0.3) if kind.social else rng.uniform(0.0, 2 * np.pi)
        length *= shrink if not calf else 1.0
        sprite = draw_thing(
            name, rng, length=length / conditions.altitude, heading=heading, sun=conditions.sun
        )
        near = placed[0] if placed and kind.social else None
        found = _place(rng, sprite, taken, conditions, name, near)
        if found is None:
            shrink = max(_SMALLEST, 0.92 * shrink)
            patience -= 1
            continue
        _occupy(taken, found)
        placed.append(found)
    return placed


def to_box(placed: Placed, shape_hw: tuple[int, int]) -> SceneBox:
    (in_rows, in_columns), in_square = placed.meet(shape_hw)
    inside = placed.mask[in_square]
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    x, y = in_columns.start, in_rows.start
    return SceneBox(
        (
            float(x + columns[0]), float(y + rows[0]),
            float(x + columns[-1] + 1), float(y + rows[-1] + 1),
        ),
        placed.name,
        float(inside.sum()) / float(placed.mask.sum()),
    )  # fmt: skip


# Painting

_MARK_BLUR: Final[dict[MarkKind, float]] = {"foam": 1.1, "mist": 1.6, "shadow": 1.4, "slick": 2.5}


def _mark_layer(things: list[Placed], kind: MarkKind, shape_hw: tuple[int, int]) -> Floats | None:
    """All traces of one kind as a soft layer, float32 (h, w), 0..1; None if there are none."""
    marks: list[tuple[Mark, tuple[float, float]]] = [
        (mark, thing.origin) for thing in things for mark in thing.sprite.marks if mark.kind == kind
    ]
    if not marks:
        return None
    layer = np.zeros(shape_hw, np.uint8)
    for mark, origin in sorted(marks, key=lambda pair: pair[0].strength):
        points = np.rint((mark.points + origin) * 16).astype(np.int32)
        cv2.fillPoly(layer, [points], (round(255 * mark.strength),), cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(layer.astype(np.float32), (0, 0), _MARK_BLUR[kind])
    return np.asarray(soft / 255.0, dtype=np.float32)


def _sink(water: Floats, things: list[Placed], conditions: Conditions) -> tuple[Floats, Floats]:
    """Blend things into the water, in place.

    Returns:
        The water, and how much of each pixel stands out of it, float32 (h, w), 0..1.
    """
    shape_hw = (water.shape[0], water.shape[1])
    emerged = np.zeros(shape_hw, np.float32)
    shadow = _mark_layer(things, "shadow", shape_hw)
    if shadow is not None:
        water *= (1.0 - 0.6 * shadow)[..., None]
    for thing in things:
        in_picture, in_square = thing.meet(shape_hw)
        coverage = thing.sprite.coverage[in_square]
        depth = thing.sprite.depth[in_square]
        through = np.exp(-depth[..., None] * conditions.absorption)
        under = water[in_picture]
        under *= 1.0 - coverage[..., None] * through
        under += thing.sprite.color[in_square] * through
        dry = coverage * np.exp(-5.0 * depth)
        emerged[in_picture] = np.maximum(emerged[in_picture], dry)
    return water, emerged


def _foam(
    rng: np.random.Generator,
    things: list[Placed],
    waves: tuple[Floats, Floats, Floats],
    emerged: Floats,
    conditions: Conditions,
) -> Floats:
    """White water, float32 (h, w), 0..1: wakes and surf, and breaking crests if asked for."""
    height, slope_x, slope_y = waves
    shape_hw = (height.shape[0], height.shape[1])
    grain = 0.6 * noise_field(rng, shape_hw, 3.2) + 0.5 * noise_field(rng, shape_hw, 9.0)
    foam = np.zeros(shape_hw, np.float32)
    trace = _mark_layer(things, "foam", shape_hw)
    if trace is not None:
        foam = trace * np.clip(0.72 + 0.5 * grain, 0.0, 1.0)
    if conditions.whitecaps:
        gusts = noise_field(rng, shape_hw, 30.0)
        # The steep front of a crest breaks: forward slope counts besides height.
        front = slope_x * np.cos(conditions.wind) + slope_y * np.sin(conditions.wind)
        field = 0.75 * height + 0.55 * front + 0.5 * gusts + 0.3 * grain
        crest = np.float32(np.quantile(field, 1.0 - rng.uniform(0.02, 0.05)))
        caps = np.clip((field - crest) / 0.5, 0.0, 1.0) * np.clip(0.9 + 0.4 * grain, 0.3, 1.0)
        caps = np.maximum(caps, 0.7 * cv2.GaussianBlur(caps, (0, 0), 1.8))
        foam = np.maximum(foam, caps)
    return np.asarray(foam * (1.0 - emerged) ** 3, dtype=np.float32)


def paint(
    rng: np.random.Generator,
    shape_hw: tuple[int, int],
    conditions: Conditions,
    things: list[Placed],
) -> NDArray[np.uint8]:
    """Paint a picture; ``rng`` is the water's own, so the same sea comes with and without things."""
    waves = _waves(rng, shape_hw, conditions)
    height, slope_x, slope_y = waves
    picture = _column_of_water(rng, shape_hw, conditions)
    picture, emerged = _sink(picture, things, conditions)
    wet = 1.0 - 0.9 * emerged
    calm = _mark_layer(things, "slick", shape_hw)
    rough = conditions.roughness * wet
    if calm is not None:
        rough = rough * (1.0 - 0.8 * calm)
        picture *= (1.0 + 0.1 * calm)[..., None]

    # Waves tilt the surface: towards the sun it mirrors more sky, away from it less.
    facing = slope_x * conditions.sun[0] + slope_y * conditions.sun[1]
    tilt = rough * facing
    sky = np.array((0.74, 0.82, 0.90), dtype=np.float32)
    picture *= (1.0 + 0.085 * tilt)[..., None]
    mirror = (0.045 + 0.026 * tilt + 0.012 * rough * height).clip(0.0, 0.3) * wet
    picture += mirror[..., None] * sky
    if conditions.glint:
        # A facet flashes when its slope halves the angle between sun and camera; the slope that
        # this needs grows with the distance from the spot where the sun would be mirrored.
        far = 2.1 - 1.2 * _ramp(shape_hw, conditions.sun)
        cross = slope_y * conditions.sun[0] - slope_x * conditions.sun[1]
        miss = (facing - far) ** 2 + 0.6 * cross**2
        flash = conditions.glint * np.exp(-miss / 0.22) * wet
        picture += (0.42 * flash)[..., None] * np.array((1.0, 0.97, 0.9), dtype=np.float32)

    foam = _foam(rng, things, waves, emerged, conditions)[..., None]
    white = np.array((0.90, 0.93, 0.94), dtype=np.float32) * np.float32(
        0.82 if conditions.sea == "dark" else 0.95
    )
    picture += foam * (white - picture)
    mist = _mark_layer(things, "mist", shape_hw)
    if mist is not None:
        picture += 0.8 * mist[..., None] * (np.float32(0.93) - picture)
    return _expose(rng, picture, conditions)


def _expose(rng: np.random.Generator, picture: Floats, conditions: Conditions) -> NDArray[np.uint8]:
    """The camera: light across the picture, vignette, colour cast, exposure and noise."""
    shape_hw = (picture.shape[0], picture.shape[1])
    across = _ramp(shape_hw, (1.0, 0.0)) * 1.4
    down = _ramp(shape_hw, (0.0, 1.0)) * 1.4
    light = conditions.exposure * (1.0 + conditions.gradient * _ramp(shape_hw, conditions.sun))
    light = light * (1.0 - 0.5 * conditions.vignette * (across * across + down * down))
    cast = np.array(
        (1.0 + 0.05 * conditions.warmth, 1.0, 1.0 - 0.05 * conditions.warmth), dtype=np.float32
    )
    picture = picture * light[..., None].astype(np.float32) * cast
    noise = rng.standard_normal((*shape_hw, 1), dtype=np.float32) * np.float32(0.9)
    return np.asarray(np.clip(picture * 255.0 + noise + 0.5, 0, 255), dtype=np.uint8)


# Scenes


def _draw_subject(rng: np.random.Generator) -> str:
    """A subject of the base world; never a humpback."""
    weights = np.array(
        [KINDS[name].weight if name in KINDS else _OPEN_WATER_WEIGHT for name in BASE_SUBJECTS]
    )
    return BASE_SUBJECTS[rng.choice(len(BASE_SUBJECTS), p=weights / weights.sum())]


def draw_count(rng: np.random.Generator) -> int:
    return int(rng.choice((1, 2, 3), p=(0.56, 0.28, 0.16)))


def render_scene(
    seed: int,
    *,
    size_wh: tuple[int, int] = (128, 128),
    subject: str | None = None,
    num_subjects: int | None = None,
    sea: str | None = None,
    whitecaps: bool | None = None,
) -> Scene:
    """Render one picture; the same arguments give the same bytes.

    Args:
        seed: 0 or more.
        size_wh: Width and height in pixels, each at least 96.
        subject: None draws one of the base world (animals, boats, drift, kelp, rocks, open water;
            never a humpback). ``"open water"`` shows nothing.
        num_subjects: 1 to 3, or None to draw it.
        sea: One of :data:`SEAS`, or None to draw it.
        whitecaps: Whether waves break, or None to draw it.

    Returns:
        The scene; its boxes hold every countable thing in it, as many as the caption says.

    Raises:
        ValueError: The subject, the sea or the number is unknown, or the picture too small.
    """
    if min(size_wh) < 96:
        raise ValueError(f"size_wh: {size_wh} is too small, things need at least 96 x 96 pixels")
    rng = np.random.default_rng(seed)
    conditions = draw_conditions(rng, sea, whitecaps)
    drawn_subject, drawn_count = _draw_subject(rng), draw_count(rng)
    subject = drawn_subject if subject is None else subject
    count = drawn_count if num_subjects is None else num_subjects
    caption = plan_caption(subject, count, conditions.sea, conditions.whitecaps)
    shape_hw = (size_wh[1], size_wh[0])
    things: list[Placed] = []
    if subject != OPEN_WATER:
        number = int(rng.integers(1, 3)) if subject in UNCOUNTED else count
        things = put_things(rng, subject, number, np.zeros(shape_hw, np.bool_), conditions)
    image = paint(np.random.default_rng((seed, 1)), shape_hw, conditions, things)
    boxes = tuple(to_box(thing, shape_hw) for thing in things if thing.name not in UNCOUNTED)
    return Scene(image, caption, boxes, conditions.sea)

"""phantom-cardiac: short-axis stacks of synthetic hearts from four sites that differ as hospitals do."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from toolkit.data.phantoms.appearance import Scanner, acquire, shading
from toolkit.data.phantoms.fields import average_down, paint, smooth_field, soft_inside
from toolkit.data.phantoms.heart import Heart, HeartSlice, direction, sample_heart, slice_heart
from toolkit.data.phantoms.phantom import Phantom
from toolkit.data.phantoms.stream import Stream
from toolkit.data.phantoms.thorax import Grid, Signals, Thorax, draw_thorax, sample_thorax
from toolkit.errors import DataError

Floats = NDArray[np.float64]

# The files that decide the bytes; a change in another phantom's file leaves this task's cache and index valid.
SOURCES = ("appearance.py", "cardiac.py", "fields.py", "heart.py", "stream.py", "thorax.py")
CLASSES = {0: "background", 1: "RV", 2: "myocardium", 3: "LV"}
SIZE = 96
_FINE = 2  # grid points per pixel along each axis before averaging
_TASK_KEY = 71  # keeps this task's random numbers apart from the other phantoms'


@dataclass(frozen=True)
class Site:
    """One hospital: its sequence, scanner, planning habits and patients.

    Attributes:
        description: one line for people.
        signals: signal of each tissue, about [0, 1].
        scanner: see `Scanner`.
        spacing: side of a pixel, mm.
        slice_spacing: distance between slices, mm.
        turn: mean rotation of the whole scene in the image, degrees.
        turn_spread: standard deviation of it.
        groups: share of each pathology group.
        round_view: True where the scanner keeps only a disc of the image.
    """

    description: str
    signals: Signals
    scanner: Scanner
    spacing: float
    slice_spacing: float
    turn: float
    turn_spread: float
    groups: dict[str, float] = field(default_factory=dict)
    round_view: bool = False


_BALANCED = {"normal": 0.2, "dilated": 0.2, "hypertrophic": 0.2, "infarct": 0.2, "abnormal_rv": 0.2}

_SITES = {
    "A": Site(
        "like balanced steady-state cine, 1.5 T: bright blood, dark wall, little noise; all groups",
        {
            "air": 0.01,
            "lung": 0.05,
            "fat": 0.85,
            "muscle": 0.22,
            "bone": 0.34,
            "myocardium": 0.24,
            "blood": 0.70,
            "right_blood": 0.62,
            "scar": 0.26,
            "liver": 0.25,
            "spleen": 0.36,
            "fluid": 0.75,
        },
        Scanner(curve=1.0, bias=0.06, coil=0.25, blur=(0.45, 0.45), noise=0.012, gain=900.0),
        spacing=2.0,
        slice_spacing=10.0,
        turn=0.0,
        turn_spread=8.0,
        groups=_BALANCED,
    ),
    "B": Site(
        "like balanced steady-state cine, 3 T, another vendor: strong coil shading, darker middle tones, disc-shaped view",
        {
            "air": 0.01,
            "lung": 0.07,
            "fat": 1.0,
            "muscle": 0.25,
            "bone": 0.40,
            "myocardium": 0.30,
            "blood": 0.62,
            "right_blood": 0.54,
            "scar": 0.32,
            "liver": 0.28,
            "spleen": 0.40,
            "fluid": 0.85,
        },
        Scanner(curve=1.6, bias=0.15, band=0.5, coil=0.6, blur=(0.6, 0.6), noise=0.022, gain=1900.0),
        spacing=1.75,
        slice_spacing=8.0,
        turn=38.0,
        turn_spread=12.0,
        round_view=True,
        groups={"normal": 0.25, "dilated": 0.05, "hypertrophic": 0.55, "infarct": 0.05, "abnormal_rv": 0.10},
    ),
    "C": Site(
        "like spoiled gradient-echo cine with damped fat: low blood-wall contrast, noise, blur, a wide view",
        {
            "air": 0.01,
            "lung": 0.06,
            "fat": 0.48,
            "muscle": 0.32,
            "bone": 0.24,
            "myocardium": 0.34,
            "blood": 0.64,
            "right_blood": 0.60,
            "scar": 0.36,
            "liver": 0.40,
            "spleen": 0.42,
            "fluid": 0.35,
        },
        Scanner(curve=0.8, bias=0.12, coil=0.5, blur=(0.75, 0.6), noise=0.030, gain=300.0),
        spacing=2.3,
        slice_spacing=10.0,
        turn=-14.0,
        turn_spread=12.0,
        groups={"normal": 0.10, "dilated": 0.45, "hypertrophic": 0.05, "infarct": 0.35, "abnormal_rv": 0.05},
    ),
    "D": Site(
        "like T1-weighted black-blood spin echo: dark blood, grey wall, bright fat; right-heart patients",
        {
            "air": 0.01,
            "lung": 0.05,
            "fat": 0.95,
            "muscle": 0.46,
            "bone": 0.60,
            "myocardium": 0.48,
            "blood": 0.16,
            "right_blood": 0.20,
            "scar": 0.42,
            "liver": 0.55,
            "spleen": 0.42,
            "fluid": 0.20,
        },
        Scanner(curve=1.2, bias=0.10, coil=0.6, blur=(0.6, 0.75), noise=0.03, gain=1400.0),
        spacing=2.1,
        slice_spacing=9.0,
        turn=18.0,
        turn_spread=10.0,
        groups={"normal": 0.30, "dilated": 0.10, "hypertrophic": 0.10, "infarct": 0.10, "abnormal_rv": 0.40},
    ),
}

SITES: tuple[str, ...] = tuple(_SITES)
DESCRIPTIONS: dict[str, str] = {name: site.description for name, site in _SITES.items()}
_SPLITS = {"train": range(20), "val": range(20, 24), "test": range(24, 32)}
SUBJECTS: dict[str, dict[str, list[int]]] = {
    name: {split: list(numbers) for split, numbers in _SPLITS.items()} for name in SITES
}


def group_of(site: str, subject: int) -> str:
    """Pathology group of a subject: the site's shares, evenly spread over any run of subject numbers."""
    # Multiples of the golden section modulo 1 fill [0, 1) evenly, in integers to stay exact.
    place = ((subject + 1) * 40503 % 65536) / 65536
    names, shares = zip(*_SITES[site].groups.items(), strict=True)
    total = 0.0
    for name, share in zip(names, shares, strict=True):
        total += share
        if place < total:
            return str(name)
    return str(names[-1])


def generate(site: str, subject: int, seed: int = 0) -> Phantom:
    """Draw one subject's stack, base first.

    Every random number comes from raw PCG64 words keyed by (seed, site, subject), and pixels are made with additions,
    multiplications, divisions and square roots only before they are rounded to whole grey values; so the same
    arguments give the same bytes wherever float64 follows IEEE 754.

    Args:
        site: one of `SITES`.
        subject: number of the subject, 0 or more; `SUBJECTS` lists the usual ones and their splits.
        seed: another seed draws another population.

    Returns:
        Phantom: 6 to 8 slices of 96 x 96.

    Raises:
        DataError: for an unknown site or a negative number.
    """
    if site not in _SITES:
        raise DataError(f"There is no site {site!r}.", where="phantom-cardiac", fix=f"Use one of {list(SITES)}.")
    if subject < 0 or seed < 0:
        raise DataError(f"Subject and seed must be 0 or more, not {subject} and {seed}.", where="phantom-cardiac")
    settings = _SITES[site]
    key = (seed, _TASK_KEY, SITES.index(site), subject)
    stream = Stream(*key, 0)
    group = group_of(site, subject)
    heart = sample_heart(stream, group)
    scene = _sample_scene(stream, settings, heart)
    slices = [_draw_slice(Stream(*key, 1 + k), settings, scene, level) for k, level in enumerate(scene.levels)]
    split = next((name for name, numbers in SUBJECTS[site].items() if subject in numbers), "train")
    return Phantom(
        image=np.stack([image for image, _ in slices]),
        label=np.stack([label for _, label in slices]),
        spacing=(settings.spacing, settings.spacing),
        slice_spacing=settings.slice_spacing,
        group=group,
        split=split,
        site=site,
        subject=subject,
    )


@dataclass(frozen=True)
class _Scene:
    """One subject in one scanner."""

    heart: Heart
    thorax: Thorax
    levels: tuple[float, ...]
    turn: tuple[float, float]
    septum: tuple[float, float]
    centre: tuple[float, float]
    tilt: tuple[float, float]
    signals: Signals
    shading: Floats


def _sample_scene(stream: Stream, site: Site, heart: Heart) -> _Scene:
    count = stream.integer(6, 8)
    last = stream.uniform(0.86, 0.97)
    left = heart.epicardium + heart.right_depth + 3.0
    return _Scene(
        heart=heart,
        thorax=sample_thorax(stream, heart.epicardium, left),
        levels=tuple(0.03 + (last - 0.03) * k / (count - 1) for k in range(count)),
        turn=direction(stream.normal(site.turn, site.turn_spread)),
        septum=direction(180.0 + stream.normal(0.0, 13.0)),
        centre=(stream.normal(-8.0, 6.0), stream.normal(0.0, 6.0)),
        tilt=(stream.normal(0.0, 8.0), stream.normal(0.0, 5.0)),
        signals={name: stream.near(value, 0.08) for name, value in site.signals.items()},
        shading=shading(stream, (SIZE, SIZE), site.scanner),
    )


def _draw_slice(
    stream: Stream, site: Site, scene: _Scene, level: float
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Image and label of one slice."""
    pitch = site.spacing / _FINE
    centre = (
        scene.centre[0] + scene.tilt[0] * level + stream.normal(0.0, 1.2),
        scene.centre[1] + scene.tilt[1] * level + stream.normal(0.0, 1.2),
    )
    grid = Grid.turned(SIZE * _FINE, pitch, scene.turn, centre)
    c, s = scene.septum
    cut = slice_heart(scene.heart, level, grid.x * c + grid.y * s, grid.y * c - grid.x * s)
    canvas = draw_thorax(stream, scene.thorax, level, grid, scene.signals)
    _draw_heart(stream, canvas, scene, cut, level, pitch)
    scanned = acquire(stream, average_down(canvas, (_FINE, _FINE)), scene.shading, site.scanner)
    if site.round_view:
        at = np.arange(SIZE) + 0.5 - 0.5 * SIZE
        scanned *= at[:, None] ** 2 + at[None, :] ** 2 < (0.49 * SIZE) ** 2
    return scanned, _label(cut)


def _label(cut: HeartSlice) -> NDArray[np.uint8]:
    """Class of every pixel from the signed distances at its centre."""
    epicardium, endocardium, right = (
        average_down(field, (_FINE, _FINE)) for field in (cut.epicardium, cut.endocardium, cut.right)
    )
    label = np.zeros(epicardium.shape, dtype=np.uint8)
    label[right < 0.0] = 1
    label[epicardium < 0.0] = 2
    label[(endocardium < 0.0) & (epicardium < 0.0)] = 3
    return label


def _draw_heart(stream: Stream, canvas: Floats, scene: _Scene, cut: HeartSlice, level: float, pitch: float) -> None:
    """Lay fat, right ventricle, wall and cavity over the surroundings."""
    signals = scene.signals
    coarse = smooth_field(stream, canvas.shape, (6, 6))
    fine = smooth_field(stream, canvas.shape, (28, 28))
    # A thick slice through a tapering heart blurs its borders.
    width = pitch + 0.12 * cut.slope * min(1.0, level + 0.2)
    fat = cut.envelope - scene.thorax.pericardial_fat * np.clip(0.5 + 0.9 * coarse, 0.0, 2.5)
    _draw_great_vessel(canvas, scene, cut, level, pitch)
    paint(canvas, signals["fat"] * 0.9, soft_inside(fat, pitch))
    paint(canvas, signals["myocardium"], soft_inside(cut.envelope, pitch))
    _draw_right(canvas, signals, cut, width, fine)
    wall = signals["myocardium"] + (signals["scar"] - signals["myocardium"]) * cut.scar
    paint(canvas, wall * (1.0 + 0.05 * fine), soft_inside(cut.epicardium, width))
    _draw_cavity(canvas, scene.heart, signals, cut, level, width, (coarse, fine), pitch)


def _draw_great_vessel(canvas: Floats, scene: _Scene, cut: HeartSlice, level: float, pitch: float) -> None:
    """The root of the pulmonary artery before the base: blood beside the heart that belongs to no class."""
    if level > 0.2:
        return
    radius = scene.thorax.aorta[2] * (1.1 - level)
    dx = cut.first * cut.radius - 0.45 * cut.outer
    dy = cut.second * cut.radius - (cut.outer + 0.9 * radius)
    vessel = np.sqrt(dx * dx + dy * dy) - radius
    paint(canvas, scene.signals["fat"] * 0.9, soft_inside(vessel - 3.0, pitch))
    paint(canvas, scene.signals["myocardium"], soft_inside(vessel - 1.5, pitch))
    paint(canvas, scene.signals["right_blood"], soft_inside(vessel, pitch))


def _draw_right(canvas: Floats, signals: Signals, cut: HeartSlice, width: float, fine: Floats) -> None:
    """Right ventricular blood with trabeculae along the free wall."""
    blood = signals["right_blood"] * (1.0 + 0.04 * fine)
    near_wall = soft_inside(np.abs(cut.right + 4.0) - 5.0, 6.0)
    strands = np.clip(0.8 * fine - 0.55, 0.0, 0.85) * near_wall
    blood = blood + (signals["myocardium"] - blood) * strands
    paint(canvas, blood, soft_inside(cut.right, width))


def _draw_cavity(
    canvas: Floats,
    heart: Heart,
    signals: Signals,
    cut: HeartSlice,
    level: float,
    width: float,
    fields: tuple[Floats, Floats],
    pitch: float,
) -> None:
    """Left ventricular blood, trabeculated border and papillary muscles (all of it labelled as cavity)."""
    coarse, fine = fields
    blood = signals["blood"] * (1.0 + 0.03 * coarse + 0.03 * fine)
    rough = np.clip(fine - 0.3, 0.0, 1.5) * soft_inside(np.abs(cut.endocardium + 1.5) - 2.0, 2.0)
    blood = blood + (signals["myocardium"] - blood) * np.clip(rough, 0.0, 0.8)
    if 0.15 < level < 0.8 and cut.inner > 8.0:
        for px, py, place, size in heart.papillary:
            reach = place * cut.inner * (0.9 + 0.25 * level)
            along = cut.first * px + cut.second * py
            across = (cut.second * px - cut.first * py) * cut.radius
            outwards = 0.7 * (along * cut.radius - reach)
            muscle = np.sqrt(outwards * outwards + across * across) + 1.4 * fine
            muscle -= size * min(1.0, cut.inner / 18.0)
            blood = blood + (signals["myocardium"] - blood) * soft_inside(muscle, 2.0 * pitch)
    paint(canvas, blood, soft_inside(np.maximum(cut.endocardium, cut.epicardium), width))

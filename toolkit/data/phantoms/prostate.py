"""phantom-prostate: axial T2-like volumes of synthetic prostates with two zones, from six sites of different size.

Each volume runs from the apex (slice 0, below) to the base under the bladder. The peripheral zone is a bright crescent
behind and around the darker, nodular transition zone; the rectum lies behind, the pubic bones in front, muscles and
fat at the sides.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from toolkit.data.phantoms import fields
from toolkit.data.phantoms.fields import Floats, Stream, paint, soft_inside
from toolkit.data.phantoms.phantom import Drawn, Generator, Site

SHAPE = (16, 64, 64)
_FINE = (2, 2, 2)
_Gland = SimpleNamespace  # one patient; lengths in mm
_Axes = tuple[Floats, Floats, Floats]


def _draw(settings: Site, group: str, stream: Callable[[int], Stream]) -> Drawn:
    """16 axial slices of 64 x 64, labels 1 peripheral and 2 transition zone."""
    anatomy, levels = stream(0), settings.signals
    gland = _sample(anatomy, group)
    tissues = {**levels, "gas": 0.02, "bone": 0.45 * levels["fat"], "capsule": 0.6 * levels["muscle"]}
    signals = {name: anatomy.near(value, 0.06) for name, value in tissues.items()}
    canvas, outer, inner = _paint(stream(1), settings, gland, signals)
    whole = fields.average_down(outer, _FINE) < 0.0
    core = fields.average_down(inner, _FINE) < 0.0
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[whole] = 1
    label[whole & core] = 2
    _, back, side = _axes(settings, gland, (1, 1, 1))
    away = back - gland.half[1] - 0.6 * gland.rectum  # from a coil in the rectum, whose brightness falls off
    flare = 1.0 + settings.coil_flare / (1.0 + (away * away + side * side) * (1.0 / 22.0**2))
    field = fields.shading(anatomy, SHAPE, settings.scanner) * (flare / (1.0 + 0.35 * settings.coil_flare))
    return fields.acquire(stream(2), fields.average_down(canvas, _FINE), field, settings.scanner), label


def _sample(stream: Stream, group: str) -> _Gland:
    enlarged = group == "enlarged"
    width = stream.uniform(25.0, 29.0) if enlarged else stream.uniform(21.0, 25.0)
    depth = width * (stream.uniform(0.76, 0.9) if enlarged else stream.uniform(0.62, 0.76))
    share = stream.uniform(0.74, 0.84) if enlarged else stream.uniform(0.52, 0.66)
    return _Gland(
        half=(stream.uniform(18.0, 22.0), depth, width),
        centre=(stream.normal(-2.0, 2.0), stream.normal(-3.0, 2.0), stream.normal(0.0, 2.0)),
        inner=(share * stream.uniform(0.95, 1.05), share),
        inner_lift=stream.uniform(0.18, 0.28) * depth,
        rectum=stream.uniform(9.0, 14.0),
        gas=stream.uniform(0.0, 0.75),
        bladder=stream.uniform(16.0, 28.0),
        hips=stream.uniform(33.0, 38.0),
        fat=stream.uniform(3.0, 7.0),
    )


def _axes(site: Site, gland: _Gland, factors: tuple[int, int, int]) -> _Axes:
    """Upwards (towards the bladder), backwards and sideways from the gland's middle, mm."""
    up, back, side = fields.centred_axes(SHAPE, factors, (site.slice_spacing, site.spacing, site.spacing))
    middle = gland.centre
    return ((up - middle[0])[:, None, None], (back - middle[1])[None, :, None], (side - middle[2])[None, None, :])


def _ellipsoid(axes: _Axes, middle: tuple[float, ...], half: tuple[float, ...]) -> Floats:
    """About the signed distance (mm) to an ellipsoid along the axes."""
    squares = [((axis - at) * (1.0 / size)) ** 2 for axis, at, size in zip(axes, middle, half, strict=True)]
    return (np.sqrt(squares[0] + squares[1] + squares[2]) - 1.0) * min(half)


def _paint(stream: Stream, site: Site, gland: _Gland, signals: dict[str, float]) -> _Axes:
    """Tissue signals and the signed distances to the gland and to its transition zone."""
    axes = _axes(site, gland, _FINE)
    size, pitch = tuple(n * f for n, f in zip(SHAPE, _FINE, strict=True)), site.spacing / _FINE[1]
    coarse, texture = fields.smooth_field(stream, size, (4, 5, 5)), fields.smooth_field(stream, size, (10, 26, 26))
    canvas = _draw_pelvis(gland, signals, axes, coarse, texture, pitch)
    relief = 0.5 * fields.smooth_field(stream, size, (6, 10, 10))
    outer = _ellipsoid(axes, (0.0, 0.0, 0.0), gland.half) + relief
    half = (0.8 * gland.half[0], gland.inner[0] * gland.half[1], gland.inner[1] * gland.half[2])
    inner = _ellipsoid(axes, (4.0, -gland.inner_lift, 0.0), half) - 1.4 * relief
    nodules = fields.smooth_field(stream, size, (6, 12, 12))
    paint(canvas, signals["capsule"], soft_inside(outer - 0.9, pitch))
    paint(canvas, signals["peripheral"] * (1.0 + 0.08 * coarse + 0.05 * texture), soft_inside(outer, pitch))
    core = signals["transition"] * np.clip(1.0 + 0.22 * nodules + 0.05 * texture, 0.5, 1.5)
    both = soft_inside(np.maximum(inner, outer), pitch)
    paint(canvas, signals["capsule"], soft_inside(np.abs(inner) - 0.5, pitch) * soft_inside(outer, pitch))
    paint(canvas, core, both)
    urethra = np.sqrt(axes[2] ** 2 + (axes[1] + 0.15 * gland.half[1]) ** 2) - 1.6
    paint(canvas, signals["fluid"], 0.6 * soft_inside(urethra, 2.0 * pitch) * soft_inside(outer, pitch))
    return canvas, outer, inner


def _draw_pelvis(
    gland: _Gland, signals: dict[str, float], axes: _Axes, coarse: Floats, texture: Floats, pitch: float
) -> Floats:
    """Fat, obturator and levator muscles, pubic bones, rectum with gas, and the bladder above."""
    up, back, side = axes
    canvas = signals["fat"] * (1.0 + 0.06 * coarse + 0.04 * texture)
    lateral = np.abs(side)
    hip = gland.hips - lateral + 0.10 * np.abs(back) + 1.5 * coarse
    paint(canvas, signals["muscle"] * (1.0 + 0.08 * texture), soft_inside(hip, pitch))
    paint(canvas, signals["bone"] * (1.0 + 0.08 * texture), soft_inside(hip + 11.0, pitch))
    levator = np.abs(lateral - gland.half[2] - gland.fat + 0.02 * up * up + 0.006 * back * back) - 1.5
    paint(canvas, signals["muscle"], soft_inside(levator, pitch) * soft_inside(-back - 14.0, 4.0))
    pubis = np.sqrt(((lateral - 13.0) / 11.0) ** 2 + ((back + gland.half[1] + 13.0) / 7.0) ** 2) - 1.0
    low = soft_inside(up - 6.0, 8.0)
    paint(canvas, signals["muscle"], soft_inside(8.0 * pubis - 2.0, pitch) * low)
    paint(canvas, signals["bone"], soft_inside(8.0 * pubis, pitch) * low)
    middle = gland.half[1] + 0.75 * gland.rectum
    rectum = np.sqrt((side / 1.25) ** 2 + (back - middle) ** 2) - gland.rectum + 1.0 * coarse
    paint(canvas, signals["muscle"], soft_inside(rectum, pitch))
    content = signals["gas"] + (1.0 - gland.gas) * 0.5 * signals["fluid"]
    paint(canvas, content * (1.0 + 0.15 * texture), soft_inside(rectum + 3.0, pitch))
    top = gland.half[0] + 0.55 * gland.bladder
    bladder = _ellipsoid(axes, (top, -6.0, 0.0), (gland.bladder, 1.1 * gland.bladder, 1.3 * gland.bladder))
    paint(canvas, signals["muscle"], soft_inside(bladder - 2.5, pitch))
    paint(canvas, signals["fluid"], soft_inside(bladder, pitch))
    return canvas


TASK = Generator("phantom-prostate", version=1, key=73, draw=_draw)

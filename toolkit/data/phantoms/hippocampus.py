"""phantom-hippocampus: small anisotropic volumes around a synthetic hippocampus, in three intensity families.

Each volume runs from posterior (slice 0) to anterior; rows run downwards, columns from lateral to medial or the other
way round (left and right sides). The hippocampus is a bent tube: a thick head in front (anterior) and a thin body and
tail behind (posterior), between the ventricle's horn above and the white matter and folded cortex below; the amygdala
before the head has nearly the same grey value and belongs to no class.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from toolkit.data.phantoms import fields
from toolkit.data.phantoms.fields import Floats, Stream, paint, soft_inside
from toolkit.data.phantoms.phantom import Drawn, Generator, Site

SHAPE = (24, 48, 48)
_FINE = (2, 2, 2)
_Shape = SimpleNamespace  # one hippocampus; mm, along the front-to-back axis from the middle of the volume


def _draw(settings: Site, group: str, stream: Callable[[int], Stream]) -> Drawn:
    """24 coronal slices of 48 x 48, labels 1 anterior and 2 posterior."""
    anatomy = stream(0)
    shape = _sample(anatomy, group)
    signals = {name: anatomy.near(value, 0.06) for name, value in settings.signals.items()}
    axes = fields.centred_axes(SHAPE, _FINE, (settings.slice_spacing, settings.spacing, settings.spacing))
    # Along the hippocampus, across it (medial positive) and above it, mm, on the fine grid.
    along: Floats = axes[0][:, None, None]
    back = np.clip(along - 6.0, None, 0.0)
    across = axes[2][None, None, :] * (-1.0 if shape.mirrored else 1.0)
    across = across - shape.shift[0] - shape.medial * back * back
    up = -axes[1][None, :, None] - shape.shift[1] + shape.descent * along - shape.curl * along * along
    canvas, distance = _paint(stream(1), shape, signals, settings.spacing / _FINE[1], (along, across, up))
    label = np.zeros(SHAPE, dtype=np.uint8)
    inside = fields.average_down(distance, _FINE) < 0.0
    front = fields.average_down(np.broadcast_to(along, distance.shape), _FINE) >= shape.border
    label[inside & front] = 1
    label[inside & ~front] = 2
    field = fields.shading(anatomy, SHAPE, settings.scanner)
    return fields.acquire(stream(2), fields.average_down(canvas, _FINE), field, settings.scanner), label


def _sample(stream: Stream, group: str) -> _Shape:
    size = 0.8 if group == "atrophy" else 1.0
    half = stream.uniform(17.0, 20.0)
    middle = stream.normal(-1.0, 1.2)
    return _Shape(
        middle=middle,
        half=half,
        head=size * stream.uniform(5.6, 7.0),
        body=size * stream.uniform(4.0, 4.9),
        tail=size * stream.uniform(2.6, 3.4),
        border=middle + stream.uniform(0.08, 0.22) * half,
        descent=stream.uniform(0.2, 0.42),
        curl=stream.uniform(0.002, 0.008),
        medial=stream.uniform(0.006, 0.016),
        bean=stream.uniform(0.0, 0.035),
        horn=stream.uniform(0.6, 1.4) + (1.2 if group == "atrophy" else 0.0),
        shift=(stream.normal(0.0, 2.0), stream.normal(0.0, 2.0)),
        mirrored=stream.uniform() < 0.5,
    )


def _paint(
    stream: Stream, shape: _Shape, signals: dict[str, float], pitch: float, grid: tuple[Floats, Floats, Floats]
) -> tuple[Floats, Floats]:
    """Tissue signals and the signed distance to the hippocampus."""
    along, across, up = grid
    size = np.broadcast_shapes(along.shape, across.shape, up.shape)
    coarse, texture = fields.smooth_field(stream, size, (4, 4, 4)), fields.smooth_field(stream, size, (12, 24, 24))
    distance = _tube(shape, along, across, up) + 0.35 * fields.smooth_field(stream, size, (8, 8, 8))
    canvas = signals["white"] * (1.0 + 0.03 * texture + 0.04 * coarse)
    # Cortical ribbons with fluid in the sulci: level sets of a smooth field, below the hippocampus.
    folds, region = np.abs(fields.smooth_field(stream, canvas.shape, (4, 8, 8))), soft_inside(up + 7.0, 4.0)
    paint(canvas, signals["grey"], soft_inside(5.0 * (folds - 0.6), 2.0 * pitch) * region)
    paint(canvas, signals["fluid"], soft_inside(5.0 * (folds - 0.11), 2.0 * pitch) * region)
    _deep_grey(canvas, signals, along, across, up + 0.9 * coarse, pitch)
    below = soft_inside(up + 0.3 * across + 1.0, 3.0)
    paint(canvas, signals["grey"], soft_inside(np.abs(distance - 4.5) - 1.6, pitch) * below)
    paint(canvas, signals["white"], soft_inside(distance - 2.2 - 0.6 * coarse, pitch) * below)
    horn = distance - shape.horn * np.clip(1.0 + 0.7 * coarse, 0.1, None)
    paint(canvas, signals["fluid"], soft_inside(horn, pitch) * (1.0 - below))
    paint(canvas, signals["hippocampus"] * (1.0 + 0.05 * texture), soft_inside(distance, pitch))
    strand = soft_inside(np.abs(distance + 1.9) - 0.35, 1.2) * np.clip(texture, 0.0, 1.0)
    paint(canvas, signals["white"], 0.6 * strand)
    return canvas, distance


def _tube(shape: _Shape, along: Floats, across: Floats, up: Floats) -> Floats:
    """About the signed distance (mm, negative inside) to the bent tube."""
    place = (along - shape.middle) * (1.0 / shape.half)
    radius = shape.body + (shape.head - shape.body) * fields.smooth_step(place, -0.1, 0.6)
    radius = radius + (shape.tail - shape.body) * fields.smooth_step(-place, 0.35, 0.95)
    square = place * place
    radius = radius * np.sqrt(np.clip(1.0 - square * square * square, 0.0, 1.0))
    bent = up + shape.bean * across * across
    from_axis = np.sqrt((across * (1.0 / 1.35)) ** 2 + (bent * (1.0 / 0.82)) ** 2)
    return from_axis - radius + 4.0 * np.clip(square - 1.0, 0.0, None)


def _deep_grey(
    canvas: Floats, signals: dict[str, float], along: Floats, across: Floats, up: Floats, pitch: float
) -> None:
    """Thalamus and brain stem above and medially, the amygdala before the head, a vessel in the cleft."""
    thalamus = np.sqrt(((across - 14.0) / 16.0) ** 2 + ((up - 16.0) / 10.0) ** 2 + (along / 26.0) ** 2)
    paint(canvas, signals["deep"], soft_inside(10.0 * (thalamus - 1.0), 4.0))
    amygdala = np.sqrt(((across - 1.0) / 9.0) ** 2 + ((up - 8.0) / 7.0) ** 2 + ((along - 19.0) / 8.0) ** 2)
    paint(canvas, signals["grey"], soft_inside(7.0 * (amygdala - 1.0), pitch))
    cleft = np.abs(up - 4.5 - 0.25 * across) - 0.8
    paint(canvas, signals["fluid"], soft_inside(cleft, pitch) * soft_inside(5.0 - across, 3.0))
    vessel = np.sqrt((across - 13.0) ** 2 + (up - 4.0) ** 2) - 1.3
    paint(canvas, signals["vessel"], soft_inside(vessel, pitch) * np.ones_like(along))


TASK = Generator("phantom-hippocampus", version=1, key=72, draw=_draw)

"""Geometry of a heart in short-axis slices: left ventricle, right ventricular crescent, papillary muscles.

Everything is in millimetres in the heart's own frame: origin on the left ventricle's axis, first axis towards the septum
(and the right ventricle), second axis towards the anterior wall. `level` runs from 0 (mitral plane) to 1 (apex).
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from toolkit.data.phantoms.fields import Floats, Stream, smooth_step

# (epicardial radius, wall thickness, right ventricular depth) in mm, at the base in diastole.
_SIZES = {
    "normal": (33.0, 9.0, 27.0),
    "dilated": (41.0, 8.0, 26.0),
    "hypertrophic": (35.0, 14.0, 22.0),
    "infarct": (36.0, 9.0, 25.0),
    "abnormal_rv": (32.0, 9.0, 38.0),
}


Heart = SimpleNamespace  # one subject's heart; lengths in mm, angles as (cosine, sine) from the septal direction


def direction(degrees: float) -> tuple[float, float]:
    """Cosine and sine, rounded so that no machine's last bit matters."""
    return round(float(np.cos(np.deg2rad(degrees))), 9), round(float(np.sin(np.deg2rad(degrees))), 9)


def sample_heart(stream: Stream, group: str) -> Heart:
    """Draw a heart of this pathology group, at some moment between end diastole and end systole."""
    radius, wall, depth = _SIZES[group]
    stiff = group in ("dilated", "infarct")
    systole = stream.uniform(0.0, 0.35 if stiff else 1.0)
    radius, wall, depth = stream.near(radius, 0.11), stream.near(wall, 0.14), stream.near(depth, 0.16)
    cavity = (radius - wall) * (1.0 - 0.28 * systole)
    wall = wall * (1.0 + 0.32 * systole)
    scarred = group == "infarct"
    return Heart(
        epicardium=cavity + wall,  # outer radius of the left ventricle at the base
        wall=wall,  # thickness of the wall at the base
        # relative extra thickness of the septum
        septal_excess=stream.uniform(0.15, 0.6) if group == "hypertrophic" else stream.uniform(-0.05, 0.15),
        right_depth=depth * (1.0 - 0.3 * systole),  # largest depth of the right ventricle at the base
        right_skew=stream.uniform(-0.15, 0.45),  # how much of that depth moves to the anterior side (outflow tract)
        right_point=stream.uniform(0.35, 0.95),  # 0 a crescent that hugs the left ventricle, 1 a triangular one
        # cosine of the angle at which the right ventricle meets the left
        right_reach=stream.uniform(-0.2, 0.12) - (0.15 if group == "abnormal_rv" else 0.0),
        right_length=stream.uniform(0.82, 0.96),  # level at which the right ventricle ends
        bluntness=stream.uniform(0.3, 1.0) if stiff else stream.uniform(0.0, 0.6),  # 0 a pointed apex, 1 a blunt one
        # (cosine, sine) coefficients of the outline's second harmonic, relative
        second=(stream.normal(0.0, 0.03) - (0.05 if group == "abnormal_rv" else 0.0), stream.normal(0.0, 0.03)),
        third=(stream.normal(0.0, 0.015), stream.normal(0.0, 0.015)),  # the same for the third harmonic
        scar=direction(stream.uniform(-180.0, 180.0)) if scarred else None,  # direction of the thinned segment
        scar_reach=direction(stream.uniform(38.0, 65.0))[0],  # cosine of the segment's half angle
        scar_thinning=stream.uniform(0.45, 0.65),  # relative loss of thickness in its middle
        # per muscle: direction (cosine, sine), distance as a fraction of the cavity radius, radius
        papillary=tuple(
            (*direction(stream.normal(angle, 12.0)), stream.uniform(0.55, 0.78), stream.uniform(3.0, 5.4))
            for angle in (115.0, -120.0)
        ),
    )


HeartSlice = SimpleNamespace  # signed distances (mm, negative inside) and directions on one slice's grid


def taper(heart: Heart, level: float) -> float:
    """Outer radius at this level relative to the base."""
    sharp = 0.90 - 0.22 * heart.bluntness
    remaining = 1.0 - sharp * level * level * (0.45 + 0.55 * level)
    return float(np.sqrt(max(remaining, 0.01)))


def slice_heart(heart: Heart, level: float, first: Floats, second: Floats) -> HeartSlice:
    """Cut the heart at a level, on a grid of coordinates in the heart's frame."""
    radius = np.sqrt(first * first + second * second) + 1e-6
    c, s = first / radius, second / radius
    outer = heart.epicardium * taper(heart, level)
    slope = heart.epicardium * (taper(heart, level - 0.05) - taper(heart, level + 0.05)) / 0.1
    epicardium = outer * (1.0 + _outline(heart, c, s))
    thickness = heart.wall * (1.0 - 0.3 * level * level)
    thickness = min(thickness, 0.8 * outer)
    if heart.scar is None:
        scar = np.zeros_like(c)
    else:
        scar = smooth_step(c * heart.scar[0] + s * heart.scar[1], heart.scar_reach, 1.0)
    wall = thickness * (1.0 + heart.septal_excess * np.clip(c, 0.0, None))
    wall *= 1.0 - heart.scar_thinning * np.sqrt(scar)
    inner = outer - thickness

    right = _right_border(heart, level, outer, epicardium, c, s)
    to_epicardium = radius - epicardium
    to_right = np.maximum(radius - right, -to_epicardium)
    return HeartSlice(
        epicardium=to_epicardium,  # to the outer border of the left ventricular wall
        endocardium=radius - (epicardium - wall),  # to its inner border
        right=to_right,  # to the right ventricular cavity
        # to the outside of the whole heart, right ventricular wall included
        envelope=np.minimum(to_epicardium, radius - right - 3.0),
        scar=scar,  # how deep in the thinned segment each direction lies, 0 to 1
        radius=radius,  # distance to the left ventricle's axis
        first=c,  # cosine of the direction from the axis (1 = septum)
        second=s,  # sine of it (1 = anterior)
        outer=outer,  # radius of the left ventricle at this level, mm
        inner=inner,  # radius of its cavity, mm
        slope=slope,  # how fast that radius shrinks along the axis, mm per unit of level
    )


def _outline(heart: Heart, c: Floats, s: Floats) -> Floats:
    """Relative excess of the radius in the direction (c, s): second and third harmonics."""
    cos2, sin2 = 2.0 * (c * c) - 1.0, 2.0 * (c * s)
    outline = heart.second[0] * cos2 + heart.second[1] * sin2
    return outline + (heart.third[0] * (c * cos2 - s * sin2) + heart.third[1] * (s * cos2 + c * sin2))


def _right_border(heart: Heart, level: float, outer: float, epicardium: Floats, c: Floats, s: Floats) -> Floats:
    """Radius of the right ventricle's free wall in each direction; the epicardium where there is none."""
    share = level / heart.right_length
    left = 1.0 - share * float(np.sqrt(share))
    if left <= 0.0:
        return epicardium - 3.0
    depth = heart.right_depth * left * min(1.0, outer / heart.epicardium + 0.15)
    span = np.clip((c - heart.right_reach) * (1.0 / (1.0 - heart.right_reach)), 0.0, None)
    point = min(1.0, heart.right_point * (0.8 + 0.5 * level))
    profile = np.sqrt(span) * (1.0 - point + point * span)
    border = epicardium + depth * profile * (1.0 + heart.right_skew * s)
    # Where the crescent has run out there is no cavity: put its border inside the left ventricle's wall.
    return np.where(span > 0.0, border, epicardium - 3.0)

"""Intensity normalisation by a named rule, so that training and prediction cannot disagree."""

from __future__ import annotations

import numpy as np

from toolkit.errors import ConfigError

__all__ = ["normalise"]
DEFAULT = "zscore-clip"
_RULES = {
    "zscore-clip": "clip to the 0.5 and 99.5 percentiles, subtract the mean, divide by the standard deviation",
    "zscore": "subtract the mean, divide by the standard deviation",
    "range": "clip to the 0.5 and 99.5 percentiles, scale to [0, 1]",
    "none": "leave the values as they are",
    "imagenet": "red, green, blue from 0 to 255: over 255, minus ImageNet's means, over its deviations",
    "bgr": "red, green, blue from 0 to 255: over 255, in the order blue, green, red",
}
_MEANS, _DEVIATIONS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of ImageNet, as pre-trained networks expect


def check_rule(rule: str) -> str:
    """Return `rule` if `normalise` knows it."""
    if rule in _RULES:
        return rule
    if rule.startswith(("window:", "range:")):
        _limits(rule)
        return rule
    known = {**_RULES, "range:LOW,HIGH": "other percentiles", "window:LOW,HIGH": "clip to values, scale to [0, 1]"}
    fix = f"Use one of {'; '.join(f'{name!r}: {what}' for name, what in known.items())}."
    raise ConfigError(f"Unknown normalisation {rule!r}.", where="normalisation", fix=fix)


def normalise(array: np.ndarray, rule: str = DEFAULT) -> np.ndarray:
    """Normalise one image (C, *S), each channel on its own over all its voxels.

    A constant channel becomes 0 (nothing is divided by zero).

    Args:
        array: image of one volume, or of one slice where the source holds single slices; any real type.
        rule: `zscore-clip` (default), `zscore`, `range`, `range:LOW,HIGH` (percentiles), `window:LOW,HIGH`, `none`;
            for colours `imagenet` (what pre-trained weights expect) or `bgr` (what OpenCV hands over, scaled).

    Returns:
        float32 array of the same shape.

    Raises:
        ConfigError: unknown rule, or a rule for colours and no three channels from 0 to 255.
    """
    check_rule(rule)
    if rule in ("imagenet", "bgr"):
        return _colours(array, rule)
    if array.shape[0] > 1 and array.strides[0] == 0:  # one channel that is only repeated stays so
        return np.broadcast_to(normalise(array[:1], rule), array.shape)
    image = np.array(array, dtype=np.float32)
    if rule == "none":
        return image
    for channel in image:
        _normalise_channel(channel, rule)
    return image


def fixed_range(rule: str) -> tuple[float, float] | None:
    """The range that a rule brings every image into, or None: networks and losses may rely on [0, 1]."""
    return (0.0, 1.0) if rule == "bgr" or rule.startswith(("range", "window:")) else None


def _colours(array: np.ndarray, rule: str) -> np.ndarray:
    low, high = float(array.min()), float(array.max())
    if array.shape[0] != 3 or low < 0 or high > 255 or (high <= 1 and (array % 1).any()):
        what = f"The rule {rule!r} needs three channels from 0 to 255, not {array.shape[0]} from {low:g} to {high:g}."
        raise ConfigError(what, where="normalisation", fix="Use 'zscore-clip' or 'range' for other images.")
    image = np.asarray(array, dtype=np.float32) / np.float32(255)
    if rule == "bgr":
        return np.ascontiguousarray(image[::-1])
    shape = (3, *[1] * (image.ndim - 1))
    means, deviations = (np.array(values, np.float32).reshape(shape) for values in (_MEANS, _DEVIATIONS))
    return np.asarray((image - means) / deviations, dtype=np.float32)


def _normalise_channel(channel: np.ndarray, rule: str) -> None:
    if rule.startswith("window:"):
        low, high = _limits(rule)
    elif rule == "zscore":
        low, high = float(channel.min()), float(channel.max())
    else:
        percentiles = _limits(rule) if rule.startswith("range:") else (0.5, 99.5)
        low, high = (float(value) for value in np.percentile(channel, percentiles))
        if low == high:  # nearly all voxels are equal: the percentiles would erase what little there is
            low, high = float(channel.min()), float(channel.max())
    np.clip(channel, low, high, out=channel)
    if rule.startswith("zscore"):
        channel -= channel.mean(dtype=np.float64).astype(np.float32)
        deviation = float(channel.std(dtype=np.float64))
        scale = deviation if deviation > 1e-6 * max(abs(low), abs(high), 1e-30) else 0.0
    else:
        channel -= np.float32(low)
        scale = high - low
    if scale > 0:
        channel /= np.float32(scale)
    else:
        channel[...] = 0


def _limits(rule: str) -> tuple[float, float]:
    """The two numbers of a `window:` (values) or `range:` (percentiles)."""
    kind, _, text = rule.partition(":")
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not low < high or (kind == "range" and not 0 <= low < high <= 100):
        what = f"The {kind} in {rule!r} cannot be read."
        raise ConfigError(what, fix="Write it as 'window:-160,240' or 'range:2,98' (low below high).")
    return low, high

"""Augmentation against what SciPy and torch compute for the same transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from toolkit.data.augment import Augmentation, _grid, _rotations, apply
from toolkit.data.table import task_from_arrays

QUIET = {"gain": 0.0, "offset": 0.0, "gamma": 0.0, "noise": 0.0, "flips": False}


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2).astype(np.float32)


@pytest.mark.parametrize("patch", [(7, 5), (4, 6, 3)])
def test_grid_is_affine_grid(patch):
    theta = torch.randn(3, len(patch), len(patch) + 1, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.affine_grid(theta, [3, 1, *patch], align_corners=False)
    torch.testing.assert_close(_grid(theta, patch), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 2.5)])
def test_2d_rotation_zoom_and_shift_against_scipy(spacing):
    """Output voxel o shows input voxel A (o - centre) + centre + shift, with A the rotation in millimetres."""
    patch, margin = (24, 30), (6, 8)
    image = smooth((36, 46))
    numbers = np.array([[0.9, 0.2, 0.8, 0.1, 1, 1, 0.5, 0.5, 0.5, 0.5]])
    strength = Augmentation(rotation=20, scale=0.2, translation=0.05, **QUIET)
    angle = np.deg2rad(20) * 0.8
    zoom = np.exp(np.log(1.2) * -0.6)
    shift = 0.05 * np.array([0.6 * 24, -0.8 * 30])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.diag(1 / np.array(spacing)) @ turn @ np.diag(spacing) * zoom
    centre_out, centre_in = (np.array(patch) - 1) / 2, (np.array(image.shape) - 1) / 2
    offset = centre_in + shift - matrix @ centre_out
    expected = ndimage.affine_transform(image, matrix, offset, output_shape=patch, order=1, mode="nearest")
    label = (image > 0).astype(np.float32)
    moved, classes = apply(
        strength,
        {
            "image": torch.from_numpy(image)[None, None],
            "label": torch.from_numpy(label)[None, None],
            "numbers": numbers,
            "spacing": np.array([spacing]),
        },
        None,
        patch,
        (),
    )
    assert margin == (6, 8)
    np.testing.assert_allclose(moved[0, 0].numpy(), expected, atol=2e-5)
    near = ndimage.affine_transform(label, matrix, offset, output_shape=patch, order=0, mode="nearest")
    assert (classes[0, 0].numpy() != near).mean() < 0.005  # rounding at exact halves


def test_3d_rotations_are_rotations():
    angles = np.random.default_rng(0).uniform(-1, 1, (5, 3))
    matrices = _rotations(angles, 3)
    for matrix, angle in zip(matrices, angles, strict=True):
        about = [np.array([1.0, 0, 0]) * angle[0], np.array([0, -1.0, 0]) * angle[1], np.array([0, 0, 1.0]) * angle[2]]
        expected = np.eye(3)
        for vector in about:
            expected = Rotation.from_rotvec(vector).as_matrix() @ expected
        np.testing.assert_allclose(matrix, expected, atol=1e-12)


def test_3d_shift_moves_along_the_right_axes():
    image = np.zeros((20, 24, 28), np.float32)
    image[10, 12, 14] = 1
    strength = Augmentation(rotation=0, scale=0, translation=0.1, **QUIET)
    numbers = np.full((1, strength.drawn(3)), 0.5)
    numbers[0, 4:7] = [1.0, 0.5, 0.0]  # + 0.1 x 20 along axis 0, - 0.1 x 30 along axis 2
    moved, _ = apply(
        strength,
        {
            "image": torch.from_numpy(image)[None, None],
            "label": torch.zeros(1, 1, 20, 24, 28),
            "numbers": numbers,
            "spacing": np.ones((1, 3)),
        },
        None,
        (20, 24, 30),
        (),
    )
    place = np.argwhere(moved[0, 0].numpy() > 0.9)[0]
    np.testing.assert_array_equal(place, [8, 12, 18])


def test_intensity_follows_its_formula():
    image = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(1)) * 4 - 2
    numbers = np.zeros((3, 10))
    numbers[:, -4:] = np.random.default_rng(2).random((3, 4))
    noise = np.random.default_rng(3).standard_normal((3, 2, 8, 8)).astype(np.float32)
    strength = Augmentation(rotation=0, scale=0, translation=0, flips=False)
    drawn = {"image": image.clone(), "label": torch.zeros(3, 1, 8, 8), "numbers": numbers, "spacing": np.ones((3, 2))}
    changed, _ = apply(strength, drawn, torch.from_numpy(noise), (8, 8), ())
    for row in range(3):
        gain, offset, gamma, noisy = numbers[row, -4:]
        for channel in range(2):
            x = image[row, channel].numpy().astype(np.float64)
            low, high = x.min(), x.max()
            x = ((x - low) / (high - low)) ** np.exp(0.3 * (2 * gamma - 1)) * (high - low) + low
            x = x * (1 + 0.15 * (2 * gain - 1)) + 0.1 * (2 * offset - 1) + 0.1 * noisy * noise[row, channel]
            np.testing.assert_allclose(changed[row, channel].numpy(), x, atol=1e-5)


def test_noise_is_standard_normal_and_differs():
    still = dict.fromkeys(("rotation", "scale", "translation", "gain", "offset", "gamma"), 0)
    settings = {"augmentation": Augmentation(**still, flips=False, noise=1), "batch_size": 2}
    zeros, classes = np.zeros((2, 200, 200), dtype=np.uint8), ["background", "organ"]
    black = task_from_arrays(zeros, zeros, classes=classes, splits="train", normalisation="none")
    loader = black.loader(**settings, patch_size=(200, 200))
    drawn = [loader.draw(step) for step in range(10)]
    assert {*np.sign(np.concatenate([one["numbers"][:, -1] for one in drawn]))} == {-1.0, 1.0}
    first, second = loader.finish(drawn[0])["image"] / torch.from_numpy(drawn[0]["numbers"][:, -1]).view(2, 1, 1, 1)
    assert abs(float(first.mean())) < 0.02
    assert abs(float(first.std()) - 1) < 0.02
    assert abs(float((first * second).mean())) < 0.02
    assert "noise_starts" in drawn[0]
    assert "noise" in black.loader(**settings, patch_size=(1000, 1000)).draw(0), "too long for the sequence"

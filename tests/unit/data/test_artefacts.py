"""Simulated artefacts and the centred cut: reference cases, published ranges, and the derived task."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest
from golden_cases import golden_case
from scipy import stats

from toolkit import registry
from toolkit.data.artefacts import (
    ARTEFACTS,
    apply_artefact,
    crop_or_pad,
    draw_artefact,
    put_back,
    slices_to_unit_range,
    with_artefacts,
)
from toolkit.data.catalogue import load_task
from toolkit.data.table import task_from_arrays
from toolkit.errors import ConfigError, DataError


@pytest.mark.parametrize("name", ["both_larger", "both_smaller", "mixed_a", "mixed_b"])
def test_centred_cut_as_published(name: str) -> None:
    case = golden_case("latent_augmentation", "crop_or_pad")
    arrays, size = case.numbers(), case.entry["hyperparameters"]["target"]
    for what in ("image", "label"):
        made, offsets = crop_or_pad(arrays[f"{name}/{what}"], size)
        assert np.array_equal(made, arrays[f"{name}/out_{what}"])
        assert list(offsets) == arrays[f"{name}/offsets"].tolist()


@pytest.mark.parametrize("shape", [(9, 12), (17, 8), (20, 21), (16, 16)])
def test_a_cut_is_put_back_where_it_was(shape: tuple[int, int]) -> None:
    stack = np.random.default_rng(0).random((2, 3, *shape)) + 1
    cut, offsets = crop_or_pad(stack, (16, 16))
    again = put_back(cut, offsets, shape)
    assert again.shape == stack.shape
    assert np.array_equal(again[again > 0], stack[again > 0])
    assert int((again > 0).sum()) == 6 * min(16, shape[0]) * min(16, shape[1])


def test_artefacts_as_published() -> None:
    arrays = golden_case("latent_augmentation", "artefacts").numbers()
    moves = {key: arrays[f"motion_{key}"] for key in ("degrees", "translation", "times")}
    runs = {
        "bias": ("bias", {"order": 3, "coefficients": arrays["bias_coefficients"].tolist()}),
        "spike": ("spike", {"position": arrays["spike_position"], "intensity": 1.7}),
        "motion": ("motion", moves),
    }
    for axis, ghosts in enumerate((5, 4, 4)):
        runs[f"ghost_axis{axis}"] = ("ghosting", {"num_ghosts": ghosts, "axis": axis, "intensity": 0.8})
    for label, (name, parameters) in runs.items():
        made = apply_artefact(arrays["volume"], name, parameters)
        assert np.abs(made - arrays[f"{label}_raw"]).max() <= 2e-4, label
        assert np.abs(slices_to_unit_range(made) - arrays[f"{label}_out"]).max() <= 2e-4, label


def test_draws_follow_the_published_ranges() -> None:
    drawn = {name: [draw_artefact(name, k) for k in range(400)] for name in ARTEFACTS}

    def uniform(values: object, low: float, high: float) -> None:
        flat = np.ravel(np.asarray(values))
        assert stats.kstest(flat, stats.uniform(low, high - low).cdf).pvalue > 1e-3

    uniform([p["coefficients"] for p in drawn["bias"]], -0.5, 0.5)
    assert {len(p["coefficients"]) for p in drawn["bias"]} == {20}
    assert {p["num_ghosts"] for p in drawn["ghosting"]} == set(range(4, 11))
    assert set(collections.Counter(p["axis"] for p in drawn["ghosting"])) == {0, 1, 2}
    uniform([p["intensity"] for p in drawn["ghosting"]], 0.5, 1)
    uniform([p["degrees"] for p in drawn["motion"]], -30, 30)
    uniform([p["translation"] for p in drawn["motion"]], -10, 10)
    uniform([np.subtract(p["times"], [1 / 3, 2 / 3]) for p in drawn["motion"]], -0.1, 0.1)
    uniform([p["position"] for p in drawn["spike"]], 0, 1)
    uniform([p["intensity"] for p in drawn["spike"]], 1, 3)
    assert draw_artefact("bias", 1, "a") == draw_artefact("bias", 1, "a") != draw_artefact("bias", 1, "b")
    with pytest.raises(ConfigError, match="no artefact"):
        draw_artefact("rain", 0)


def test_the_derived_task() -> None:
    base = load_task("phantom-cardiac", normalisation="range:2,98")
    made = with_artefacts(base, ["bias", "ghosting"], copies=2)
    clean = base.cases("test")
    assert made.sites == ("bias", "ghosting")
    assert len(made) == 4 * len(clean)
    assert {case.subject for case in made.cases()} == {case.subject for case in clean}
    assert len({case.volume for case in made.cases()}) == 4 * len({case.volume for case in clean})
    case = made.cases("test", site="ghosting")[0]
    twin = next(c for c in clean if case.volume.startswith(f"ghosting/{c.volume}_") and c.position == case.position)
    assert np.array_equal(case.label, twin.label)
    assert case.image.shape == twin.image.shape
    assert not np.allclose(case.image, twin.image, atol=0.02)
    assert float(case.image.min()) == 0
    assert float(case.image.max()) == 1
    assert json.loads(case.source.partition(" + ghosting ")[2])["num_ghosts"] in range(4, 11)
    again = registry.build("task", made.toolkit_config)
    assert again.content_hash() == made.content_hash()
    assert np.array_equal(again.cases("test", site="ghosting")[0].image, case.image)
    assert with_artefacts(base, ["bias", "ghosting"], copies=2, seed=1).content_hash() != made.content_hash()


def test_another_rule_is_applied_to_the_corrupted_volume() -> None:
    base = load_task("phantom-cardiac")
    case = with_artefacts(base, ["bias"], copies=1).cases()[0]
    volume = case.reader.pair().image
    assert base.normalisation == "zscore-clip"
    assert abs(float(volume.mean())) < 0.05
    assert float(volume.std()) == pytest.approx(1, abs=0.05)


def test_what_cannot_be_corrupted() -> None:
    pictures = task_from_arrays(
        [np.zeros((32, 32), np.float32)] * 3,
        [np.zeros((32, 32), np.uint8)] * 3,
        classes={0: "a", 1: "b"},
        splits="test",
    )
    with pytest.raises(DataError, match="whole volumes"):
        with_artefacts(pictures, ["bias"]).cases()[0].image_array()
    for wrong in ({"artefacts": ["rain"]}, {"copies": 0}, {"split": "val"}):
        with pytest.raises(ConfigError):
            with_artefacts(pictures, **wrong)

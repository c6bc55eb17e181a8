"""Drift against direct computation, resampled rows, known transformations and its own null."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import exact_distances
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from toolkit.errors import ConfigError, DataError, LayerError, ResultError
from toolkit.measure.distances import linear_cka, median_squared_distance, procrustes
from toolkit.measure.drift import Drift, drift
from toolkit.measure.drift_moments import MomentMeasures, PatientMoments, bootstrap_weights, half_splits, strata
from toolkit.measure.drift_samples import KernelBlocks, SlicedSamples, fixed_directions

LAYER = "head_input"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(channels: int, seed: int = 9) -> Tensor:
    return torch.linalg.qr(normal(channels, channels, seed=seed))[0]


def values_of(result: Drift, name: str = "pooled", start: int = 1, end: int = 2) -> pd.Series:
    table = result.table()
    chosen = table[(table["class"] == name) & (table["from"] == start) & (table["to"] == end)]
    return chosen.set_index("measure")["value"]


def test_values_are_the_plain_distances(make_store: Callable[..., Any]) -> None:
    a = normal(400, 6) * torch.linspace(0.2, 3, 6)
    b = a @ rotation(6) * 1.3 + 0.4
    stores = [make_store(rows, cases=8, classes=3) for rows in (a, b, a + 1)]
    result = drift(stores, LAYER, max_rows=10_000, bootstrap=20)
    members = {"pooled": torch.arange(400)}
    labels = torch.from_numpy(stores[0].cases["class"].to_numpy(copy=True))
    members |= {name: (labels == k).nonzero()[:, 0] for k, name in enumerate(("background", "RV", "LV"))}
    directions = fixed_directions(6, 512, 0)
    x, y = (store.rows(LAYER) for store in stores[:2])
    scale = float(x.double().var(0).mean().sqrt())
    for name, index in members.items():
        one, two = x[index], y[index]
        angles = exact_distances.subspace_angles(one, two, 2)
        expected = {
            "centroid_shift": exact_distances.centroid_shift(one, two, scale),
            "frechet": exact_distances.frechet(one, two),
            "linear_cka": 1 - linear_cka(one, two, debiased=len(index) < 60),
            "procrustes": procrustes(one, two),
            "grassmann_2": angles.square().sum().sqrt(),
            "chordal_2": angles.sin().square().sum().sqrt(),
            "sliced_w2": exact_distances.sliced_wasserstein(one, two, directions),
        }
        got = values_of(result, name)
        for measure, value in expected.items():
            assert got[measure] == pytest.approx(float(value), rel=1e-5, abs=1e-6), (name, measure)
        reference = values_of(result, name, 0, 2)["frechet"]
        assert reference == pytest.approx(float(exact_distances.frechet_to_standard_normal(two)), rel=1e-6)
    table = result.table()
    assert set(zip(table["from"], table["to"], strict=True)) == {(0, 1), (0, 2), (0, 3), (1, 2), (2, 3), (1, 3)}
    inside = table.dropna(subset=["low"])
    assert (inside["low"] <= inside["value"]).all()
    assert (inside["value"] <= inside["high"]).all()
    steps = [values_of(result, "pooled", s, s + 1)["frechet"] for s in (1, 2)]
    means = result.means.set_index(["class", "measure"])["value"]
    assert means["pooled", "frechet"] == pytest.approx(np.mean(steps))


def test_mmd_of_small_samples_is_the_plain_one(make_store: Callable[..., Any]) -> None:
    a, b = normal(300, 4), normal(300, 4, seed=1) + 0.5
    result = drift([make_store(a), make_store(b)], LAYER, max_rows=400, bootstrap=0, null_splits=0)
    exact = exact_distances.maximum_mean_discrepancy(a, b)
    assert values_of(result)["mmd2"] == pytest.approx(float(exact), rel=1e-4)
    assert result.table()["low"].isna().all()


def test_the_kernel_of_mmd_knows_all_rows_and_survives_a_large_mean() -> None:
    """Patients far apart and in order: the median distance is that of all rows, whatever the order and the mean."""
    place = torch.arange(8).repeat_interleave(100)
    a = normal(800, 3) + 20.0 * place[:, None]
    b = a + normal(800, 3, seed=1)
    exact = float(exact_distances.maximum_mean_discrepancy(a, b))
    ones = torch.ones(1, 8, dtype=torch.float64)
    for offset in (0.0, 1e4):
        for order in (torch.arange(800), torch.randperm(800, generator=torch.Generator().manual_seed(0))):
            blocks = KernelBlocks(a[order] + offset, b[order] + offset, place[order], place[order])
            pairs = torch.cat((a, b))
            assert blocks.bandwidth == pytest.approx(median_squared_distance(pairs), rel=1e-4)
            assert float(blocks.discrepancy(ones)) == pytest.approx(exact, abs=1e-5)


def between_stages(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the first two stages, not those against the reference."""
    return table[table["from"] == 1]


def test_cohorts_of_different_patients_are_each_drawn_among_themselves(make_store: Callable[..., Any]) -> None:
    """The README's own use: with all patients in one urn replicates lost a whole cohort and eigh failed."""
    a, b = make_store(normal(240, 5), cases=12), make_store(normal(240, 5, seed=1) + 0.5, cases=12, start=12)
    table = drift([a, b], LAYER, paired=False, bootstrap=100, null_splits=40).table().set_index("measure")
    row = between_stages(table).loc["centroid_shift"]
    scale = float(a.rows(LAYER).double().var(0).mean().sqrt())
    assert row["value"] == pytest.approx(
        float(exact_distances.centroid_shift(a.rows(LAYER), b.rows(LAYER), scale)), rel=1e-5
    )
    subspaces = table.index.isin(["grassmann_2", "chordal_2"])
    assert table["value"].notna().all()
    assert (table[["low", "high"]].notna().all(axis=1) == ~subspaces).all()  # no interval of these held the truth
    assert row["null_high"] < row["low"]
    groups = strata([torch.tensor([0, 1, 1, 2]), torch.tensor([2, 3, 4])], 5)
    assert [group.tolist() for group in groups] == [[2], [0, 1], [3, 4]]
    drawn = bootstrap_weights(groups, 30, seed=0)
    assert all((drawn[:, group].sum(1) == len(group)).all() for group in groups)


def test_a_repeat_of_stage_one_is_a_yardstick_of_the_same_kind(make_store: Callable[..., Any]) -> None:
    a = normal(200, 4)
    stores = [make_store(rows) for rows in (a, a + 0.5 * normal(200, 4, seed=1), a + 2 * normal(200, 4, seed=2))]
    again = make_store(a + 0.1 * normal(200, 4, seed=3))
    options: dict[str, Any] = {"bootstrap": 20, "null_splits": 20}
    table = drift(stores, LAYER, repeat=again, **options).table()
    alone = drift([stores[0], again], LAYER, **options).table()
    alone = alone[alone["from"] == 1].set_index("measure")
    for _, row in table[table["from"] > 0].iterrows():
        expected = alone.loc[row["measure"], ["value", "low", "high"]]
        np.testing.assert_allclose(
            row[["repeat", "repeat_low", "repeat_high"]].to_numpy(float), expected.to_numpy(float)
        )
    assert table.loc[table["from"] == 0, "repeat"].isna().all()
    plain = drift(stores, LAYER, **options).table()
    pd.testing.assert_frame_equal(table[plain.columns], plain)


def resampled(rows: Tensor, clusters: Tensor, weights: Tensor) -> Tensor:
    return torch.cat([rows[clusters == k].repeat(int(w), 1) for k, w in enumerate(weights)])


def test_replicates_are_measures_of_resampled_rows() -> None:
    clusters = torch.arange(240) % 7
    a = normal(240, 5) + normal(7, 5, seed=2)[clusters]
    b = a @ rotation(5) + 0.1 * normal(240, 5, seed=3)
    weights = bootstrap_weights([np.arange(7)], 5, seed=0)
    assert weights[0].tolist() == [1] * 7
    assert (weights.sum(1) == 7).all()
    sums = PatientMoments([a, b], [clusters, clusters], 7, [(0, 1)])
    got = MomentMeasures([(0, 1)], 2.0, [2], True).over(sums, weights)
    for replicate, weight in enumerate(weights):
        one, two = (resampled(rows, clusters, weight) for rows in (a, b))
        expected = {
            "centroid_shift": exact_distances.centroid_shift(one, two, 2.0),
            "frechet": exact_distances.frechet(one, two),
            "linear_cka": 1 - linear_cka(one, two),
            "procrustes": procrustes(one, two),
            "grassmann_2": exact_distances.subspace_angles(one, two, 2).square().sum().sqrt(),
        }
        for name, value in expected.items():
            assert float(got[name, (0, 1)][replicate]) == pytest.approx(float(value), rel=1e-7), name


def test_many_patients_need_no_more_memory_and_give_the_same_numbers() -> None:
    """More patients than replicates: sums are kept for each replicate, as a direct computation shows."""
    clusters = torch.arange(600) % 150
    a = normal(600, 4) + normal(150, 4, seed=2)[clusters]
    b = a @ rotation(4) + 0.3 * normal(600, 4, seed=3)
    weights, halves = bootstrap_weights([np.arange(150)], 20, seed=0), half_splits([np.arange(150)], 10, seed=0)
    single = PatientMoments([a, b], [clusters, clusters], 150, [(0, 1)])
    joint = PatientMoments([a, b], [clusters, clusters], 150, [(0, 1)], torch.cat((weights, halves)))
    assert joint.grams[0].shape == (31, 4, 4)
    measures, eye = MomentMeasures([(0, 1)], 2.0, [2], True), torch.eye(31, dtype=torch.float64)
    expected, got = measures.over(single, weights), measures.over(joint, eye[:21])
    for key, values in expected.items():
        torch.testing.assert_close(got[key], values, rtol=1e-8, atol=1e-10)
    one, two = measures.between_halves(single, halves, weights[:1]), measures.between_halves(joint, eye[21:], eye[:1])
    for name, values in one.items():
        torch.testing.assert_close(two[name], values, rtol=1e-8, atol=1e-10)
    drawn = [resampled(rows, clusters, weights[7]) for rows in (a, b)]
    assert float(got["frechet", (0, 1)][7]) == pytest.approx(float(exact_distances.frechet(*drawn)), rel=1e-9)
    far = KernelBlocks(a[:50], b[:50], clusters[:50] + 10**6, clusters[:50] + 10**6)
    assert far.cross.shape == (50, 50)  # patients of the sampled rows, whatever their number in all


def test_kernel_replicates_leave_out_copies() -> None:
    clusters = torch.arange(60) % 5
    a, b = normal(60, 3), normal(60, 3, seed=1) + 1
    blocks = KernelBlocks(a, b, clusters, clusters)
    weights = torch.tensor([[1.0] * 5, [2.0, 0, 1, 1, 1]], dtype=torch.float64)
    got = blocks.discrepancy(weights)
    exact = exact_distances.maximum_mean_discrepancy(a, b, bandwidth=blocks.bandwidth)
    assert float(got[0]) == pytest.approx(float(exact), rel=1e-5)
    index = torch.cat([(clusters == k).nonzero()[:, 0].repeat(int(w)) for k, w in enumerate(weights[1])])
    different = index[:, None] != index[None, :]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(x[index], y[index]).square() / (2 * blocks.bandwidth))

    expected = kernel(a, a)[different].mean() + kernel(b, b)[different].mean() - 2 * kernel(a, b).mean()
    assert float(got[1]) == pytest.approx(float(expected), rel=1e-4)


def test_sliced_replicates_follow_resampling() -> None:
    clusters = torch.arange(800) % 20
    a = normal(800, 4)
    b = a + 0.5 + 0.8 * normal(20, 4, seed=4)[clusters]
    directions = fixed_directions(4, 64, 0)
    weights = bootstrap_weights([np.arange(20)], 60, seed=1)
    one, two = (SlicedSamples(rows.float(), clusters, directions) for rows in (a, b))
    got = one.distance(two, weights).numpy()
    exact = np.array(
        [
            float(exact_distances.sliced_wasserstein(*(resampled(rows, clusters, w) for rows in (a, b)), directions))
            for w in weights
        ]
    )
    assert got[0] == pytest.approx(exact[0], rel=1e-5)
    assert (got <= exact + 1e-4).all()
    assert np.corrcoef(got[1:], exact[1:])[0, 1] > 0.98
    assert got[1:].std() == pytest.approx(exact[1:].std(), rel=0.15)


def test_rotation_is_raw_drift_only(make_store: Callable[..., Any]) -> None:
    a = normal(1000, 8) * torch.linspace(0.1, 3, 8) + 1
    result = drift([make_store(a), make_store(a @ rotation(8))], LAYER, bootstrap=30)
    got, table = values_of(result), result.table().set_index("measure")
    for measure in ("linear_cka", "procrustes"):
        assert got[measure] == pytest.approx(0, abs=1e-6)
        assert table.loc[measure, "kind"] == "rotation-free"
    for measure in ("centroid_shift", "frechet", "sliced_w2", "mmd2"):
        row = table[(table["kind"] == "raw")].loc[measure]
        assert row["value"] > row["null_high"], measure
    turned = drift([make_store(a @ rotation(8)), make_store(2 * a @ rotation(8))], LAYER, bootstrap=0)
    plain = drift([make_store(a), make_store(2 * a)], LAYER, bootstrap=0)
    for measure in ("frechet", "mmd2", "grassmann_2"):  # a joint rotation changes none of them
        assert values_of(turned)[measure] == pytest.approx(values_of(plain)[measure], rel=1e-3, abs=1e-4)


def test_one_less_a_similarity_ends_at_one(make_store: Callable[..., Any]) -> None:
    stores = [make_store(normal(400, 6, seed=seed), cases=8) for seed in (0, 1)]
    table = drift(stores, LAYER, bootstrap=40).table().set_index(["from", "measure"]).loc[1]
    for measure in ("linear_cka", "procrustes"):
        row = table.loc[measure]
        assert row["status"] == "ok"
        assert 0.7 < row["value"] <= row["high"] <= 1.0, measure


def test_no_drift_is_zero(make_store: Callable[..., Any]) -> None:
    stores = [make_store(normal(300, 5))] * 2
    got = values_of(drift(stores, LAYER, bootstrap=10))
    for measure in ("centroid_shift", "frechet", "linear_cka", "procrustes", "sliced_w2"):
        assert got[measure] == pytest.approx(0, abs=1e-9), measure
    assert abs(got["grassmann_2"]) < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_two_samples_of_one_network_lie_inside_the_null(seed: int, make_store: Callable[..., Any]) -> None:
    patients = normal(20, 6, seed=seed)
    samples = []
    for draw in range(2):
        case = torch.arange(800) % 20
        samples.append(make_store(patients[case] + normal(800, 6, seed=100 * seed + draw + 1), cases=20))
        samples[-1].cases["index"] += draw * 1000  # other voxels of the same images
    with pytest.raises(ResultError, match="cannot be paired"):
        drift(samples, LAYER)
    table = drift(samples, LAYER, paired=False).table().dropna(subset=["null_high"]).set_index("measure")
    assert "linear_cka" not in table.index
    for measure in ("centroid_shift", "frechet", "sliced_w2", "mmd2"):
        row = table.loc[measure]
        assert row["null_low"] <= row["value"] <= row["null_high"], measure


def test_intervals_cover_the_truth(make_store: Callable[..., Any]) -> None:
    covered, simulations = 0, 80
    for simulation in range(simulations):
        patient = torch.arange(96) % 24
        a = normal(96, 3, seed=simulation)
        moved = torch.tensor([2.0, 0, 0]) + normal(24, 3, seed=1000 + simulation)
        stores = [make_store(rows, cases=24) for rows in (a, a + moved[patient])]
        result = drift(
            stores, LAYER, bootstrap=150, null_splits=0, max_rows=8, directions=2, seed=simulation, cluster="case"
        )
        row = between_stages(result.table().set_index("measure")).loc["centroid_shift"]
        scale = float(stores[0].rows(LAYER).double().var(0).mean().sqrt()) * 3**0.5
        covered += row["low"] <= 2.0 / scale <= row["high"]
    assert 0.85 <= covered / simulations <= 1.0


def test_few_rows_use_the_debiased_alignment(make_store: Callable[..., Any]) -> None:
    stores = [make_store(normal(40, 64, seed=seed), cases=20) for seed in (0, 1)]
    table = between_stages(drift(stores, LAYER, bootstrap=50).table().set_index("measure"))
    row = table.loc["linear_cka"]
    assert row["status"] == "debiased"
    assert row["value"] > 0.8  # unrelated features; the biased form would say 0.4
    assert row["low"] < row["value"] < row["high"]
    assert table.loc["frechet", "status"] == "few rows"
    assert row["clusters"] == 10


def test_order_of_rows_does_not_matter(make_store: Callable[..., Any]) -> None:
    a, b = normal(200, 4), normal(200, 4, seed=1)
    straight = drift([make_store(a), make_store(b)], LAYER, bootstrap=20)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    shuffled = make_store(b[order], table=make_store(b).cases.iloc[order.numpy()])
    again = drift([make_store(a), shuffled], LAYER, bootstrap=20)
    pd.testing.assert_frame_equal(straight.table(), again.table())


def test_seeded_and_read_back(make_store: Callable[..., Any], tmp_path: Path) -> None:
    stores = [make_store(normal(200, 4, seed=seed), classes=2) for seed in (0, 1)]
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, two = (drift(stores, LAYER, seed=3, bootstrap=20) for _ in range(2))
    pd.testing.assert_frame_equal(one.table(), two.table())
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002
    again = Drift.load(one.save(tmp_path / "drift.tkr"))
    pd.testing.assert_frame_equal(again.table(), one.table(), check_dtype=False)
    assert again.settings == one.settings
    assert not drift(stores, LAYER, seed=4, bootstrap=20).table()["high"].equals(one.table()["high"])


def test_halves_are_halves() -> None:
    halves = half_splits([np.arange(9)], 50, seed=0)
    assert (halves.sum(1) == 4).all()
    assert len({tuple(row.tolist()) for row in halves}) > 25


def test_wrong_calls(make_store: Callable[..., Any]) -> None:
    a = make_store(normal(100, 4), seed=0, pool="voxels")
    with pytest.raises(ResultError, match="two stages"):
        drift([a], LAYER)
    with pytest.raises(LayerError, match=r"stage 1[\s\S]*head_input"):
        drift([a, a], "head_inputs")
    with pytest.raises(ResultError, match="channels"):
        drift([a, make_store(normal(100, 5))], LAYER)
    with pytest.raises(ResultError, match=r"case010.*[\s\S]*100 rows there and 110"):
        drift([a, make_store(normal(110, 4), cases=11, seed=0, pool="voxels")], LAYER)
    other = make_store(normal(100, 4), seed=1, pool="voxels")
    other.cases["index"] += 7
    with pytest.raises(ResultError, match="seed is 0 there and 1 here"):
        drift([a, other], LAYER)
    with pytest.raises(ResultError, match="too few"):
        drift([make_store(normal(3, 4))] * 2, LAYER)
    with pytest.raises(ConfigError, match="confidence=95"):
        drift([a, a], LAYER, confidence=95)
    with pytest.raises(ResultError, match="no column 'ward'"):
        drift([a, a], LAYER, cluster="ward")
    broken = make_store(normal(100, 4))
    broken.rows(LAYER)[5] = torch.inf
    with pytest.raises(DataError, match="stage 2"):
        drift([a, broken], LAYER)


def test_the_committed_simulation_of_intervals_keeps_its_promise() -> None:
    table = pd.read_csv(Path(__file__).parents[3] / "benchmarks" / "results" / "drift_coverage.csv")
    assert set(table["patients"]) == {10, 30}
    assert set(table["measure"]).isdisjoint({"grassmann_2", "chordal_2"})  # they have no interval
    assert (table["coverage"] >= 0.92).all()

"""SegReg as a regularizer: rows, directions, options, diagnostics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from toolkit import registry
from toolkit.errors import ConfigError
from toolkit.features.epps_pulley import null_expectation, sliced_epps_pulley, unit_directions
from toolkit.methods.segreg.divergences import DIVERGENCES, class_conditional_epps_pulley, class_frame, null_value
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.training.protocol import StepContext, keyed_generator
from toolkit.training.sampling import choose_rows, rows_at


def context(features: dict[str, Tensor], step: int = 0, label: Tensor | None = None) -> StepContext:
    batch = {"image": torch.zeros(1)} | ({} if label is None else {"label": label})
    return StepContext(
        batch=batch, model=nn.Identity(), features=features, step=step, generator=keyed_generator(0, step, "segreg")
    )


def feature(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 1.5 + 0.3


def test_rows_are_drawn_first_then_directions() -> None:
    f = feature(2, 5, 12, 10)
    value = SegReg(samples=64, directions=7)(context({"head_input": f}, step=3))["epps_pulley"]
    generator = keyed_generator(0, 3, "segreg")
    index = torch.randperm(2 * 120, generator=generator)[:64]
    directions = unit_directions(5, 7, generator)
    rows = f.movedim(1, -1).reshape(-1, 5)[index]
    torch.testing.assert_close(value, sliced_epps_pulley(rows, directions), rtol=1e-6, atol=0)


def test_same_step_same_value_other_step_other_value_and_global_state_untouched() -> None:
    f, before = feature(2, 5, 12, 10), torch.get_rng_state()
    values = [float(SegReg(samples=64, directions=7)(context({"t": f}, step=s))["epps_pulley"]) for s in (4, 4, 5)]
    assert values[0] == values[1] != values[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_gradient_reaches_the_map_at_the_drawn_rows_only() -> None:
    f = feature(2, 4, 8, 8, 3).requires_grad_()
    SegReg(samples=50, directions=8)(context({"t": f}))["epps_pulley"].backward()
    assert f.grad is not None
    assert int((f.grad.abs().sum(1) > 0).sum()) == 50


def test_fewer_than_2c_rows_leave_the_step_out() -> None:
    f = feature(1, 8, 5, 3).requires_grad_()
    regularizer = SegReg(samples=4096)
    value = regularizer(context({"t": f}))["epps_pulley"]
    assert float(value) == 0.0
    assert not value.requires_grad
    assert regularizer.diagnostics() == {"skipped": 1.0, "n_eff": 15.0}


def test_several_taps_are_weighted_and_share_one_stream() -> None:
    maps = {"a": feature(2, 4, 8, 8), "b": feature(2, 6, 4, 4, seed=1)}
    value = SegReg(tap=("a", "b"), samples=40, directions=9)(context(maps))["epps_pulley"]
    generator = keyed_generator(0, 0, "segreg")
    parts = []
    for f in maps.values():
        index = torch.randperm(f[:, 0].numel(), generator=generator)[:40]
        parts.append(sliced_epps_pulley(rows_at(f, index), unit_directions(f.shape[1], 9, generator)))
    torch.testing.assert_close(value, (2 * parts[0] + parts[1]) / 3)
    other = SegReg(tap=("a", "b"), samples=40, directions=9, tap_weights=(1, 3))(context(maps))["epps_pulley"]
    torch.testing.assert_close(other, (parts[0] + 3 * parts[1]) / 4)


def test_per_image_averages_the_images_own_statistics() -> None:
    f = feature(3, 4, 8, 8)
    f[1] += 2.0
    value = SegReg(samples=3 * 64, directions=9, pooling="per_image")(context({"t": f}))["epps_pulley"]
    generator = keyed_generator(0, 0, "segreg")
    for _ in range(3):
        torch.randperm(64, generator=generator)
    directions = unit_directions(4, 9, generator)
    each = [sliced_epps_pulley(image.flatten(1).T, directions) for image in f]
    torch.testing.assert_close(value, torch.stack(each).mean())


def test_ignored_label_is_never_drawn() -> None:
    f = feature(2, 3, 6, 6)
    label = torch.zeros(2, 1, 6, 6, dtype=torch.long)
    label[:, :, :3] = 255
    f[:, :, :3] = 1e6
    regularizer = SegReg(samples=4096, ignore_label=255)
    regularizer(context({"t": f}, label=label))
    assert regularizer.diagnostics()["n_eff"] == 36
    assert regularizer.diagnostics()["mean_norm"] < 10


def test_class_balanced_rows_count_every_class_equally() -> None:
    label = torch.zeros(1, 1, 10, 10, dtype=torch.long)
    label[..., 0, :5] = 1
    label[..., 1:4, :] = 2
    (sample,) = choose_rows(
        1, 100, 60, torch.Generator().manual_seed(0), sampling="class_balanced", labels=label.flatten(1)
    )
    classes = label.flatten()[sample.index]
    assert torch.bincount(classes).tolist() == [20, 5, 20]
    assert sample.weights is not None
    mass = torch.zeros(3).index_add_(0, classes, sample.weights)
    torch.testing.assert_close(mass, torch.full((3,), 1 / 3))
    assert sample.effective_size == pytest.approx(1 / (2 / 180 + 1 / 45))
    assert len(set(sample.index.tolist())) == 45


def test_class_balanced_uses_nearest_labels_at_a_coarser_tap() -> None:
    label = torch.zeros(2, 1, 8, 8, dtype=torch.long)
    label[:, :, :4, :4] = 1
    f = torch.zeros(2, 2, 4, 4)
    f[:, :, :2, :2] = 1.0
    regularizer = SegReg(samples=16, directions=4, sampling="class_balanced")
    regularizer(context({"t": f}, label=label))
    assert regularizer.diagnostics()["mean_norm"] == pytest.approx(0.5 * 2**0.5)


def test_null_centred_hinge() -> None:
    f = feature(1, 4, 32, 32) / 1.5
    plain = SegReg(samples=1024, directions=16)(context({"t": f}))["epps_pulley"]
    hinged = SegReg(samples=1024, directions=16, null_centred=True)(context({"t": f}))["epps_pulley"]
    torch.testing.assert_close(hinged, plain - null_expectation() / 1024)
    quantiles = torch.special.ndtri((torch.arange(4096) + 0.5) / 4096).view(1, 1, 64, 64)
    value = SegReg(samples=4096, directions=4, null_centred=True)(context({"t": quantiles}))["epps_pulley"]
    assert float(value) == 0.0


def test_scaled_convex_and_warm_up() -> None:
    f = feature(1, 4, 16, 16)
    free = SegReg(samples=128, directions=8)(context({"t": f}))["epps_pulley"]
    scaled = SegReg(samples=128, directions=8, scaled=True)(context({"t": f}))["epps_pulley"]
    torch.testing.assert_close(scaled, 128 * free)
    ramp = SegReg(weight=0.2, warm_up=4, convex=True)
    assert [ramp.weights(s)["epps_pulley"] for s in (0, 1, 3, 10)] == pytest.approx([0.05, 0.1, 0.2, 0.2])
    assert ramp.objective_weight(10) == pytest.approx(0.8)
    assert SegReg(weight=0.2).objective_weight(0) == 1.0
    assert not SegReg(weight=0.0).active(0)


def test_diagnostics_are_moments_of_the_rows() -> None:
    f = feature(1, 3, 40, 40)
    regularizer = SegReg(samples=1600, directions=32)
    value = regularizer(context({"t": f}))["epps_pulley"]
    rows = f.flatten(2)[0].double()
    eigenvalues = torch.linalg.eigvalsh(torch.cov(rows, correction=0))
    report = regularizer.diagnostics()
    assert report["T_over_N"] == pytest.approx(float(value))
    assert report["mean_norm"] == pytest.approx(float(rows.mean(1).norm()))
    assert report["eig_min"] == pytest.approx(float(eigenvalues[0]))
    assert report["eig_max"] == pytest.approx(float(eigenvalues[-1]))
    assert report["n_eff"] == 1600


def test_rebuilt_from_its_description_with_equal_settings() -> None:
    original = SegReg(weight=0.3, tap=["pre_activation"], points=9)
    assert registry.build("regularizer", registry.describe(original)) == original


@pytest.mark.parametrize(
    "options",
    [
        {"sampling": "random"},
        {"pooling": "none"},
        {"weight": -1.0},
        {"weight": 2.0, "convex": True},
        {"points": 1},
        {"samples": 0},
        {"tap_weights": (1.0, 2.0)},
    ],
)
def test_impossible_settings_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        SegReg(**options)


def test_labels_that_are_needed_and_missing() -> None:
    with pytest.raises(ConfigError, match="label"):
        SegReg(sampling="class_balanced")(context({"t": feature(1, 2, 4, 4)}))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_every_divergence_pulls_wide_rows_inwards(divergence: str) -> None:
    generator = torch.Generator().manual_seed(0)
    f = (3 * torch.randn(2, 4, 24, 24, generator=generator)).requires_grad_()
    label = torch.randint(0, 3, (2, 1, 24, 24), generator=generator)
    regularizer = SegReg(samples=1024, directions=32, divergence=divergence, classes=3)
    (value,) = regularizer(context({"t": f}, label=label)).values()
    assert list(regularizer.weights(0)) == [divergence]
    assert regularizer.diagnostics()["T_over_N"] > 0.1
    value.backward()
    assert f.grad is not None
    assert float(f.grad.abs().max()) > 0
    if divergence not in ("nearest_neighbour", "variance_covariance"):
        assert float((f.grad * f.detach()).sum()) > 0, "descent shrinks what is too wide"


def test_p15_balanced_class_references_have_a_standard_marginal() -> None:
    frame, means, inside = class_frame(6, 4)
    torch.testing.assert_close(means.sum(0), torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)
    within = torch.eye(6, dtype=torch.float64) - (1 - inside) * frame @ frame.T
    torch.testing.assert_close(within + means.T @ means / 4, torch.eye(6, dtype=torch.float64), atol=1e-6, rtol=0)
    assert inside == pytest.approx(0.36)


def test_class_conditional_value_is_near_its_null_at_the_reference() -> None:
    frame, means, inside = class_frame(5, 3)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(2000)
    z = torch.randn(6000, 5, generator=generator).double()
    z = z + (inside**0.5 - 1) * (z @ frame) @ frame.T + means[labels]
    directions = unit_directions(5, 64, generator)
    value = class_conditional_epps_pulley(z, labels, directions, 3)
    assert 2000 * float(value) == pytest.approx(1.0525, rel=0.25)
    swapped = class_conditional_epps_pulley(z, (labels + 1) % 3, directions, 3)
    assert float(swapped) > 100 * float(value)
    few = class_conditional_epps_pulley(z[:63], labels[:63], directions, 3)
    assert float(few) == 0.0


@pytest.mark.parametrize(("divergence", "rows"), [("epps_pulley", 600), ("gaussian_kl", 600), ("gaussian_kernel", 600)])
def test_null_centred_values_average_near_zero_before_the_hinge(divergence: str, rows: int) -> None:
    settings = SegReg(divergence=divergence, null_centred=True)
    plain = SegReg(divergence=divergence, directions=32, samples=rows)
    values = [
        float(
            plain(context({"t": torch.randn(1, 4, 20, 30, generator=torch.Generator().manual_seed(s))}, step=s))[
                divergence
            ]
        )
        for s in range(150)
    ]
    assert sum(values) / 150 == pytest.approx(null_value(settings, rows, 4), rel=0.1)


def test_divergence_settings_are_checked() -> None:
    for options in (
        {"divergence": "entropy"},
        {"divergence": "class_conditional"},
        {"divergence": "sliced_wasserstein", "null_centred": True},
    ):
        with pytest.raises(ConfigError):
            SegReg(**options)
    with pytest.raises(ConfigError, match="radius"):
        class_frame(2, 5)

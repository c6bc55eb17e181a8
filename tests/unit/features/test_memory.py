"""Memory is said before it is taken, the batch follows it, and what cannot fit is refused with a remedy."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import toolkit as tk
from toolkit.features import memory

IMAGES = torch.randn(6, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, 2, 1)).eval()


PLANE = 64 * 64 * 4  # bytes of a map of one channel
EACH = (1.1 * 22 + 2 * 10 + 2 * 10) * PLANE  # of Grad-CAM at "0": all tensors, twice the largest, twice the layer


def with_free(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(size))


def test_the_tensors_of_a_pass_are_counted() -> None:
    one = memory.measured_pass(net(), IMAGES[:1], ["0"])
    maps = {name: value / PLANE for name, value in one.items()}
    # the two maps of 10 channels and the output; at once two of them; nothing of the image and the weights
    assert maps == {"live": 20, "total": 22, "largest": 10, "kept": 10, "output": 2}
    with_one_in_place = nn.Sequential(nn.Conv2d(1, 10, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(10, 2, 1)).eval()
    assert memory.measured_pass(with_one_in_place, IMAGES[:1])["total"] == 12 * PLANE
    table = tk.layers(net(), IMAGES[:1]).set_index("name")["mb"]
    assert table.sum() * 1e6 == pytest.approx(22 * PLANE, abs=3)


def test_enough_memory_is_not_spoken_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, EACH * 6 * 4 + 1e6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tk.grad_cam(net(), IMAGES, "0", 1, batch_size=6)


def test_a_quarter_of_what_is_free_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, EACH * 6 * 2)
    need, each = f"{EACH * 6 / 1e9:.3g}", f"{EACH / 1e9:.3g}"
    with pytest.warns(tk.ToolkitWarning, match=rf"\(64, 64\)\) needs about {need} GB, {each} GB each for 6 at once"):
        tk.grad_cam(net(), IMAGES, "0", 1, batch_size=6)


def test_the_batch_follows_the_memory_and_the_maps_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seen, model = tk.grad_cam(net(), IMAGES, "0", 1), [], net()
    model.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    with_free(monkeypatch, EACH * 3)
    with pytest.warns(tk.ToolkitWarning, match="2 at once instead of 6"):
        maps = tk.grad_cam(model, IMAGES, "0", 1, batch_size=6)
    assert max(seen) == 2
    torch.testing.assert_close(maps["0"], whole["0"])


def test_what_cannot_fit_is_refused_before_it_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_free(monkeypatch, 40 * PLANE)
    for call in (
        lambda: tk.grad_cam(net(), IMAGES, "0", 1),
        lambda: tk.attribute(net(), IMAGES, "saliency", 1),
        lambda: tk.mask_latent(net(), IMAGES, layer="0"),
        lambda: tk.randomised_weights(net(), IMAGES, "0", 1),
        lambda: tk.predict(net(), IMAGES),
        lambda: tk.evaluate(
            net(), tk.task_from_arrays(IMAGES[:, 0].numpy(), (IMAGES[:, 0] > 0).numpy(), classes=["a", "b"]).cases()
        ),
        lambda: tk.extract(net(), IMAGES, "0", pool="global", out=tmp_path / "f.zarr"),
    ):
        with pytest.raises(tk.ConfigError, match="are free") as error:
            call()
        assert "smaller" in error.value.fix
    assert not list(tmp_path.iterdir())


def test_what_is_stated_is_of_the_images_that_are_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_free(monkeypatch, 54 * PLANE * 2)  # of eight images, the size of a batch, one
    with pytest.warns(tk.ToolkitWarning, match=rf"extract .* needs about {54 * PLANE / 1e9:.3g} GB;"):
        tk.extract(net(), IMAGES[:1], "0", pool="global", out=tmp_path / "f.zarr")


def test_analyses_of_stored_features_say_and_refuse_theirs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    label = (IMAGES[:, 0] > 0).long()
    features = tk.extract(net(), {"image": IMAGES, "label": label}, ["0", "1"], pool="voxels", samples=50)
    features.save(tmp_path / "f.zarr")
    calls = {
        "drift": lambda f: tk.drift([f, f], "0", bootstrap=2, null_splits=2, directions=4),
        "project": lambda f: tk.project([f, f], "0"),
        "layer_similarity linear_cka": lambda f: tk.layer_similarity(f),
        "collapse": lambda f: tk.collapse(f, "0"),
        "gaussianity": lambda f: tk.gaussianity(f, "0"),
        "classifier_variability": lambda f: tk.classifier_variability(f, "0"),
        "channel_similarity": lambda f: tk.channel_similarity(f, "0"),
    }
    for store in (features, tk.open_features(tmp_path / "f.zarr")):
        assert store.shape("0") == (600, 10)
        assert store.shape("0", "gram") == (6, 10, 10)
        assert store.shape("none") == ()
        for name, call in calls.items():
            with_free(monkeypatch, 100)
            with pytest.raises(tk.ConfigError, match=rf"^{name} needs about .* GB are free") as error:
                call(store)
            assert "fewer" in error.value.fix
    need = 2 * 600 * (4.4 * 10 * 4 + 150)  # two stages, 600 rows of 10 channels, and the tables
    with_free(monkeypatch, 2 * need)
    with pytest.warns(tk.ToolkitWarning, match="drift needs about 0.000391 GB; 0.000782 GB are free"):
        calls["drift"](features)


def test_attributions_and_faithfulness_take_fewer_images_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, model = [], net()
    model.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    with_free(monkeypatch, 42 * PLANE * 3)
    with pytest.warns(tk.ToolkitWarning, match="2 at once instead of 4"):
        found = tk.attribute(model, IMAGES[:1], steps=4, batch_size=4)
    assert max(seen) == 2
    assert found.settings["batch_size"] == 2
    with_free(monkeypatch, 80 * PLANE)
    with pytest.warns(tk.ToolkitWarning, match=r"faithfulness .* 1 at once instead of 4"):
        tk.faithfulness(model, found, tk.ClassSum(1), steps=3, orders=1, perturbations=0)


def test_predictions_take_fewer_images_at_once_and_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seen, model = tk.predict(net(), IMAGES, output="logits"), [], net()
    model.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    with_free(monkeypatch, 54 * PLANE * 3)  # an image takes two maps of 10 channels, and as much beside
    with pytest.warns(tk.ToolkitWarning, match="predict .* 2 at once instead of 6"):
        torch.testing.assert_close(tk.predict(model, IMAGES, output="logits", batch_size=6), whole)
    assert max(seen) == 2
    windows = {"patch_size": (32, 32), "overlap": 0.0}
    seen.clear()
    with_free(monkeypatch, (54 / 4 + 2 * 2) * PLANE * 3)  # of a window a quarter, and the stitched logits twice
    with pytest.warns(tk.ToolkitWarning, match="2 at once instead of 8"):
        tk.predict(model, IMAGES[:1], **windows)
    assert max(seen) == 2


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/jobs/step_1", "jobs", ("max", "current", "inactive_file")),
        ("0::/", "", ("max", "current", "inactive_file")),
        ("0::/not/seen/in/a/container", "", ("max", "current", "inactive_file")),
        ("4:memory:/jobs/step_1", "memory/jobs", ("limit_in_bytes", "usage_in_bytes", "total_inactive_file")),
    ],
)
def test_the_limit_of_a_job_counts_and_cached_files_do_not(
    line: str, folder: str, names: tuple[str, str, str], tmp_path: Path
) -> None:
    group = tmp_path / "root" / folder
    (group / "step_1").mkdir(parents=True)
    (group / f"memory.{names[0]}").write_text("8000\n")
    (group / f"memory.{names[1]}").write_text("7000\n")
    (group / "memory.stat").write_text(f"anon 1000\n{names[2]} 6000\n")
    (group / "step_1" / f"memory.{names[0]}").write_text("max\n")
    (tmp_path / "cgroup").write_text(f"1:cpu:/\n{line}\n")
    assert memory.group_limits(str(tmp_path / "cgroup"), str(tmp_path / "root")) == [8000 - 7000 + 6000]
    assert memory.group_limits(str(tmp_path / "none")) == []


def test_free_memory_is_a_sane_number() -> None:
    assert 2**20 < memory.free_bytes(torch.device("cpu")) < 2**62

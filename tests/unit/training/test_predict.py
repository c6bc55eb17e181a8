"""Predictions and scores, on networks whose answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toolkit.data.normalise import normalise
from toolkit.data.table import task_from_arrays
from toolkit.data.task import Task
from toolkit.errors import ConfigError, DataError, LayerError, ToolkitError, ToolkitWarning
from toolkit.inference.network import Predictor
from toolkit.inference.predict import predict
from toolkit.inference.volumes import group_volumes, volume_spacing
from toolkit.inference.windows import frame_of
from toolkit.measure.evaluate import evaluate, validation_scores
from toolkit.methods.latent_augmentation.network import fast_slow_network
from toolkit.models.unet import unet


class Threshold(nn.Module):
    """Class 1 where the image is above 0.5; counts its passes and remembers their sizes."""

    divisor = 8

    def __init__(self, dims: int = 2, channels: int = 1, outputs: int = 2) -> None:
        super().__init__()
        self.outputs = outputs
        self.dims, self.in_channels = dims, channels
        self.dummy = nn.Parameter(torch.zeros(()))
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        assert all(side % self.divisor == 0 for side in x.shape[2:])
        self.sizes.append(tuple(x.shape))
        return torch.cat((0.5 - x[:, :1], x[:, :1] - 0.5, *([x[:, :1] - 9] * (self.outputs - 2))), 1)


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("size", "patch"), [((13, 21), None), ((13, 21), (32, 32)), ((13, 21), (16, 24)), ((32, 32), (32, 32))]
)
def test_small_images_take_one_plain_pass(size: tuple[int, int], patch: Any) -> None:
    image, network = noise(2, 1, *size), Threshold()
    logits = Predictor(network, patch_size=patch).logits(image)
    assert logits.shape == (2, 2, *size)
    assert torch.equal(logits[:, 1], image[:, 0] - 0.5)
    assert len(network.sizes) == 1


class Undeclared(nn.Module):
    """Halves and doubles its images twice, and does not say so."""

    def forward(self, x: Tensor) -> Tensor:
        small = nn.functional.avg_pool2d(x, 4)
        return torch.cat((x, nn.functional.interpolate(small, scale_factor=4)), 1)


def test_a_divisor_that_was_found_by_trying_is_said_once() -> None:
    network = Undeclared()
    with pytest.warns(ToolkitWarning, match=r"multiples of 4, which was found by trying. Pass divisor=4"):
        first = Predictor(network).logits(noise(1, 1, 13, 22))
    assert first.shape == (1, 2, 13, 22)
    assert Predictor(network).logits(noise(1, 1, 13, 22)).equal(first), "and is known from then on, in silence"


@pytest.mark.parametrize("size", [(40, 61), (70, 20)])
def test_large_images_are_stitched_from_windows(size: tuple[int, int]) -> None:
    image, network = noise(1, 1, *size), Threshold()
    logits = Predictor(network, patch_size=(32, 32)).logits(image)
    torch.testing.assert_close(logits[0, 1], image[0, 0] - 0.5)
    assert len(network.sizes) >= 1
    assert all(shape[2:] == (32, 32) for shape in network.sizes)


def test_padding_is_the_minimum_of_each_channel_and_centred() -> None:
    image = torch.stack((noise(3, 4), noise(3, 4) - 7))[None]
    frame = frame_of(image, (8, 7), 1, 0.5)
    padded = frame.pad(image)
    assert torch.equal(frame.crop(padded), image)
    assert (frame.starts, frame.padding) == ((2, 1), ((2, 3), (1, 2)))
    outside = torch.ones(8, 7, dtype=torch.bool)
    outside[2:5, 1:5] = False
    for channel in range(2):
        assert (padded[0, channel][outside] == image[0, channel].min()).all()


def test_a_network_that_changes_the_size_is_refused() -> None:
    with pytest.raises(LayerError, match="for an image of size"):
        predict(nn.Conv2d(1, 2, 3), noise(1, 1, 15, 16))
    with pytest.raises(LayerError, match="for an image of size"):
        predict(nn.Conv2d(1, 2, 3), noise(1, 1, 32, 32))


def test_forms_of_input() -> None:
    network, stack = Threshold(), noise(5, 16, 24)
    expected = (stack > 0.5).to(torch.uint8)
    assert torch.equal(predict(network, stack[0]), expected[0])
    assert torch.equal(predict(network, stack[:1]), expected[0])
    assert torch.equal(predict(network, stack), expected)
    assert torch.equal(predict(network, stack[:, None].numpy(), batch_size=2), expected)
    probabilities = predict(network, stack[0], output="probabilities")
    assert probabilities.shape == (2, 16, 24)
    torch.testing.assert_close(probabilities[1], torch.sigmoid(2 * (stack[0] - 0.5)))
    torch.testing.assert_close(predict(network, stack[0], output="logits")[1], stack[0] - 0.5)


def test_one_channel_of_logits_and_lists_of_logits() -> None:
    class Binary(Threshold):
        def forward(self, x: Tensor) -> Any:
            return [x - 0.5, x[..., ::2, ::2]]

    image = noise(16, 16)
    assert torch.equal(predict(Binary(), image, activation="sigmoid"), (image > 0.5).to(torch.uint8))


def test_class_299_stays_299_and_nan_logits_are_no_class() -> None:
    network = nn.Conv2d(1, 300, 1)
    with torch.no_grad():
        network.bias.copy_(torch.arange(300.0) - 1000)
        network.weight.zero_()
    image = torch.rand(1, 8, 8)
    labels = predict(network, image)
    assert (labels.dtype, labels.unique().tolist()) == (torch.int16, [299])  # uint8 would say 43
    network.bias.data[7] = torch.nan
    task = task_from_arrays(
        [image.numpy()], [np.zeros((8, 8), np.uint8)], classes=["background", "organ"], splits=["test"]
    )
    for call in (lambda: predict(network, image), lambda: evaluate(network, task.cases("test"))):
        with pytest.raises(DataError, match="NaN"):
            call()


@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_that_do_not_fit_are_named(channels: int) -> None:
    with pytest.raises(DataError, match=f"does not fit a 2D network with {channels} input"):
        predict(Threshold(channels=channels), noise(2, 2, 2, 8, 8))
    with pytest.raises(DataError, match="The image has 2 channels, the network takes 3"):
        predict(Threshold(channels=3), noise(2, 8, 8))
    with pytest.raises(DataError, match="NaN"):
        predict(Threshold(), torch.full((8, 8), torch.nan))
    with pytest.raises(ConfigError, match="output"):
        predict(Threshold(), noise(8, 8), output="mask")
    with pytest.raises(DataError, match="not understood"):
        predict(Threshold(), 3)


def oblique_file(path: Path, array: np.ndarray) -> Path:
    """Axes flipped and swapped on disk, anisotropic."""
    affine = np.array([[0, 0, 3.0, 5], [-1.5, 0, 0, 7], [0, 1.0, 0, -2], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(array, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("dims", [2, 3])
def test_a_volume_from_a_file_is_normalised_and_predicted(tmp_path: Path, dims: int) -> None:
    stored = noise(10, 12, 6).numpy()
    path = oblique_file(tmp_path / "image.nii.gz", stored)
    labels = predict(Threshold(dims), path, normalisation="range")
    from toolkit.data.volumes import read_volume

    array, _ = read_volume(path, dims)
    assert np.array_equal(labels.numpy(), normalise(array[None], "range")[0] > 0.5)


def test_the_network_is_untouched(discs: Task) -> None:
    network = unet(1, 2, channels=(4, 8), norm="batch")
    before = {k: v.clone() for k, v in network.state_dict().items()}
    predict(network, discs.cases("test")[0])
    evaluate(network, discs.cases("test"), metrics=("dice",))
    assert network.training
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def stacks() -> Task:
    """Two stacks of 3 and 2 slices, 4 mm apart in plane 1 x 2 mm."""
    images, labels = [], []
    for depth in (3, 2):
        image = np.zeros((depth, 16, 16), np.float32)
        image[:, 4:8, 4:8] = 1
        label = image.astype(np.uint8)
        label[0] = 0  # the network draws it in every slice
        images.append(image)
        labels.append(label)
    return task_from_arrays(
        images,
        labels,
        classes={0: "background", 1: "square", 2: "absent"},
        spacing=(4.0, 1.0, 2.0),
        dims=2,
        normalisation="none",
        splits=["test", "test"],
    )


def test_slices_are_scored_as_one_volume_by_hand() -> None:
    cases = stacks().cases("test")
    assert len(cases) == 5
    table = evaluate(Threshold(outputs=3), list(reversed(cases)), batch_size=2)
    dice = table[(table["metric"] == "dice") & (table["class"] == "square")]
    by_volume = dict(zip(dice["case"], dice["value"], strict=True))
    depths = {volume[0].volume: len(volume) for volume in group_volumes(cases)}
    for name, depth in depths.items():
        assert by_volume[name] == pytest.approx(2 * 16 * (depth - 1) / (16 * depth + 16 * (depth - 1)))
    hd95 = table[(table["metric"] == "hd95") & (table["class"] == "square")]
    assert set(hd95["unit"]) == {"mm"}
    assert (hd95["value"] == 4.0).all()  # the slice too many lies one slice distance from the reference
    assert set(table[table["class"] == "absent"]["status"]) == {"both_absent"}
    scores = validation_scores(table)
    assert scores["validation/dice"] == pytest.approx(np.mean(list(by_volume.values())))
    assert list(scores) == ["validation/dice", "validation/dice/square"]


def test_spacing_that_is_not_known_is_not_invented() -> None:
    import dataclasses

    cases = [dataclasses.replace(case, slice_spacing=None) for case in stacks().cases("test")]
    assert volume_spacing(cases[:3]) is None
    assert set(evaluate(Threshold(outputs=3), cases)["unit"]) == {"", "voxels"}


def test_no_cases(discs: Task) -> None:
    with pytest.raises(ConfigError, match="no cases"):
        evaluate(Threshold(), [])


def test_a_runs_scores_are_kept_and_found_again(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained()
    first = run.evaluate("test")
    monkeypatch.setattr("toolkit.training.run.evaluate", None)
    assert run.evaluate("test").equals(first)
    assert list(first.columns[:6]) == ["case", "site", "class", "metric", "value", "status"]
    assert first["value"].dtype == float
    files = sorted(p.suffix for p in (run.path / "evaluation").iterdir())
    assert files == [".csv", ".json"]
    with torch.no_grad():
        next(run.model.parameters()).add_(1.0)
    with pytest.raises(ToolkitError, match="NoneType"):  # other weights: scored anew, which is switched off here
        run.evaluate("test")


def test_predictions_are_written_in_the_geometry_of_the_file(trained: Any, tmp_path: Path) -> None:
    from toolkit.data.folder import task_from_folder

    drawn = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for name in ("a", "b", "c", "d", "e", "f"):
        label = (drawn.random((12, 16, 6)) > 0.6).astype(np.uint8)
        oblique_file(tmp_path / "images" / f"{name}.nii.gz", (label + drawn.random(label.shape)).astype(np.float32))
        oblique_file(tmp_path / "labels" / f"{name}.nii.gz", label)
    task = task_from_folder(
        tmp_path / "images",
        tmp_path / "labels",
        classes={0: "background", 1: "spot"},
        dims=2,
        splits={"train": ["a", "b", "c"], "val": ["d"], "test": ["e", "f"]},
    )
    run = trained(task=task, model=unet(1, 2, channels=(4, 8)), steps=2)
    cases = task.cases("test")
    written = run.predict(cases, out=tmp_path / "predictions")
    held = run.predict(cases)
    assert len(written) == 2
    for volume in group_volumes(cases):
        path = written[volume[0].volume]
        source = nibabel.load(tmp_path / "images" / f"{volume[0].volume}.nii.gz")
        image = nibabel.load(path)
        assert image.shape == source.shape
        assert np.array_equal(image.affine, source.affine)
        stored = np.asarray(image.dataobj)
        assert stored.dtype == np.uint8
        assert np.array_equal(volume[0].geometry.arrange(stored), held[volume[0].volume])
    with pytest.raises(DataError, match="does not fill its volume"):
        run.predict(cases[1:], out=tmp_path / "more")


def test_a_runs_scores_are_those_of_its_networks_switches(discs: Task, trained: Any) -> None:
    """Untrained, the fast prediction and its refinement differ; a table of one was given for the other."""
    model = fast_slow_network(1, 2, width=2)
    run = trained(model=model, steps=1, optimizer="sgd", learning_rate=1e-9, validate_every=0)
    tables = {}
    for refined in (False, True, False):
        model.refined = refined
        tables[refined] = run.evaluate("test", metrics=("dice",))
        assert tables[refined]["value"].equals(evaluate(model, discs.cases("test"), metrics=("dice",))["value"])
    assert not tables[False]["value"].equals(tables[True]["value"])

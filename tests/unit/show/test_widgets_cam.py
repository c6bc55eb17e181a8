"""`cam_explorer` without a browser: the maps are `grad_cam`'s, one pass a slice, and the picture stays small."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from canvases import area_of, centre_of

import toolkit as tk
from toolkit.errors import ConfigError, DataError
from toolkit.inference.memory import remember
from toolkit.registry import describe
from toolkit.show.widgets.image_explorer import ImageStacks, default_layers


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return tk.unet(in_channels=1, out_channels=3, channels=(4, 8))


@pytest.fixture(scope="module")
def task() -> tk.Task:
    random = np.random.default_rng(0)
    images = [random.normal(size=(32, 32)).astype(np.float32) for _ in range(3)]
    labels = [np.zeros((32, 32), dtype=np.uint8) for _ in range(3)]
    for k, label in enumerate(labels):
        label[8:20, 8:20], label[12:16, 12 : 14 + k] = 1, 2
    return tk.task_from_arrays(images, labels, classes={0: "background", 1: "wall", 2: "cavity"}, splits=["test"] * 3)


def count_calls(model: torch.nn.Module) -> list[int]:
    calls = [0]
    model.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    return calls


def test_the_default_layers_are_the_blocks() -> None:
    example = torch.zeros(1, 1, 32, 32)
    assert default_layers(tk.unet(1, 3, channels=(4, 8, 16)), example) == [
        "encoder.1",
        "encoder.2",
        "bottleneck",
        "decoder.2",
        "decoder.1",
        "head",
    ]
    opened = default_layers(tk.fast_slow_network(1, 3, width=4), example)  # three outermost modules are too few
    assert "decoupler" in opened
    assert "image_encoder.down1" in opened
    assert "segmentation_decoder.head" in opened
    assert len(opened) == 12


def test_the_maps_are_those_of_grad_cam(model: torch.nn.Module, task: tk.Task) -> None:
    explorer = tk.widgets.cam_explorer(model, task).set(target="reference", target_class=2, method="grad_cam")
    case = task.cases("test")[0]
    expected = tk.grad_cam(model, case, ["encoder.1", "bottleneck", "decoder.1", "head"], tk.Region(2, "reference"))
    for layer, plane in explorer.maps("network").maps.items():
        torch.testing.assert_close(torch.from_numpy(plane).float(), expected[layer][0, 0])


def test_all_layers_come_from_one_pass_and_are_kept(task: tk.Task) -> None:
    model = tk.unet(1, 3, channels=(4, 8))
    explorer = tk.widgets.cam_explorer(model, task)
    explorer.set(target="image")
    calls = count_calls(model)
    explorer.changed()
    explorer.compose()
    before = calls[0]
    for _, layer in next(one for one in explorer.controls() if one.name == "layer").options:
        explorer.set(layer=layer).compose()
    explorer.set(opacity=0.3, scale="shared", contours=False).compose()
    assert calls[0] == before


def test_clicks_and_keys_walk_over_the_strip(model: torch.nn.Module, task: tk.Task) -> None:
    explorer = tk.widgets.cam_explorer(model, task).set(target="image")
    explorer.click(*centre_of(area_of(explorer.compose(), "layer:head")))
    assert explorer.state["layer"] == "head"
    canvas = explorer.compose()
    assert explorer.key("ArrowLeft").state["layer"] == "decoder.1"
    assert explorer.compose().encode() != canvas.encode()


def test_an_empty_region_is_said_in_the_picture(model: torch.nn.Module) -> None:
    image = np.random.default_rng(0).normal(size=(1, 32, 32)).astype(np.float32)
    explorer = tk.widgets.cam_explorer(
        model, {"image": image, "label": np.zeros((32, 32), dtype=np.int64), "id": "empty"}
    ).set(target="reference")
    with pytest.raises(DataError):
        explorer.maps("network")
    assert explorer.compose().size[0] > 500


def test_two_networks_side_by_side(model: torch.nn.Module, task: tk.Task) -> None:
    other = tk.unet(1, 3, channels=(4, 8, 16))
    explorer = tk.widgets.cam_explorer(model, task, compare={"deeper": other}).set(target="image", layer="head")
    explorer.compose()
    assert list(explorer.maps("deeper").maps)[-1] == "head"
    explorer.set(layer="encoder.1")
    with pytest.raises(ConfigError, match="exactly one"):
        tk.widgets.cam_explorer(model, task, compare={"a": other, "b": other})


@pytest.mark.parametrize("method", ["saliency", "input_x_gradient"])
def test_captum_methods_are_those_of_attribute(model: torch.nn.Module, task: tk.Task, method: str) -> None:
    explorer = tk.widgets.cam_explorer(model, task).set(target="image", target_class=1, method=method)
    expected = tk.attribute(model, task.cases("test")[0], method, tk.ClassSum(1))
    found = torch.from_numpy(explorer.maps("network").maps["input"]).float()
    torch.testing.assert_close(found, expected.attributions["input"][0].sum(0))
    assert explorer.compose().size[1] > 300


def test_volumes_are_cut_at_the_slice() -> None:
    model = tk.unet(1, 2, channels=(4, 8), dims=3)
    image = torch.randn(1, 8, 16, 16)
    explorer = tk.widgets.cam_explorer(model, image).set(target="image")
    assert explorer.controls()[1].high == 7
    explorer.set(layer="bottleneck", slice=5)
    whole = tk.grad_cam(model, image, "bottleneck", tk.ClassSum(1), method="hires_cam")["bottleneck"][0, 0]
    plane = torch.from_numpy(explorer.maps("network").maps["bottleneck"]).float()
    torch.testing.assert_close(plane, whole[int(5.5 * len(whole) / 8)])
    explorer.compose()


def test_a_large_slice_is_a_small_picture(model: torch.nn.Module) -> None:
    explorer = tk.widgets.cam_explorer(model, torch.rand(1, 1, 512, 512)).set(target="image", opacity=0.5)
    assert len(explorer.compose().encode()[0]) < 500_000


def test_a_shelf_opens_at_the_fullest_slice(task: tk.Task, model: torch.nn.Module) -> None:
    images = ImageStacks(task, model)
    assert list(images.foreground()) == [(1, "wall"), (2, "cavity")]
    with pytest.raises(DataError):
        ImageStacks([], model)
    volume = np.zeros((8, 16, 16), dtype=np.int64)
    volume[3, :5], volume[6, :2] = 1, 1
    item = {"image": np.zeros((1, 8, 16, 16), dtype=np.float32), "label": volume}
    stacked = ImageStacks(item, tk.unet(1, 2, channels=(4, 8), dims=3))
    assert stacked.fullest(next(iter(stacked.stacks))) == 3


def test_without_an_argument_it_opens_on_a_plain_network_and_one_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module, task: tk.Task
) -> None:
    from evidence.cards import save_trained
    from toolkit.training.trained import FIELDS

    def stored(name: str, above: bool) -> None:
        recipe = {"model": describe(model), "regularizers": []}
        card = {key: "" for key in FIELDS if key != "sha256"} | {"name": name, "seed": 0, "history": {}}
        card |= {"recipe": recipe, "task": {"name": "mine"}, "parameters": 1, "floor": {"above": above, "dice": 0.75}}
        scores = [{"site": task.sites[0], "dice": 0.9, "patients": 3}]
        save_trained(model, card | {"sites": list(task.sites), "scores": scores}, tmp_path)

    monkeypatch.setenv("TOOLKIT_NETWORKS", str(tmp_path))
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path))  # networks of real data that is here would come first
    monkeypatch.setattr("toolkit.show.widgets.image_explorer.load_task", lambda name: task)
    for name, above in (("mine/failed", False), ("mine/other", True), ("mine/plain", True)):
        stored(name, above)
    explorer = tk.widgets.cam_explorer()
    assert list(explorer.models) == ["mine/plain", "mine/other"]
    assert explorer.set(target="image", target_class=1).maps("mine/plain").maps
    assert explorer.result("mine/plain").provenance["network"]["dice"] == 0.9
    masks, similar = tk.widgets.mask_explorer(), tk.widgets.similarity_explorer()
    assert masks.state["case"] == similar.state["case"] == explorer.state["case"]
    assert tk.widgets.drift_explorer().stages == ["mine/plain", "mine/other"]


def test_without_an_argument_and_networks_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "toolkit.show.widgets.image_explorer.list_trained", lambda: pd.DataFrame({"above_floor": [], "task": []})
    )
    with pytest.raises(ConfigError, match="No trained network"):
        tk.widgets.cam_explorer()


def test_the_wheel_zooms_about_the_cursor_and_a_drag_moves_the_image(model: torch.nn.Module, task: tk.Task) -> None:
    explorer = tk.widgets.cam_explorer(model, task).set(target="image")
    area = area_of(explorer.compose(), "image")
    x, y = area.left + 0.25 * area.width + 1, area.top + 0.75 * area.height + 1
    before = explorer.readout(x, y)
    assert before.startswith("row 24, column 8, image ")
    explorer.turned(x, y, 5)
    assert explorer.lens[2] == pytest.approx(1.25**-5)
    assert explorer.readout(x, y) == before, "the place under the cursor stays there"
    top, left, side, _ = explorer.lens
    explorer.dragged((x, y), (x + area.width / 4, y - area.height / 4))
    assert explorer.lens == pytest.approx((min(top + side / 4, 1 - side), max(left - side / 4, 0.0), side, side))
    explorer.zoom(0)
    assert explorer.lens == (0.0, 0.0, 1.0, 1.0)
    explorer.turned(1, 1, 5)
    assert explorer.lens == (0.0, 0.0, 1.0, 1.0), "beside every picture nothing happens"


def test_the_value_under_the_cursor_is_that_of_the_image_and_the_map(model: torch.nn.Module, task: tk.Task) -> None:
    explorer = tk.widgets.cam_explorer(model, task).set(target="image", layer="encoder.1")
    image = task.cases("test")[0].image[0]
    area = area_of(explorer.compose(), "map of network")
    x, y = area.left + (5.5 / 32) * area.width, area.top + (20.5 / 32) * area.height
    plane = explorer.maps("network").maps["encoder.1"]
    value = plane[int(20.5 / 32 * plane.shape[0]), int(5.5 / 32 * plane.shape[1])]
    words = explorer.readout(x, y)
    assert words.startswith(f"row 20, column 5, image {float(image[20, 5]):.3g}, map {value:.3g}, prediction ")


def test_window_and_level_set_black_and_white(model: torch.nn.Module, task: tk.Task) -> None:
    explorer = tk.widgets.cam_explorer(model, task)
    picture = np.array([[0.0, 0.25, 0.5, 1.0]])
    explorer.set(level=0.5, window=0.5)
    assert explorer.shades(picture)[0, :, 0].tolist() == [0, 0, 127, 255]
    low = next(one for one in explorer.controls() if one.name == "level").low
    assert low == pytest.approx(float(task.cases("test")[0].image.min()))


def test_a_method_that_takes_long_says_so_before_it_is_chosen(model: torch.nn.Module, task: tk.Task) -> None:
    explorer = tk.widgets.cam_explorer(model, task).set(target="image")

    def label(method: str) -> str:
        control = next(one for one in explorer.controls() if one.name == "method")
        return next(text for text, value in control.options if value == method)

    explorer.memory.seconds[("network", "maps")] = 1.0  # as on a large network
    assert label("occlusion") == "Occlusion (slow: about 16 s)", "16 windows of 16 with steps of 8: 4 x 4 places"
    assert label("grad_cam") == "Grad-CAM"
    explorer.memory.seconds[("network", "occlusion")] = 0.1
    explorer.set(method="occlusion").maps("network")
    assert label("occlusion") == "Occlusion", "after the first time it is known to be quick"


def test_the_figure_is_saved_beside_the_notebook(
    model: torch.nn.Module, task: tk.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    explorer = tk.widgets.cam_explorer(model, task).set(target="image")
    words = [action() for text, _, action in explorer.actions() if text == "Save this figure"]
    assert words == ["Saved as class_activation_maps_1.png, beside the notebook."]
    assert explorer.save().name == "class_activation_maps_2.png"
    assert (tmp_path / "class_activation_maps_2.png").read_bytes() == explorer.compose().png()
    with pytest.raises(ConfigError, match="PNG"):
        explorer.save("map.pdf")


REGIONS = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}


def nested(regions: dict[str, tuple[int, ...]] | None = None) -> tk.Task:
    """Two images of three nested tissues, in a task with or without regions."""
    random = np.random.default_rng(1)
    images = [random.normal(size=(32, 32)).astype(np.float32) for _ in range(2)]
    labels = [np.zeros((32, 32), dtype=np.uint8) for _ in range(2)]
    for label in labels:
        for tissue, inner in enumerate((4, 8, 12), start=1):
            label[inner:-inner, inner:-inner] = tissue
    classes = {0: "background", 1: "oedema", 2: "necrosis", 3: "enhancing tissue"}
    return tk.task_from_arrays(images, labels, classes=classes, splits=["test"] * 2, regions=regions)


def test_of_a_network_with_regions_the_output_that_is_named_is_explained() -> None:
    torch.manual_seed(0)
    model, task = tk.unet(1, 3, channels=(4, 8)), nested(REGIONS)
    remember(model, regions=task.regions)
    explorer = tk.widgets.cam_explorer(model, task).set(method="grad_cam")
    assert explorer.images.foreground() == [(1, "whole"), (2, "core"), (3, "enhancing")]
    for number, name in explorer.images.foreground():
        for where in ("image", "reference"):
            explorer.set(target_class=number, target=where)
            target = tk.ClassSum(name) if where == "image" else tk.Region(name, "reference")
            expected = tk.grad_cam(model, task.cases("test")[0], "decoder.1", target)["decoder.1"]
            found = torch.from_numpy(explorer.maps("network").maps["decoder.1"]).float()
            torch.testing.assert_close(found, expected[0, 0])
    assert tk.widgets.mask_explorer(model, task).images.classes[2] == "core"


def test_outputs_that_overlap_without_names_are_numbered_from_one() -> None:
    model = tk.unet(1, 3, channels=(4, 8))
    explorer = tk.widgets.cam_explorer(model, torch.rand(1, 1, 32, 32), activation="sigmoid").set(target="image")
    assert [number for number, _ in explorer.images.foreground()] == [1, 2, 3]
    assert explorer.set(target_class=3).target() == tk.ClassSum(2)


def test_images_of_one_name_are_not_taken_for_one_another(model: torch.nn.Module) -> None:
    """Two tasks of arrays both call their first image the same."""
    other: Any = [[np.random.default_rng(2).random((32, 32), dtype=np.float32)], [np.zeros((32, 32), dtype=np.uint8)]]
    second = tk.task_from_arrays(*other, classes={0: "background", 1: "any"}, splits=["test"])
    cases = [nested().cases("test")[0], second.cases("test")[0]]
    assert cases[0].id == cases[1].id
    explorer = tk.widgets.cam_explorer(model, cases).set(target="image", target_class=1)
    pages = [page for stack in explorer.images.stacks.values() for page in stack]
    assert len({page.key for page in pages}) == len(explorer.images.stacks) == 2
    for name, case in zip(explorer.images.stacks, cases, strict=True):
        np.testing.assert_array_equal(explorer.set(case=name).maps("network").picture, case.image[0])


def test_images_without_a_network_are_not_silently_replaced(model: torch.nn.Module, task: tk.Task) -> None:
    for explorer in (tk.widgets.cam_explorer, tk.widgets.mask_explorer, tk.widgets.similarity_explorer):
        with pytest.raises(ConfigError, match="none to explore"):
            explorer(None, task)
    with pytest.raises(ConfigError, match="none to explore"):
        tk.widgets.drift_explorer(cases=task)
    with pytest.raises(ConfigError, match="none to explore"):
        tk.widgets.cam_explorer(compare=model)


def test_a_network_that_prepares_files_itself_is_shown_what_it_sees(model: torch.nn.Module) -> None:
    """A 2D network of slices: each page is the slice that was explained, on the grid that the network sees."""
    volume = torch.rand(1, 5, 32, 32)

    class Files:
        def items(self, paths: list[str], label: str | None = None) -> Iterator[dict[str, Any]]:
            for k in range(5):
                yield {"image": volume[:, k], "id": f"v/{k}", "volume": "v", "position": k, "spacing": (2.0, 1.0)}

    network = copy.deepcopy(model)
    remember(network, files=Files())
    reader = SimpleNamespace(images=(Path("v.nii.gz"),), label=None)
    case = SimpleNamespace(id="v", volume="v", image=torch.zeros(1, 7, 20, 20), has_label=False, reader=reader)
    explorer = tk.widgets.cam_explorer(network, [case]).set(target="image", slice=3)
    np.testing.assert_array_equal(explorer.maps("network").picture, volume[0, 3])


def test_the_first_list_of_methods_says_what_is_slow(task: tk.Task) -> None:
    model = tk.unet(1, 3, channels=(4, 8))
    model.register_forward_pre_hook(lambda *_: time.sleep(0.15))
    explorer = tk.widgets.cam_explorer(model, task)
    explorer._values["target"] = "image"
    options = dict(explorer.view.explorer_view.controls["method"].options)
    assert [text for text in options if "slow" in text and "Occlusion" in text]


def test_opening_a_volume_copies_its_label_once() -> None:
    """A copy for every slice of a CT would be 65 GB."""
    label, copies = np.zeros((6, 16, 16), dtype=np.uint8), []
    label[4, 2:5] = 1

    class Volume:
        id, volume, image, classes = "v", "v", torch.zeros(1, 6, 16, 16), {0: "background", 1: "any"}

        @property
        def label(self) -> torch.Tensor:
            copies.append(1)
            return torch.from_numpy(label.copy())

    images = ImageStacks(Volume(), tk.unet(1, 2, channels=(4, 8), dims=3))
    assert images.fullest("v") == 4
    assert len(copies) == 1


def test_fewer_results_of_volumes_are_kept(model: torch.nn.Module) -> None:
    """About a gigabyte, of 30 bytes a voxel."""
    images = ImageStacks(torch.rand(1, 1, 32, 32), model)
    assert images.kept(200) == 200
    images.voxels = 128**3
    assert images.kept(200) == 15
    images.voxels = 512**3
    assert images.kept(200) == 4


def test_captum_is_told_how_the_network_is_run() -> None:
    """Of overlapping outputs the region of one is where its own logit is positive, not where it is the largest."""
    torch.manual_seed(0)
    model, image = tk.unet(1, 3, channels=(4, 8)), torch.rand(1, 1, 32, 32)
    explorer = tk.widgets.cam_explorer(model, image, activation="sigmoid").set(target_class=2, method="saliency")
    logits = tk.predict(model, image, output="logits", activation="sigmoid")
    assert explorer.result("network").region[0, 0].equal(torch.as_tensor(logits)[0, 1] > 0)
    expected = tk.attribute(model, image, "saliency", tk.Region(1), activation="sigmoid").maps["input"][0, 0]
    torch.testing.assert_close(torch.from_numpy(explorer.maps("network").maps["input"]), expected.double())

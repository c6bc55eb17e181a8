"""Composers of explanations: Grad-CAM, attributions and masked latents show the raw maps, on the slice that matters."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from toolkit.errors import ConfigError, ResultError
from toolkit.explain.attribution_result import AttributionResult
from toolkit.explain.cam_result import GradCamResult
from toolkit.explain.explained import Explained
from toolkit.explain.mask_result import MaskedLatent
from toolkit.show.compose_explain import grad_cams, masked_latent
from toolkit.show.figures import compose
from toolkit.show.panels import Image
from toolkit.show.slices import choose_view

GENERATOR = torch.Generator().manual_seed(0)
CLASSES = {0: "background", 1: "RV", 2: "LV"}
PROVENANCE = {"weights": "ab" * 32, "versions": {"torch": "2"}}


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def cam_result(size: tuple[int, ...] = (16, 24), layers: int = 3, batch: int = 2) -> GradCamResult:
    maps = {f"encoder.{k}": random(batch, 1, *[side // 2**k for side in size]) for k in range(layers)}
    label = torch.zeros(batch, 1, *size, dtype=torch.long)
    label[..., 4:8, 5:9] = 2
    return GradCamResult(
        maps=maps,
        status={name: ["ok"] * batch for name in maps},
        image=random(batch, 1, *size),
        label=label,
        prediction=label[:, 0],
        region=label == 2,
        score=torch.ones(batch),
        cases=[f"case{i}" for i in range(batch)],
        spacing=[None] * batch,
        affine=[None] * batch,
        classes=CLASSES,
        target="Region(index='LV', inside='reference')",
        method="grad_cam",
        provenance=PROVENANCE,
    )


def masked_result(mask: torch.Tensor, decoded: bool = False) -> MaskedLatent:
    segmentation = torch.zeros(1, 16, 16, dtype=torch.long)
    segmentation[:, 4:8, 4:8] = 1
    changed = segmentation.clone()
    changed[:, 4, 4:8] = 2
    entropy = random(1, 16, 16).abs()
    image = (random(1, 1, 16, 16), random(1, 1, 16, 16)) if decoded else None
    return MaskedLatent(
        input=random(1, 1, 16, 16),
        image=image,
        segmentation=(segmentation, changed),
        entropy=(entropy, 2 * entropy),
        mask=mask,
        image_mask=None,
        label=segmentation[:, None],
        cases=["case0"],
        classes=CLASSES,
        scheme="channel",
        fraction=0.3,
        soft=True,
        skips="keep",
        layer="bottleneck",
        bn_mode="eval",
        temperature=1.0,
        against="label",
        provenance=PROVENANCE,
    )


def test_grad_cam_draws_the_raw_maps_with_symmetric_limits() -> None:
    result = cam_result()
    panels = compose(result, index=1).panels()
    assert [panel.title for panel in panels] == ["image", *result.maps]
    for panel, raw in zip(panels[1:], result.maps.values(), strict=True):
        assert isinstance(panel, Image)
        assert panel.overlay is not None
        assert np.array_equal(panel.overlay, raw[1, 0].numpy().astype(float))
        low, high = panel.overlay_limits
        assert low == -high
        assert high == pytest.approx(float(raw[1].abs().max()))


def test_grad_cam_on_a_shared_scale() -> None:
    result = cam_result()
    limits = {
        panel.overlay_limits for panel in compose(result, scale="shared").panels()[1:] if isinstance(panel, Image)
    }
    assert len(limits) == 1
    with pytest.raises(ConfigError, match="layer, shared"):
        compose(result, scale="mine")
    with pytest.raises(ResultError, match="no image 7"):
        compose(result, index=7)


def test_grad_cam_says_if_a_map_is_no_evidence() -> None:
    result = cam_result(layers=1)
    result.maps["encoder.0"].zero_()
    result.status["encoder.0"] = ["zero", "zero"]
    assert compose(result).panels()[1].note == "zero: all zero"


def test_padding_is_cut_from_image_and_map() -> None:
    result = cam_result()
    result.padding = [(2, 2), (1, 3)]
    panel = compose(result).panels()[2]
    assert isinstance(panel, Image)
    assert panel.overlay is not None
    assert panel.pixels.shape == panel.overlay.shape == result.image.shape[2:]
    assert np.allclose(panel.overlay, result.resized("encoder.1")[0, 0].numpy())


def test_networks_are_compared_on_one_case_only() -> None:
    first, second = cam_result(), cam_result()
    assert len(grad_cams([first, second], ["plain", "SegReg"]).rows) == 2
    second.cases = ["other", "other"]
    with pytest.raises(ResultError, match="different images"):
        grad_cams([first, second], ["plain", "SegReg"])


def test_a_volume_is_cut_where_the_region_is_largest() -> None:
    focus = np.zeros((5, 4, 4))
    focus[1, 0, 0], focus[3, :2, :2] = 1, 1
    assert choose_view((5, 4, 4), (5, 4, 4), focus=focus).position == 3
    assert choose_view((5, 4, 4), (5, 4, 4), focus=np.zeros((5, 4, 4))).position == 2
    with pytest.raises(ResultError, match="no slice 9"):
        choose_view((5, 4, 4), (5, 4, 4), position=9)


def test_large_images_are_thinned_and_keep_their_aspect() -> None:
    view = choose_view((600, 300), (600, 300), spacing=(2.0, 1.0))
    assert view.plane(np.zeros((600, 300))).shape == (200, 100)
    assert view.aspect == 2.0


def test_colour_images_are_drawn_in_colour() -> None:
    view = choose_view((4, 5), (4, 5))
    assert view.picture(np.zeros((3, 4, 5))).shape == (4, 5, 3)
    assert view.picture(np.zeros((2, 4, 5))).shape == (4, 5)


def test_masked_latent_shows_clean_above_masked() -> None:
    figure = masked_latent(masked_result(torch.ones(1, 12, 1, 1)))
    titles = [[panel.title for panel in row if panel] for row in figure.rows]
    assert titles[0] == ["image", "clean code: segmentation", "clean code: entropy"]
    assert titles[1] == ["mask of the channels", "masked code: segmentation", "masked code: entropy"]
    entropies = [panel for panel in figure.panels() if panel.title.endswith("entropy")]
    assert len({panel.overlay_limits for panel in entropies if isinstance(panel, Image)}) == 1
    assert "1.6% of the image changed" in [panel.note for panel in figure.panels()]  # 4 of 256 pixels


def test_regions_are_drawn_from_the_masks_that_are_called_so() -> None:
    """The label map's 2 is no region 2: "core" is what the second output says, not where the label is 2."""
    masks = torch.zeros(2, 2, 16, 24, dtype=torch.uint8)
    masks[:, 0, 2:12, 2:12], masks[:, 1, 4:8, 4:8] = 1, 1
    label = torch.zeros(2, 1, 16, 24, dtype=torch.int64)
    label[..., 14:, 14:] = 2
    known: dict[str, Any] = {"prediction": masks, "label": label, "classes": {1: "whole", 2: "core"}}
    for target, drawn in (("Region(index='core', inside='prediction')", 1), ("ClassSum(index=0)", 0)):
        cam = dataclasses.replace(cam_result(), target=target, **known)
        image, *maps = grad_cams([cam], [""], crop=False).panels()
        assert image.note.startswith("prediction")
        assert np.array_equal(image.labels, np.asarray(masks[0, 0]) + np.asarray(masks[0, 1]))
        assert np.array_equal(maps[0].labels, np.asarray(masks[0, drawn]) * (drawn + 1))
    small = masks[:1, :, :, :16].long()
    result = dataclasses.replace(masked_result(random(1, 8, 1, 1)), segmentation=(small, small * 0), label=small)
    above, below = compose(result).rows
    assert np.unique(above[1].labels).tolist() == np.unique(above[0].labels).tolist() == [0, 1, 2]
    assert not below[1].labels.any()


def test_the_mask_of_tokens_is_laid_out_as_what_it_is() -> None:
    """16 positions of tokens (B, L, 1) are a 4 x 4 picture, 8 channels (B, 1, C) are 2 x 4 cells."""
    for mask, scheme, shape in ((random(2, 16, 1), "spatial", (4, 4)), (random(2, 1, 8), "channel", (2, 4))):
        result = dataclasses.replace(masked_result(mask), scheme=scheme, input=random(2, 1, 16, 16))
        panel = compose(result).rows[1][0]
        assert panel.title == f"mask of the {'positions' if scheme == 'spatial' else 'channels'}"
        assert np.array_equal(panel.pixels, np.asarray(mask[0], dtype=float).reshape(shape))


def test_only_masks_that_aim_are_said_to_attack() -> None:
    for scheme, words in (("channel", True), ("dropout", False), ("by hand", False)):
        figure = compose(dataclasses.replace(masked_result(random(2, 8, 1, 1)), scheme=scheme))
        assert ("attack" in figure.subtitle) is words
        assert figure.title.endswith(", soft") is words


def test_maps_are_cut_to_the_organs_and_carry_their_contour() -> None:
    result = cam_result()
    result.label = torch.zeros(2, 1, *result.image.shape[2:], dtype=torch.int64)
    result.label[:, :, 2:5, 3:6] = 1
    panels = compose(result).panels()
    windows = {panel.window for panel in panels if isinstance(panel, Image)}
    assert len(windows) == 1
    (window,) = windows
    assert window is not None
    assert window[0] <= 2 < 5 <= window[1] < result.image.shape[2]
    assert all(isinstance(panel, Image) and panel.labels is not None for panel in panels)
    assert {panel.window for panel in compose(result, crop=False).panels() if isinstance(panel, Image)} == {None}


def test_the_region_of_an_attribution_has_the_colour_of_its_class() -> None:
    cam = cam_result()
    told = {field.name: getattr(cam, field.name) for field in dataclasses.fields(Explained)}
    own: dict[str, Any] = {"attributions": {"input": cam.image}, "baseline_score": torch.zeros(2), "settings": {}}
    for target, label in (("Region(index='LV', inside='reference')", 2), ("ClassSum(index=1)", 1), ("Voxel()", 1)):
        image = compose(AttributionResult(**own, **{**told, "target": target, "method": "saliency"})).panels()[0]
        assert set(np.unique(image.labels)) == {0, label}


def test_a_class_with_brackets_in_its_name_is_drawn_alone() -> None:
    cam = cam_result()
    cam.label[..., 10:12, 10:12] = 1
    cam.classes, cam.target = {1: "wall", 2: "tumour (core), solid"}, "ClassSum(index='tumour (core), solid')"
    assert set(np.unique(grad_cams([cam], [""], crop=False).panels()[1].labels)) == {0, 2}


def test_networks_side_by_side_show_the_same_slice_of_a_volume() -> None:
    results = []
    for slices in (slice(1, 2), slice(5, 6)):  # where either finds the class
        cam, region = cam_result(layers=1, batch=1), torch.zeros(1, 1, 8, 16, 24, dtype=torch.bool)
        region[:, :, slices, 4:8, 5:9] = True
        volume = {"image": random(1, 1, 8, 16, 24), "label": None, "prediction": 2 * region[:, 0].long()}
        results.append(dataclasses.replace(cam, maps={"head": random(1, 1, 8, 16, 24)}, region=region, **volume))
        results[-1].status = {"head": ["ok"]}
    images = [panel for panel in grad_cams(results, ["a", "b"]).panels() if panel.title in "ab"]
    assert [panel.note.split("; ")[0] for panel in images] == ["prediction, slice 1"] * 2

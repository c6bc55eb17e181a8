"""Recipes: every value has its source, the values are the ones that train, stages hand on what they should."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import toolkit
from toolkit import recipes
from toolkit.data.task import Task
from toolkit.errors import CheckpointError, ConfigError
from toolkit.methods.recipe import Recipe, Setting
from toolkit.training.checkpoint import read
from toolkit.training.optimizer import build_optimizer
from toolkit.training.step import TrainingStep

SHORT: dict[str, Any] = {
    "steps": 2,
    "batch_size": 4,
    "validate_every": 2,
    "patch_size": (32, 32),
    "seed": 0,
    "log_every": 2,
}
SMALL: dict[str, dict[str, Any]] = {
    "segreg": {"model": {"channels": [4, 8, 8]}},
    "self_reg_unet": {"model": {"width": 2}},
    "latent_augmentation": {"model": {"width": 2}},
    "med_disseg": {"model": {"encoder_width": 4, "width": 16}},
}


def small(name: str, task: Task, **config: Any) -> Recipe:
    return getattr(recipes, name)(task, **SMALL[name], **{**SHORT, **config})


@pytest.mark.parametrize("name", SMALL)
def test_every_value_has_a_source(name: str, unit: Task) -> None:
    table = getattr(recipes, name)(unit).table()
    sections = r"(segreg|selfreg|latent_augmentation|med_disseg|continual_learning) \d+(\.\d+)?"
    assert all(re.fullmatch(sections + "|the task|ours", source) for source in table["source"])
    assert table["source"].str.contains(r"\d").mean() > 0.5
    changed = small(name, unit).table()
    rows = changed[(changed["part"] == "config") & (changed["name"] == "steps")]
    assert set(rows["source"]) == {"chosen by the caller"}
    assert set(rows["value"]) == {2}


@pytest.mark.parametrize("name", SMALL)
def test_recipe_trains_and_a_stopped_one_goes_on(name: str, unit: Task, tmp_path: Path) -> None:
    recipe = small(name, unit)
    runs = recipe.train(tmp_path, progress=False)
    assert [run.finished for run in runs] == [True] * len(recipe.stages)
    history = runs[-1].history
    method = recipe.stages[-1].regularizer
    assert method is not None
    assert any(column.startswith(f"{method.name}/") for column in history.columns)
    assert (history.loc[history["event"] == "train", "total"]).notna().all()
    again = recipe.train(tmp_path, progress=False)
    for ours, theirs in zip(again, runs, strict=True):
        assert ours.model is not theirs.model
        for name_, value in theirs.model.state_dict().items():
            assert torch.equal(ours.model.state_dict()[name_], value), name_


def test_a_stage_is_what_train_takes(grey: Task, tmp_path: Path) -> None:
    stage = small("segreg", grey).stages[0]
    assert dict(stage)["model"] is stage.model
    assert "out" not in stage
    assert len(stage) == len(dict(stage))
    with pytest.raises(KeyError):
        stage["settings"]
    run = toolkit.train(**stage, out=tmp_path / "one", progress=False)
    assert run.model is stage.model
    assert run.regularizers == (stage.regularizer,)
    assert run.finished


def test_the_network_is_built_under_the_seed_and_leaves_the_random_state(grey: Task) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = small("segreg", grey).stages[0].model
    assert torch.equal(torch.get_rng_state(), before)
    second, other = small("segreg", grey).stages[0].model, small("segreg", grey, seed=1).stages[0].model
    weights = [model.state_dict()["head.weight"] for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_second_stage_starts_from_the_encoder_of_the_first(colour: Task, tmp_path: Path) -> None:
    recipe = small("med_disseg", colour)
    fresh = {k: v.clone() for k, v in recipe.stages[1].build().state_dict().items()}
    runs = recipe.train(tmp_path, progress=False)
    start = read(runs[1].directory.checkpoints, 0).weights if (runs[1].path / "checkpoints/00000000").exists() else None
    assert recipe.stages[1].transfer == "encoder"
    assert [stage.regularizer.tap for stage in recipe.stages] == [("layer3", "layer3#2"), "layer3"]  # type: ignore[union-attr]
    assert [stage.regularizer.weight for stage in recipe.stages] == [0.2, 0.6]  # type: ignore[union-attr]
    encoder = runs[0].model.state_dict()
    shared = [k for k in start if k.startswith("layer")]
    assert all(torch.equal(start[k], encoder[k]) for k in shared)
    assert any(not torch.equal(start[k], fresh[k]) for k in shared)
    assert all(torch.equal(start[k], fresh[k]) for k in start if k not in shared)


def test_epochs_become_steps_of_this_task(unit: Task) -> None:
    images = len(unit.cases("train"))
    stage = recipes.latent_augmentation(unit).stages[0]
    assert stage.config.steps == 600 * -(-images // 20)
    assert recipes.med_disseg(unit).stages[0].config.steps == 600 * -(-images // 8)
    assert recipes.med_disseg(unit).stages[1].config.steps == 300 * -(-images // 8)


def test_published_values_of_selfreg(grey: Task) -> None:
    acdc = recipes.self_reg_unet(grey).stages[0]
    assert (acdc.objective.cross_entropy, acdc.objective.dice) == (0.3, 0.7)  # type: ignore[attr-defined]
    assert (acdc.regularizer.scr, acdc.regularizer.ifd) == (0.1, 0.1)  # type: ignore[union-attr]
    assert (acdc.config.optimizer, acdc.config.learning_rate, acdc.config.batch_size) == ("adamw", 1e-4, 12)
    synapse = recipes.self_reg_unet(grey, "synapse").stages[0]
    assert (synapse.regularizer.scr, synapse.config.schedule) == (0.015, "polynomial_delayed")  # type: ignore[union-attr]
    published = recipes.self_reg_unet(grey, model={"out_channels": 9}).stages[0].model
    assert sum(p.numel() for p in published.parameters()) == pytest.approx(17.26e6, rel=5e-4)
    swin = recipes.self_reg_unet(grey, "synapse", swin=True, model={"width": 12, "heads": [1, 2, 4, 8]}).stages[0]
    assert (swin.regularizer.scr, len(swin.regularizer.groups)) == (0.010, 2)  # type: ignore[union-attr]
    assert swin.model.toolkit_config["name"] == "swin_unet"  # type: ignore[index]


def test_latent_augmentation_gets_images_between_0_and_1(grey: Task, unit: Task) -> None:
    assert recipes.latent_augmentation(unit).stages[0].objective.clip is True  # type: ignore[attr-defined]
    adapted = recipes.latent_augmentation(grey)
    assert adapted.stages[0].objective.clip is False  # type: ignore[attr-defined]
    row = adapted.table().query("name == 'clip'").iloc[0]
    assert "zscore-clip" in row["note"]
    catalogue = toolkit.load_task("phantom-cardiac")
    stage = recipes.latent_augmentation(catalogue).stages[0]
    assert (stage.task.normalisation, catalogue.normalisation) == ("range:2,98", "zscore-clip")
    standard = recipes.latent_augmentation(unit, cooperative=False).stages[0]
    assert standard.regularizer is None


def test_what_cannot_be(grey: Task) -> None:
    with pytest.raises(ConfigError, match="no data set with settings 'brain'"):
        recipes.self_reg_unet(grey, "brain")
    with pytest.raises(ConfigError, match="no preset"):
        recipes.segreg(grey, "segreg_best")
    with pytest.raises(ConfigError, match="unexpected keyword argument 'step'"):
        recipes.segreg(grey, step=5)
    with pytest.raises(ConfigError, match="belongs to one of"):
        Setting("optimizer", "lr", 1, "segreg 1")


def test_latent_augmentations_baselines(unit: Task) -> None:
    for name in ("random_windows", "random_convolution", "adversarial_noise", "adversarial_bias"):
        recipe = recipes.latent_augmentation(unit, baseline=name)
        stage = recipe.stages[0]
        assert stage.regularizer is not None
        assert stage.regularizer.name == stage.name == name
        method = recipes.latent_augmentation(unit).stages[0]
        assert stage.config == method.config
        assert stage.objective == method.objective
        rows = recipe.table().query("part == 'regularizer'")
        assert set(rows["source"]) == {"latent_augmentation 5.6"}
    with pytest.raises(ConfigError, match="no baseline 'cutout'"):
        recipes.latent_augmentation(unit, baseline="cutout")


def setting(recipe: Recipe, stage: str, part: str, name: str) -> Any:
    rows = recipe.table()
    row = rows[(rows["stage"] == stage) & (rows["part"] == part) & (rows["name"] == name)]
    assert len(row) == 1, (stage, part, name)
    return row.iloc[0]


def test_med_disseg_corrects_the_released_data_code_unless_it_is_asked_to_repeat_it() -> None:
    glands = toolkit.load_task("phantom-glands")
    options: dict[str, Any] = {**SMALL["med_disseg"], **SHORT}
    sound, legacy = (recipes.med_disseg(glands, legacy=flag, **options) for flag in (False, True))
    for recipe, rule, aligned, augmentation, factor in (
        (sound, "zscore-clip", True, "geometry", 0.1),
        (legacy, "bgr", False, "geometry-label-before", 1.0),
    ):
        first, second = recipe.stages
        assert {stage.task.normalisation for stage in recipe.stages} == {rule}
        assert first.config.augmentation == "geometry"
        assert first.config.rate_factors == ()
        assert second.config.augmentation == augmentation
        assert second.objective.aligned_background is aligned  # type: ignore[attr-defined]
        optimizer = build_optimizer(TrainingStep(second.model, second.objective), second.config)
        scales = {
            name: group.get("learning_rate_scale", 1.0)
            for group in optimizer.param_groups
            for name, parameter in second.model.named_parameters()
            if any(parameter is one for one in group["params"])
        }
        for name in ("layer0.0.weight", "layer3.5.bn3.bias"):
            assert scales[name] == factor
        assert {v for k, v in scales.items() if not k.startswith("layer")} == {1.0}
        assert setting(recipe, "network", "objective", "aligned_background")["value"] == aligned
        assert setting(recipe, "network", "task", "normalisation")["value"] == rule
        assert "1e-4 for all" in setting(recipe, "network", "config", "rate_factors")["note"]
    image, stored = (recipe.stages[0].task.cases("train")[0].image for recipe in (legacy, sound))
    raw = toolkit.load_task("phantom-glands", normalisation="none").cases("train")[0].image
    torch.testing.assert_close(image, raw.flip(0) / 255)
    assert image.shape == stored.shape


def test_the_legacy_recipe_trains_on_a_background_that_is_not_moved(tmp_path: Path) -> None:
    glands = toolkit.load_task("phantom-glands")
    recipe = recipes.med_disseg(glands, legacy=True, **SMALL["med_disseg"], **SHORT)
    stage = recipe.stages[1]
    batch = stage.task.loader("train", batch_size=2, patch_size=(32, 32), augmentation=stage.config.augmentation).batch(
        0
    )
    terms = TrainingStep(stage.model, stage.objective)(batch).terms
    assert all(bool(value.isfinite()) for value in terms.values())
    run = toolkit.train(
        **{**stage, "config": stage.config.replace(validate_every=0, select="last")},
        out=tmp_path / "run",
        progress=False,
    )
    assert run.finished
    assert toolkit.load_run(run.path).config == run.config  # patterns and factors survive the record


def test_what_med_dissegs_legacy_and_pretrained_recipes_ask_of_a_task(colour: Task, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not as the released code"):
        recipes.med_disseg(colour, legacy=True)
    assert recipes.med_disseg(colour).stages[0].task is colour
    glands = toolkit.load_task("phantom-glands")
    file = tmp_path / "resnet50.pth"
    recipe = recipes.med_disseg(glands, backbone=file, backbone_sha256="0" * 64, **SHORT)
    assert {stage.task.normalisation for stage in recipe.stages} == {"imagenet"}
    with pytest.raises(CheckpointError, match="no such weights file"):
        recipe.stages[0].build()
    file.write_bytes(b"not these")
    with pytest.raises(CheckpointError, match="SHA-256"):
        recipe.stages[0].build()

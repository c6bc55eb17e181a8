"""Settings are checked when they are made, and survive JSON."""

import json

import pytest

from toolkit.errors import ConfigError
from toolkit.training.config import TrainConfig, as_config


def test_json_round_trip_gives_an_equal_object() -> None:
    config = TrainConfig(steps=7, patch_size=(32, 64), betas=(0.8, 0.9), clip_norm=0.5, validation_cases=3, threads=1)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert isinstance(TrainConfig.from_dict(config.to_dict()).patch_size, tuple)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("step", "steps"),
        ("lr_rate", "learning_rate"),
        ("batchsize", "batch_size"),
        ("patch", "patch_size"),
        ("checkpoint_evry", "checkpoint_every"),
    ],
)
def test_an_unknown_setting_suggests_the_nearest(given: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unexpected keyword argument {given!r}") as caught:
        TrainConfig(**{given: 3})
    assert f"Did you mean {meant!r}?" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", 2.5),
        ("steps", True),
        ("batch_size", -1),
        ("precision", "fp16"),
        ("precision", 32),
        ("optimizer", "AdamW"),
        ("schedule", "step"),
        ("select", "test"),
        ("learning_rate", 0.0),
        ("learning_rate", "1e-3"),
        ("learning_rate", float("nan")),
        ("weight_decay", -0.1),
        ("clip_norm", 0.0),
        ("patch_size", 96),
        ("patch_size", (96, -1)),
        ("patch_size", (96.0, 96.0)),
        ("device", "gpu"),
        ("device", "cuda:x"),
        ("betas", (0.9, 1.0)),
        ("betas", 0.9),
        ("split_backward", 1),
        ("rate_factors", 3),
        ("rate_factors", "ab"),
        ("rate_factors", {"encoder.*": -1.0}),
        ("rate_factors", [("encoder.*",)]),
        ("rate_factors", {3: 1.0}),
        ("rate_factors", {"encoder.*": "slow"}),
        ("threads", 0),
        ("workers", -1),
        ("workers", 1.5),
        ("validation_cases", 0),
        ("foreground", 1.5),
        ("foreground", True),
        ("augmentation", None),
        ("log_every", 0),
        ("seed", -1),
    ],
)
def test_values_that_cannot_work_are_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        TrainConfig(**{name: value})
    assert caught.value.fix


def test_a_near_choice_is_suggested() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'one_cycle'"):
        TrainConfig(schedule="onecycle")


def test_half_precision_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision"):
        TrainConfig(precision="16", device="cpu")


def test_replace_checks_too_and_leaves_the_original() -> None:
    config = TrainConfig()
    assert config.replace(steps=3).steps == 3
    assert config.steps == 500
    with pytest.raises(ConfigError, match="steps"):
        config.replace(steps=-3)


def test_as_config_takes_mappings() -> None:
    assert as_config({"steps": 3}).steps == 3
    assert as_config(None) == TrainConfig()


def test_rate_factors_survive_json_and_keep_the_config_hashable() -> None:
    config = TrainConfig(rate_factors={"encoder.*": 0.1, "*": 2})
    assert config.rate_factors == (("encoder.*", 0.1), ("*", 2))
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(config.replace(steps=config.steps))
    old = {k: v for k, v in config.to_dict().items() if k != "rate_factors"}  # a run of an earlier version
    assert TrainConfig.from_dict(old).rate_factors == ()

"""The code of the pages on one's own loop and one's own regularizer runs."""

from __future__ import annotations

import copy
import importlib
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import every_regularizer as every
import pytest
import torch

import toolkit as tk
from toolkit import registry

PAGES = Path(__file__).parents[3] / "docs" / "how_to"


def blocks(page: str) -> list[str]:
    text = (PAGES / page).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= (60 if page != "own_regularizer.md" else 80), "a joint's page is a screen"
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_a_regularizer_outside_the_package_is_checked_trained_resumed_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, use, named = blocks("own_regularizer.md")
    assert len(own.splitlines()) < 40
    (tmp_path / "smoothness.py").write_text(own)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    use = use.replace("steps=200", "steps=2, batch_size=4").replace(
        "TotalVariation())", "TotalVariation(), processes=1)"
    )
    monkeypatch.setattr(tk, "load_task", lambda name: every.task(), raising=False)
    with_task = use.replace('tk.resume("runs/smooth")', 'tk.resume("runs/smooth", task=task)')  # made of arrays here
    space: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tk.ToolkitWarning)
        exec(compile(with_task, "own_regularizer.md", "exec"), space)
        exec(compile(named, "own_regularizer.md", "exec"), space)
    assert type(space["run"].regularizers[0]).__name__ == "TotalVariation"
    assert space["run"].history["total_variation/gradient_ratio"].notna().any()
    assert (tmp_path / "health.pdf").stat().st_size > 1000
    assert (tmp_path / "smooth.html").exists()
    registry._FACTORIES["regularizer"].pop("my_total_variation")
    sys.modules.pop("smoothness")


def images_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    batch = every.batch()
    return tuple(torch.cat([batch[key], batch[key].flip(-1)]) for key in ("image", "label"))  # type: ignore[return-value]


@pytest.fixture
def own_loop() -> dict[str, Any]:
    """What the page's plain loop leaves behind."""
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*images_and_labels()), batch_size=3)
    space: dict[str, Any] = {"loader": loader}
    exec(compile(blocks("own_loop.md")[0], "own_loop.md", "exec"), space)
    assert space["reg"].step == 2
    return space


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and devices
def test_lightning_trains_with_a_regularizer(own_loop: dict[str, Any]) -> None:
    exec(compile(blocks("trainers.md")[0], "trainers.md", "exec"), own_loop)
    assert own_loop["trainer"].global_step == 4


@pytest.mark.filterwarnings("ignore")
def test_monais_trainer_trains_with_a_regularizer(own_loop: dict[str, Any]) -> None:
    """Its step is the plain loop's: the same weights after two batches."""
    pytest.importorskip("ignite")
    images, labels = images_and_labels()
    own_loop["dictionaries"] = [{"image": i, "label": n} for i, n in zip(images.split(3), labels.split(3), strict=True)]
    before = {name: value.clone() for name, value in own_loop["model"].state_dict().items()}
    moments = copy.deepcopy(own_loop["optimizer"].state_dict())
    exec(compile(blocks("trainers.md")[1], "trainers.md", "exec"), own_loop)
    after = {name: value.clone() for name, value in own_loop["model"].state_dict().items()}
    assert own_loop["reg"].step == 4
    own_loop["model"].load_state_dict(before)
    own_loop["optimizer"].load_state_dict(moments)
    own_loop["reg"].step = 2
    for image, label in zip(images.split(3), labels.split(3), strict=True):
        loss = own_loop["criterion"](own_loop["model"](image), label[:, 0])
        loss = loss + own_loop["reg"].loss({"image": image, "label": label})
        own_loop["optimizer"].zero_grad()
        loss.backward()
        own_loop["optimizer"].step()
    for name, value in own_loop["model"].state_dict().items():
        torch.testing.assert_close(value, after[name])


@pytest.mark.filterwarnings("ignore")
def test_hugging_faces_trainer_trains_with_a_regularizer(
    own_loop: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers: Any = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    sizes = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16]}
    parts = {"patch_sizes": [3, 3], "strides": [2, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
    settings = transformers.SegformerConfig(num_channels=1, num_labels=2, decoder_hidden_size=8, **sizes, **parts)
    model = own_loop["segformer"] = transformers.SegformerForSemanticSegmentation(settings)
    pairs = zip(*images_and_labels(), strict=True)
    own_loop["dataset"] = [{"pixel_values": image, "labels": label[0].long()} for image, label in pairs]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    exec(compile(blocks("trainers.md")[2], "trainers.md", "exec"), own_loop)
    assert own_loop["reg"].step == 2
    assert all(torch.isfinite(value) for value in own_loop["reg"].terms.values())
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())

"""The code of the pages on one's own loop and one's own regularizer runs."""

from __future__ import annotations

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
    return re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(encoding="utf-8"), flags=re.DOTALL)


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


def test_the_loops_of_others_train_with_a_regularizer() -> None:
    plain, with_lightning, with_monai, with_transformers = blocks("own_loop.md")
    batch = every.batch()
    images = torch.cat([batch["image"], batch["image"].flip(-1)])
    labels = torch.cat([batch["label"], batch["label"].flip(-1)])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=3)
    space: dict[str, Any] = {"loader": loader}
    exec(compile(plain, "own_loop.md", "exec"), space)
    assert space["reg"].step == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and devices
        exec(compile(with_lightning, "own_loop.md", "exec"), space)
    assert space["trainer"].global_step == 4
    exec(compile(with_monai, "own_loop.md", "exec"), space)
    logits = space["model"](images)
    space["loss_function"](logits, labels).backward()
    assert space["reg"].step == 3
    compile(with_transformers, "own_loop.md", "exec")

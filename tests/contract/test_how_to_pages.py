"""The code of the pages on watching, several GPUs, export and MONAI runs as it is written, on a small network."""

from __future__ import annotations

import json
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import toolkit as tk

QUICK: dict[str, Any] = {"batch_size": 4, "patch_size": (32, 32), "validation_cases": 1}
PAGES = Path(__file__).parents[2] / "docs" / "how_to"


def blocks(page: str) -> list[str]:
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60, "a page is a screen"
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The pages' network, small, in an empty folder."""
    whole = tk.unet
    monkeypatch.setattr(tk, "unet", lambda *given, **named: whole(*given, channels=(4, 8, 8), **named))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_watching(small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, int]] = []
    for name in ("wandb", "mlflow"):  # their own libraries were tried by hand: see tests/unit/integrations
        monkeypatch.setattr(
            tk.loggers, name, lambda *_, name=name, **__: lambda row: told.append((name, row["step"])), raising=True
        )
    known: dict[str, Any] = {"cfg": tk.TrainConfig(steps=4, log_every=2, validate_every=2, **QUICK)}
    for code in blocks("watching"):
        exec(code, known)
    assert "4 validation" in capsys.readouterr().out
    assert list((small / "runs" / "tensorboard" / "a").iterdir())
    assert {name for name, _ in told} == {"wandb", "mlflow"}
    assert max(step for _, step in told) == 8
    assert known["watcher"].last
    assert known["run"].step == 10


@pytest.mark.slow
def test_many_gpus(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process: `tests/contract/test_two_processes.py` starts torchrun."""
    (code,) = blocks("many_gpus")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(tk.ConfigError, match="torchrun started 1 processes"):
        exec(code, {})
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    quick = code.replace("steps=500, batch_size=16, devices=2", "steps=2, devices=1, workers=1, **QUICK")
    assert quick != code
    exec(quick, {"QUICK": QUICK})
    assert (small / "runs" / "two_gpus" / "run.json").is_file()


@pytest.mark.slow
def test_export(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Any] = {}

    def keep(name: str) -> Any:
        return lambda values, **more: kept.update({name: (values, more)})

    monkeypatch.setitem(sys.modules, "anndata", types.SimpleNamespace(AnnData=keep("AnnData")))
    monkeypatch.setitem(sys.modules, "xarray", types.SimpleNamespace(DataArray=keep("DataArray")))
    known: dict[str, Any] = {}
    for code in blocks("export"):
        exec(code, known)
    assert {path.name for path in (small / "out").iterdir()} == {
        "net.onnx",
        "similarity.csv",
        "similarity.tex",
        "similarity.pdf",
    }
    rows = known["feats"].rows("bottleneck")
    assert torch.equal(torch.from_numpy(kept["AnnData"][0]), rows)
    assert len(kept["AnnData"][1]["obs"]) == len(rows) == len(kept["DataArray"][1]["coords"]["case"][1])
    assert os.path.getsize("out/similarity.pdf") > 1000


@pytest.mark.slow
def test_monai_torchio(small: Path) -> None:
    import monai
    import torchio

    drawn = torch.Generator().manual_seed(0)
    images = [torch.rand(1, 32, 32, generator=drawn) for _ in range(10)]
    items = [{"image": image, "label": (image > 0.8).long(), "subject": f"p{i}"} for i, image in enumerate(images)]
    volumes = [torch.rand(1, 8, 8, 8, generator=drawn) for _ in range(5)]
    subjects = [
        torchio.Subject(image=torchio.ScalarImage(tensor=v), label=torchio.LabelMap(tensor=(v > 0.8).to(torch.uint8)))
        for v in volumes
    ]
    bundle = small / "spleen_ct_segmentation"
    for name in ("configs", "models"):
        (bundle / name).mkdir(parents=True)
    entry = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}
    (bundle / "configs" / "inference.json").write_text(json.dumps({"network_def": {"_target_": "UNet", **entry}}))
    torch.save(monai.networks.nets.UNet(**entry).state_dict(), bundle / "models" / "model.pt")
    known: dict[str, Any] = {"items": items, "subjects": subjects}
    for code in blocks("monai_torchio"):
        exec(code.replace("steps=500", "steps=3, batch_size=2").replace('"steps": 500', '"steps": 3'), known)
    assert len(known["task"].cases()) == 10
    assert (known["other"].dims, len(known["other"].cases())) == (3, 5)
    assert (small / "runs" / "monai" / "run.json").is_file()
    assert known["run"].step == 3
    assert known["label"].shape[-2:] == (32, 32)


@pytest.mark.slow
def test_cross_validation(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known: dict[str, Any] = {"cfg": tk.TrainConfig(steps=1, validate_every=1, **QUICK)}
    for code in blocks("cross_validation"):
        exec(code, known)
    assert set(known["table"]["method"]) == {"plain", "SegReg"}
    assert "\\begin{tabular}" in (small / "table.tex").read_text(encoding="utf-8")
    counts = [[int(n) for n in line.split()] for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()]
    assert len(counts) == 3
    assert {sum(row) for row in counts} == {len(known["task"])}
    assert sum(row[2] for row in counts) == len(known["task"]), "every image is tested once"

"""Reference numbers of the dispersive loss: every case of dispersive_loss.npz within the manifest's tolerance."""

import numpy as np
import pytest
import torch
from golden_cases import golden_file

from toolkit.methods.med_disseg.dispersion import dispersive_loss, token_rows

FILE = golden_file("med_disseg", "dispersive_loss.npz")
CASES = [case.entry for case in FILE.values()]


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return next(iter(FILE.values())).numbers()


def _input(case: dict, arrays: dict[str, np.ndarray]) -> torch.Tensor:
    (key,) = case["inputs"].values()
    factor, _, key = key.rpartition(" * ")
    values = torch.from_numpy(arrays[key]) * float(factor or 1)
    return values.to(getattr(torch, case["dtype"])).requires_grad_()


def test_every_case_of_the_file_is_listed() -> None:
    assert len(CASES) == 46


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_reference_values_and_gradients(case: dict, arrays: dict[str, np.ndarray]) -> None:
    settings = case["hyperparameters"]
    released = settings["variant"] != "infonce_l2_squared_mean"
    z = _input(case, arrays)
    loss = dispersive_loss(
        token_rows(z) if "H*W,C)" in settings.get("layout", "") else z,
        settings["variant"] if released else "infonce_l2",
        settings["temperature"],
        "released" if released else "original",
    )
    assert loss.ndim == 0
    np.testing.assert_allclose(loss.item(), arrays[case["expected"]["loss"]], **case["tolerance"])
    np.testing.assert_allclose(loss.item(), case["value"], **case["tolerance"])
    gradients = [key for name, key in case["expected"].items() if name.startswith("grad")]
    if "max_abs_grad" in case["expected"]:
        (gradient,) = torch.autograd.grad(loss, z)
        assert gradient.abs().max().item() == arrays[case["expected"]["max_abs_grad"]].item()
    elif gradients:
        (gradient,) = torch.autograd.grad(loss, z)
        np.testing.assert_allclose(gradient.numpy(), arrays[gradients[0]], **case["tolerance"])
    elif len(z) == 1:
        assert not loss.requires_grad

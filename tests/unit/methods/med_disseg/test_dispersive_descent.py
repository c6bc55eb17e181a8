"""What gradient descent on the dispersive loss does to a collapsed batch (acceptance list 9.3)."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from toolkit.methods.med_disseg.dispersion import dispersive_loss

DELTA = 1e-8


def value_and_gradient(z: Tensor, *arguments: object, **options: object) -> tuple[float, Tensor]:
    z = z.detach().clone().requires_grad_()
    loss = dispersive_loss(z, *arguments, **options)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss, z)
    return loss.item(), gradient


def descent(z: Tensor, preset: str, step: float, steps: int) -> tuple[Tensor, list[float], float]:
    """Gradient descent on the rows: final rows, mean pairwise distance after every step, last loss."""
    distances = [torch.pdist(z).mean().item()]
    loss = math.nan
    for _ in range(steps):
        loss, gradient = value_and_gradient(z, preset=preset)
        z = z - step * gradient
        distances.append(torch.pdist(z).mean().item())
    return z, distances, loss


def effective_rank(z: Tensor) -> float:
    singular = torch.linalg.svdvals(z - z.mean(dim=0))
    share = singular / singular.sum()
    return torch.exp(torch.special.entr(share).sum()).item()


def collapsed(kind: str) -> Tensor:
    """One standard normal row repeated 16 times plus noise of 1e-3, isotropic or almost of rank one."""
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(1, 64, dtype=torch.float64, generator=generator).repeat(16, 1)
    if kind == "isotropic":
        return start + 1e-3 * torch.randn(16, 64, dtype=torch.float64, generator=generator)
    direction = torch.nn.functional.normalize(torch.randn(1, 64, dtype=torch.float64, generator=generator))
    along = torch.randn(16, 1, dtype=torch.float64, generator=generator)
    return start + 8e-3 * along @ direction + 1e-6 * torch.randn(16, 64, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("kind", ["isotropic", "rank one"])
def test_9_3_default_spreads_a_collapsed_batch(kind: str) -> None:
    start = collapsed(kind)
    z, distances, loss = descent(start, "default", step=10, steps=250)
    assert all(later >= earlier for earlier, later in itertools.pairwise(distances))
    assert -math.log(16) < loss < -2.74
    assert 14 < distances[-1] < 24
    if kind == "rank one":
        assert effective_rank(start) < 1.1
        assert effective_rank(z) > 10


@pytest.mark.parametrize("kind", ["isotropic", "rank one"])
def test_9_3_default_cosine_reaches_the_simplex(kind: str) -> None:
    z, distances, loss = descent(collapsed(kind), "default-cosine", step=50, steps=400)
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(distances))
    assert loss == pytest.approx(-16 / (15 * 0.5), abs=1e-3)
    assert effective_rank(z) == pytest.approx(15.0, abs=0.05)


def test_9_3_released_works_inside_its_band_and_stalls_outside() -> None:
    start = collapsed("rank one")
    z, distances, _ = descent(start, "released", step=0.1, steps=50)
    assert all(later >= earlier for earlier, later in itertools.pairwise(distances))
    assert effective_rank(start) < 1.1
    assert effective_rank(z) > 5
    _, _, loss = descent(start, "released", step=1, steps=250)
    assert loss == pytest.approx(math.log(DELTA), abs=0.3)


def test_9_3_released_is_dead_where_default_is_alive() -> None:
    z = torch.randn(16, 65_536, generator=torch.Generator().manual_seed(0))
    loss, gradient = value_and_gradient(z, preset="released")
    assert loss == pytest.approx(-18.42068, abs=1e-5)
    assert gradient.abs().max() == 0
    loss, gradient = value_and_gradient(z, preset="default")
    assert loss == pytest.approx(-2.53, abs=0.01)
    assert gradient.norm().item() == pytest.approx(1.7e-3, rel=0.05)

"""Learning rates against torch's own schedulers, stepped one by one."""

import warnings

import pytest
import torch
from golden_cases import golden_case
from torch.optim import lr_scheduler

from toolkit.training.config import TrainConfig
from toolkit.training.optimizer import learning_rate

STEPS, RATE = 37, 0.02


def torch_rates(schedule: str) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    kinds = {
        "one_cycle": lambda: lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, cycle_momentum=False),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS),
        "polynomial": lambda: lr_scheduler.PolynomialLR(optimizer, total_iters=STEPS, power=0.9),
        "constant": lambda: lr_scheduler.ConstantLR(optimizer, factor=1.0),
    }
    scheduler, rates = kinds[schedule](), []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler.step() if len(rates) < STEPS else None
    return rates


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "polynomial", "constant"])
def test_equal_to_torch(schedule: str) -> None:
    config = TrainConfig(steps=STEPS, learning_rate=RATE, schedule=schedule)
    assert [learning_rate(config, step) for step in range(STEPS)] == pytest.approx(torch_rates(schedule), rel=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_very_short_runs_have_positive_rates(steps: int) -> None:
    config = TrainConfig(steps=steps, schedule="one_cycle")
    assert all(0 < learning_rate(config, step) <= config.learning_rate for step in range(steps))


def test_the_polynomial_schedule_as_the_authors_of_selfreg_ran_it() -> None:
    case = golden_case("selfreg", "poly_lr")
    numbers = case.numbers()
    config = TrainConfig(
        steps=int(numbers["poly_lr__max_iterations"]),
        learning_rate=float(numbers["poly_lr__base_lr"]),
        schedule="polynomial_delayed",
    )
    expected = numbers["poly_lr__lr_used"]
    got = [learning_rate(config, step) for step in range(len(expected))]
    assert got == pytest.approx(expected, rel=case.entry["tolerance"]["array_max_rel"])
    assert got[0] == got[1] > got[2]

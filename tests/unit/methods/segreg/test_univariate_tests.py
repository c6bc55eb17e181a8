"""The other one-dimensional normality tests: reference values and gradients, and SciPy's where it has the same form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_cases import golden_case
from scipy import stats

from toolkit.errors import ConfigError
from toolkit.methods.segreg.univariate_tests import TESTS, sliced_test

NAMES = {"mean_and_variance": "vcreg"}


@pytest.mark.parametrize("test", TESTS)
def test_as_published(test: str) -> None:
    case = golden_case("segreg", "univariate_alternatives")
    arrays, tolerance = case.tensors(), case.entry["tolerance"]
    x = arrays["x"].double().requires_grad_()
    value = TESTS[test](x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    expected = [arrays[f"{NAMES.get(test, test)}__{what}"].double() for what in ("stat", "grad_sum")]
    if test == "anderson_darling":  # the reference approximates log Phi beyond |x| = 3: its own note allows 0.5 %
        inside = (x.detach().abs() < 3).all(0)
        assert int(inside.sum()) >= 2
        torch.testing.assert_close(value, expected[0], rtol=5e-3, atol=0)
        value, gradient, expected = value[inside], gradient[:, inside], [e[..., inside] for e in expected]
    torch.testing.assert_close(value, expected[0], **tolerance)
    torch.testing.assert_close(gradient, expected[1], **tolerance)


def test_against_scipy() -> None:
    x = np.random.default_rng(3).standard_t(5, 200)
    column = torch.from_numpy(x).unsqueeze(1)
    n = len(x)
    textbook = stats.cramervonmises(x, "norm").statistic
    assert float(TESTS["cramer_von_mises"](column)) == pytest.approx((textbook - 1 / (12 * n)) / n)
    standard = (x - x.mean()) / x.std(ddof=1)
    column = torch.from_numpy(standard).unsqueeze(1)
    third, fourth = (standard**3).mean(), (standard**4).mean()
    assert float(TESTS["mean_and_variance"](column)) == pytest.approx(0, abs=1e-20)
    assert float(TESTS["extended_jarque_bera"](column)) == pytest.approx(n / 6 * (third**2 + (fourth - 3) ** 2 / 4))
    order, fit = stats.probplot(standard, fit=True)
    # Filliben's positions are close to these: the probability plot's correlation is the cosine of centred values.
    assert float(1 - TESTS["shapiro_wilk"](column)) == pytest.approx(fit[2], abs=2e-3)
    assert len(order[0]) == n


def test_normal_rows_score_lower_than_others_along_every_test() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 8, generator=generator)
    directions = torch.nn.functional.normalize(torch.randn(8, 16, generator=generator), dim=0)
    for test in TESTS:
        if test != "shapiro_wilk":  # it does not see the scale
            assert sliced_test(z, directions, test) < sliced_test(3 * z, directions, test)
        assert sliced_test(z, directions, test) < sliced_test(z + 1, directions, test)
    with pytest.raises(ConfigError, match="no test"):
        sliced_test(z, directions, "kolmogorov")

"""Checks of maps: closed forms of linear networks, scipy, and a network that has learnt nothing."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from networks import Inplace
from scipy import stats
from torch import Tensor, nn

from toolkit.data.randomness import keyed_random
from toolkit.errors import ConfigError, ResultError
from toolkit.explain.attribute import attribute
from toolkit.explain.faithfulness import Faithfulness, area, deletion_insertion, faithfulness
from toolkit.explain.gradcam import grad_cam
from toolkit.explain.sanity import RandomisedWeights, randomised_weights, rank_correlation
from toolkit.explain.targets import ClassSum, Region
from toolkit.features.changed_weights import shuffled
from toolkit.models.unet import unet
from toolkit.show.figures import compose
from toolkit.show.panels import Heatmap


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear() -> nn.Conv2d:
    net = nn.Conv2d(1, 2, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
    return net


def test_curves_of_a_sum_by_hand() -> None:
    image, base = torch.tensor([[[[4.0, 3.0], [2.0, 1.0]]]]), torch.zeros(1, 1, 2, 2)
    deleted, inserted = deletion_insertion(lambda x: x.flatten(1).sum(1), image, base, torch.tensor([0, 1, 2, 3]), 4)
    assert deleted.tolist() == pytest.approx([1, 0.6, 0.3, 0.1, 0])
    assert inserted.tolist() == pytest.approx([0, 0.4, 0.7, 0.9, 1])
    assert area(deleted) == pytest.approx((0.5 + 0.6 + 0.3 + 0.1) / 4)
    same = deletion_insertion(lambda x: torch.ones(len(x)), image, base, torch.arange(4), 2)
    assert all(curve.isnan().all() for curve in same)


def test_the_exact_attribution_is_the_most_faithful() -> None:
    net, image = linear(), noise(2, 1, 8, 8)
    own = attribute(net, image, "input_x_gradient", ClassSum(1), baseline="zero")
    result = faithfulness(net, own, ClassSum(1), baseline="zero", orders=9, perturbations=5)
    table = result.table()
    assert (table["deletion"] < table["deletion_random"]).all()
    assert (table["insertion"] > table["insertion_random"]).all()
    assert table["deletion_p"].tolist() == pytest.approx([0.1, 0.1])
    constant = attribute(net, image, "saliency", ClassSum(1))
    exact = faithfulness(net, constant, ClassSum(1), orders=1, perturbations=5).table()
    assert exact["infidelity"].tolist() == pytest.approx([0, 0], abs=1e-6)  # the gradient of a linear score
    assert exact["sensitivity"].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert (table["sensitivity"] > 0).all()


@pytest.mark.parametrize("method", ["integrated_gradients", "input_x_gradient", "feature_ablation"])
def test_what_explains_a_linear_score_exactly_has_no_infidelity(method: str) -> None:
    """f(x) - f(x - I) is the sum of w I, and w (x - b) the exact attribution: only I / (x - b) makes them meet."""
    net, image = linear(), noise(1, 1, 8, 8) + 5
    own = attribute(net, image, method, ClassSum(1), baseline="zero", window=1)
    table = faithfulness(net, own, ClassSum(1), orders=1, perturbations=5).table()
    assert table["infidelity"].tolist() == pytest.approx([0], abs=1e-4)
    wrong = dataclasses.replace(own, attributions={"input": own["input"] * noise(1, 1, 8, 8, seed=1)})
    assert float(faithfulness(net, wrong, ClassSum(1), orders=1, perturbations=5).table()["infidelity"][0]) > 0.1


def test_sensitivity_is_the_largest_relative_change() -> None:
    torch.manual_seed(0)
    net, image = unet(2, 3, channels=(4, 8)).eval(), noise(1, 2, 8, 8)
    own = attribute(net, image, "saliency", ClassSum(1))
    found = faithfulness(net, own, ClassSum(1), steps=1, orders=1, perturbations=3, radius=0.1, seed=5)
    random = keyed_random("infidelity", 5, "image0000")
    random.normal(0, 1.0, (3, 2, 8, 8))  # infidelity draws first
    moved = image + torch.from_numpy(random.uniform(-0.1, 0.1, (3, 2, 8, 8))).float()

    def gradient(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(net(x)[:, 1].sum(), x)[0]

    change = (gradient(moved) - gradient(image)).flatten(1).norm(dim=1) / gradient(image).norm()
    assert found.table()["sensitivity"][0] == pytest.approx(float(change.max()), rel=1e-4)


def test_maps_of_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, image = unet(1, 3, channels=(4, 8)), noise(1, 1, 16, 16)
    cam = grad_cam(net, image, ["bottleneck", "decoder.1"], ClassSum(1))
    result = faithfulness(net, cam, ClassSum(1), steps=4, orders=2)
    table = result.table()
    assert table["name"].tolist() == ["bottleneck", "decoder.1"]
    assert table["infidelity"].isna().all()
    assert result.curves["bottleneck/image0000/deletion"].tolist()[::4] == pytest.approx([1, 0])
    again = Faithfulness.load(result.save(tmp_path / "faithfulness.tkr"))
    assert again.table()["deletion"].tolist() == pytest.approx(table["deletion"].tolist())
    assert result.figure(tmp_path / "faithfulness.png").stat().st_size > 1000
    with pytest.raises(ConfigError, match="windows are the maps'"):
        faithfulness(net, cam, ClassSum(1), patch_size=[8, 8])
    with torch.no_grad():
        net.head.weight.add_(1)
    with pytest.raises(ResultError, match="other weights"):
        faithfulness(net, cam, ClassSum(1))


def test_rank_correlation_is_spearmans() -> None:
    one, two = noise(1, 5, 5), noise(1, 5, 5, seed=1)
    expected = stats.spearmanr(one.flatten(), two.flatten()).statistic
    assert rank_correlation(one, two) == pytest.approx(expected)
    assert rank_correlation(one, one.exp()) == pytest.approx(1)
    assert rank_correlation(one, torch.zeros(1, 5, 5)) != rank_correlation(one, torch.zeros(1, 5, 5))


def test_shuffling_keeps_the_values_and_the_original() -> None:
    torch.manual_seed(0)
    net = unet(1, 2, channels=(4, 8))
    before = [p.detach().clone() for p in net.parameters()]
    copy = shuffled(net, seed=1)
    for old, kept, new in zip(before, net.parameters(), copy.parameters(), strict=True):
        assert torch.equal(old, kept)
        assert torch.equal(old.flatten().sort().values, new.flatten().sort().values)
    assert not torch.equal(before[0], next(copy.parameters()))
    again = shuffled(net, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(copy.parameters(), again.parameters(), strict=True))


def test_a_cascade_goes_from_the_output_to_the_input() -> None:
    torch.manual_seed(0)
    net, image = unet(1, 2, channels=(4, 8), norm="batch"), noise(1, 1, 16, 16)  # instance norms cancel these maps
    found = randomised_weights(net, image, ["bottleneck", "encoder.1"], ClassSum(1), draws=2, cascade=3)
    steps = found.numbers["shuffled_down_to"].unique().tolist()
    assert len(steps) == 3
    assert steps[-1] == "encoder.1.conv1"
    assert len(found.table()) == 6
    verdicts = found.table().groupby("shuffled_down_to")["verdict"].agg(set)
    assert verdicts[steps[0]] == verdicts[steps[1]] == {""}
    assert all(verdicts[steps[2]])
    panel = compose(found).rows[0][0]  # steps from top to bottom, one column a layer of the map
    assert isinstance(panel, Heatmap)
    assert (list(panel.row_names or ()), list(panel.column_names or ())) == (
        steps,
        found.numbers["layer"].unique().tolist(),
    )
    means = (
        found.numbers["rank_correlation"]
        .abs()
        .groupby([found.numbers["shuffled_down_to"], found.numbers["layer"]])
        .mean()
    )
    for (step, layer), mean in means.items():
        assert panel.values[steps.index(step), list(panel.column_names).index(layer)] == pytest.approx(
            mean, nan_ok=True
        )
    whole = randomised_weights(net, image, ["bottleneck", "encoder.1"], ClassSum(1), draws=2)
    last = found.numbers[found.numbers["shuffled_down_to"] == steps[-1]]["rank_correlation"].tolist()
    assert last == pytest.approx(whole.numbers["rank_correlation"].tolist())
    head = shuffled(net, modules={"head"})
    changed = [n for (n, a), b in zip(net.named_parameters(), head.parameters(), strict=True) if not torch.equal(a, b)]
    assert {name.rpartition(".")[0] for name in changed} == {"head"}


def test_maps_that_say_nothing_enter_no_mean_unnamed() -> None:
    """An instance norm cancels the first map; the mean of the other is Spearman's over its own maps."""
    torch.manual_seed(0)
    around = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    parts = {"before": nn.Conv2d(1, 4, 3, padding=1), "around": around, "norm": nn.InstanceNorm2d(4)}
    net = nn.Sequential(OrderedDict(**parts, after=nn.ReLU(), head=nn.Conv2d(4, 2, 1))).eval()
    image = noise(2, 1, 16, 16)
    found = randomised_weights(net, image, ["before", "after"], ClassSum(1), draws=1, seed=3)
    table = found.table().set_index("layer")
    assert table.loc["before", ["maps", "left_out", "verdict"]].tolist() == [0, "cancelled", "undefined"]
    assert np.isnan(table.loc["before", "similarity"])
    own, copy = (grad_cam(n, image, "after", ClassSum(1))["after"] for n in (net, shuffled(net, 3, 0)))
    expected = [abs(stats.spearmanr(a.flatten(), b.flatten()).statistic) for a, b in zip(own, copy, strict=True)]
    assert table.loc["after", "similarity"] == pytest.approx(np.mean(expected))


class Edges(nn.Module):
    """Its layer is the image and nothing learnt lies before it, so the map shows the image whatever the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.copy, self.head = nn.Identity(), nn.Conv2d(1, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.copy(x))


def test_a_map_of_the_image_fails_and_a_map_of_the_network_passes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = noise(2, 1, 16, 16)
    shown = randomised_weights(Edges(), image, "copy", ClassSum(1))
    assert shown.table()["similarity"].tolist() == pytest.approx([1])
    assert shown.table()["verdict"][0].startswith("fails")
    learnt = randomised_weights(
        Inplace(), image, ["norm", "second"], Region(1, inside="reference"), label=image[:, 0] > 0
    )
    assert len(learnt.numbers) == 2 * 2 * 3
    assert (learnt.table()["similarity"] < 0.95).all()
    again = RandomisedWeights.load(learnt.save(tmp_path / "sanity.tkr"))
    pd.testing.assert_frame_equal(again.table(), learnt.table())
    assert learnt.figure(tmp_path / "sanity.png").stat().st_size > 1000

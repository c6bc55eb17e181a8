"""Trained networks that come with the project: cards, hashes and half precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import toolkit as tk
from evidence.cards import half_precision, save_trained, short_history
from toolkit.errors import ConfigError, ToolkitWarning
from toolkit.features.provenance import provenance
from toolkit.registry import describe
from toolkit.training.trained import FIELDS

NAME = "phantom-cardiac/mine"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own with one network of weights that half precision cannot hold exactly."""
    torch.manual_seed(3)
    network = tk.unet(1, 4, channels=(4, 8))
    with torch.no_grad():
        network.get_parameter("head.bias").fill_(1 / 3)
    save_trained(network, card(network), tmp_path)
    monkeypatch.setenv("TOOLKIT_NETWORKS", str(tmp_path))
    return tmp_path


def card(network: torch.nn.Module) -> dict[str, Any]:
    history = pd.DataFrame({"step": [1, 2], "total": [0.123456, float("nan")], "seconds/step": [1.0, 1.0]})
    recipe = {"model": describe(network), "objective": None, "regularizers": [{"name": "segreg"}], "config": {}}
    scores = [{"site": "A", "dice": 0.9, "low": 0.8, "high": 1.0, "patients": 8}]
    scores += [
        {"site": site, "dice": dice, "low": 0, "high": 1, "patients": 8} for site, dice in (("B", 0.6), ("C", 0.4))
    ]
    values = dict.fromkeys(FIELDS, "") | {"name": NAME, "seed": 2, "method": "SegReg", "sites": ["A"], "scores": scores}
    values |= {
        "recipe": recipe,
        "task": {"name": "phantom-cardiac"},
        "parameters": 1,
        "floor": {"above": True, "dice": 0.75},
    }
    values |= {"history": short_history(history), "sample": {}}
    return {key: value for key, value in values.items() if key != "sha256"}


def test_a_network_comes_back_in_half_precision(folder: Path) -> None:
    network = tk.load_trained(NAME, seed=2)
    bias = network.get_parameter("head.bias")
    assert bias.dtype == torch.float32
    assert bias.tolist() == [0.333251953125] * 4, "1/3 in float16 is 1365/4096"
    assert not network.training
    assert network.history.to_dict("list")["total"][0] == 0.1235
    assert "seconds/step" not in network.history
    assert network.scores["dice"].tolist() == [0.9, 0.6, 0.4]
    told = provenance(network)["network"]
    assert (told["name"], told["seed"], told["dice"], told["patients"], told["floor"]) == (NAME, 2, 0.9, 8, 0.75)
    with torch.no_grad():
        next(network.parameters()).add_(0.1)
    assert "network" not in provenance(network), "a network that was changed has no known score"
    assert network.provenance["name"] == NAME
    assert tk.predict(network, torch.zeros(1, 16, 16)) is not None


def test_the_table_has_a_row_a_name_and_seed(folder: Path) -> None:
    row = tk.list_trained().set_index("name").loc[NAME]
    assert (row["seed"], row["method"], row["task"]) == (2, "SegReg", "phantom-cardiac")
    assert (row["dice_home"], row["dice_away"]) == (0.9, 0.5)


def test_results_say_which_regularizer_it_was_trained_with(folder: Path) -> None:
    features = tk.extract(tk.load_trained(NAME, seed=2), torch.zeros(1, 1, 16, 16), "head_input", pool="global")
    assert features.provenance["trained_with"] == ["segreg"]


def test_an_unknown_network_is_an_error_that_says_what_there_is(folder: Path) -> None:
    with pytest.raises(tk.ConfigError, match=r"its seeds are \[2\]"):
        tk.load_trained(NAME)
    with pytest.raises(tk.ConfigError, match=NAME):
        tk.load_trained("phantom-cardiac/none")


def test_other_weights_than_the_card_describes_are_refused(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    torch.manual_seed(4)
    file.write_bytes(half_precision(tk.unet(1, 4, channels=(4, 8))))
    with pytest.raises(tk.CheckpointError, match="not those that the card describes"):
        tk.load_trained(NAME, seed=2)
    file.unlink()
    with pytest.raises(tk.CheckpointError, match="no weights beside it"):
        tk.load_trained(NAME, seed=2)


def test_a_damaged_card_is_refused(folder: Path) -> None:
    (file,) = folder.glob("*.json")
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({key: value for key, value in content.items() if key != "data"}), encoding="utf-8")
    with pytest.raises(tk.CheckpointError, match="cannot be read"):
        tk.list_trained()


def test_a_card_must_be_whole(tmp_path: Path) -> None:
    network = tk.unet(1, 2, channels=(4, 8))
    with pytest.raises(tk.ConfigError, match="licence"):
        save_trained(network, {k: v for k, v in card(network).items() if k != "licence"}, tmp_path)


def test_claims_come_with_their_verdicts() -> None:
    table = tk.list_claims("Med-DisSeg").set_index("claim")
    verdicts = {"supported", "contradicted", "inconclusive", "not run yet", "not tested here"}
    assert set(table["verdict"]) <= verdicts
    assert table.loc["disseg-helps-home", ["arms", "measure"]].tolist() == ["with less without", "dice @ A"]
    assert len(tk.list_claims()) > len(table)
    with pytest.raises(ConfigError, match="Choose from SegReg"):
        tk.list_claims("another paper")


def test_the_measurements_behind_a_claim_give_its_difference() -> None:
    """The mean over patients and seeds of the first arm less the second is what the verdict says."""
    rows = tk.claim_rows("segreg-home-generated")
    assert set(rows["site"]) == {"A"}
    means = rows.groupby("arm")["value"].mean()
    stated = tk.list_claims("SegReg").set_index("claim").loc["segreg-home-generated", "difference"]
    assert means["segreg"] - means["plain"] == pytest.approx(stated, abs=1e-4)
    with pytest.raises(ConfigError, match="segreg-home-generated"):
        tk.claim_rows("segreg-home-generate")


def test_arms_are_opened_at_every_common_seed_those_that_have_learnt_first(folder: Path) -> None:
    """Plain has seeds 0 to 2, mine 1 and 2, of which 1 has not learnt."""
    torch.manual_seed(0)
    network = tk.unet(1, 4, channels=(4, 8))
    told = "python -m evidence.run cardiac --only segreg --seeds 1"
    for name, seed, above in (("plain", 0, True), ("plain", 1, True), ("plain", 2, True), ("mine", 1, False)):
        own = card(network) | {"name": f"here/{name}", "seed": seed, "floor": {"above": above, "dice": 0.75}}
        save_trained(network, own | {"command": told}, folder)
    save_trained(network, card(network) | {"name": "here/mine"}, folder)  # seed 2
    with pytest.warns(
        ToolkitWarning,
        match=r"'elsewhere' has no trained networks of plain, no such or mine .* it has none. Those of 'here'",
    ):
        networks = tk.load_trained_arms({"a": "plain", "b": ("no such", "mine")}, ["elsewhere", "here"])
    assert list(networks) == [("a", 2), ("b", 2), ("a", 1), ("b", 1)]
    with pytest.raises(ConfigError, match="'elsewhere' has no trained networks"):
        tk.load_trained_arms({"a": "plain"}, "elsewhere")
    table = tk.trained_scores({**networks, ("new", 0): tk.unet(1, 4)})
    assert table.loc[("a", 2), ["dice", "low", "high", "floor", "away"]].tolist() == [0.9, 0.8, 1.0, 0.75, 0.5]
    costs = pd.read_csv(Path(__file__).parents[3] / "evidence" / "results" / "costs.csv")
    costs = costs[costs["fold"].isna()].set_index(["study", "arm", "seed"])  # unique without the folds
    assert table.loc[("b", 1), "minutes"] == costs.loc[("cardiac", "segreg", 1), "cpu_minutes"]
    assert table.loc[("new", 0)].isna().all(), "of a network without a card nothing is said"

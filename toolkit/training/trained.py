"""Trained networks that come with the project: half-precision weights, each with a card that says what it is."""

from __future__ import annotations

import json
import math
import re
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from toolkit import registry
from toolkit.data.manifest import shipped_folders
from toolkit.errors import CheckpointError, ConfigError, ToolkitWarning, choose
from toolkit.features.provenance import mark_scored, mark_trained_with, score_of
from toolkit.files import sha256
from toolkit.inference.memory import remember
from toolkit.models.load import tensors_of, weights_from_bytes
from toolkit.process_state import guarded_random_state
from toolkit.results import DataFrame, as_table

FORMAT = 1
FIELDS = (
    *("name", "seed", "method", "task", "sites", "recipe", "steps", "parameters", "scores", "floor"),
    *("sample", "tolerance", "data", "sha256", "command", "environment", "licence", "history", "note"),
)
_COLUMNS = (
    *("name", "method", "task", "seed", "sites", "dice_home"),
    *("dice_away", "above_floor", "parameters", "MB", "note"),
)
_CLAIM = (
    *("claim", "paper", "source", "measure", "arms", "verdict"),
    *("difference", "low", "high", "patients", "trainings", "planned"),
)


def list_trained() -> DataFrame:
    """The trained networks that come with the project; nothing is loaded or downloaded.

    Returns:
        One row a name and seed: name, method, task, seed, sites (what it was trained on), dice_home and dice_away (mean Dice of
        the test patients of those sites and of the others, NaN where there are none), above_floor (whether dice_home
        exceeds 0.75 and the Dice of a map that is all foreground), parameters, MB, note.

    Example:
        >>> best = tk.list_trained().sort_values("dice_away").tail(3)
    """
    import pandas as pd

    rows = []
    for file in _cards():
        card = _read(file)
        scores = pd.DataFrame(card["scores"])
        home = scores["site"].isin(card["sites"])
        row = {name: card.get(name) for name in _COLUMNS} | {"task": card["task"]["name"]}
        row |= {"sites": ", ".join(card["sites"]), "above_floor": card["floor"]["above"]}
        row |= {"dice_home": scores.loc[home, "dice"].mean(), "dice_away": scores.loc[~home, "dice"].mean()}
        rows.append(row | {"MB": round(weights_file(file, card["sha256"]).stat().st_size / 1e6, 2)})
    return pd.DataFrame(rows, columns=_COLUMNS).sort_values(["name", "seed"], ignore_index=True)


def load_trained(name: str, seed: int = 0) -> nn.Module:
    """A trained network that comes with the project, in float32 and eval mode, checked by its hash.

    Beside its weights it has `.scores` (a table: mean Dice of the test patients of every site with its interval),
    `.history` (its training, as `Run.history` has it) and `.provenance` (its card without these two: task, recipe,
    settings, data hash, command, licence). `toolkit.load_task(**network.provenance["task"])` gives the data it was
    trained on.

    Args:
        name: for example "phantom-cardiac/segreg", see `toolkit.list_trained()`.
        seed: which of its trainings.

    Raises:
        ConfigError: there is no such network.
        CheckpointError: the file is damaged or is not the one that its card describes.

    Example:
        >>> network = tk.load_trained("phantom-cardiac/segreg", seed=0)
        >>> task, scores = tk.load_task(**network.provenance["task"]), network.scores
    """
    file = _card_of(name, seed)
    card = _read(file)
    weights = weights_file(file, card["sha256"])
    if not weights.is_file():
        raise CheckpointError("The card has no weights beside it.", where=weights, fix="Install the package again.")
    content = weights.read_bytes()
    if sha256(content) != card["sha256"]:
        what = "The weights are not those that the card describes."
        raise CheckpointError(what, where=weights, fix="Install the package again.")
    with guarded_random_state():
        network: nn.Module = registry.build("model", card["recipe"]["model"])
    own = tensors_of(network)
    stored = weights_from_bytes(content, str(weights))
    network.load_state_dict({key: value.to(own[key].dtype) if key in own else value for key, value in stored.items()})
    mark_trained_with(network, [one["name"] for one in card["recipe"]["regularizers"]])
    remember(network, **card["recipe"].get("inference", {}))
    home = [one for one in card["scores"] if one["site"] in card["sites"]]
    patients, dice = sum(one["patients"] for one in home), sum(one["dice"] for one in home) / max(1, len(home))
    told = {key: card[key] for key in ("name", "steps", "seed")}
    mark_scored(network, dice, patients, **told, sites=", ".join(card["sites"]), floor=card["floor"]["dice"])
    described = {key: value for key, value in card.items() if key not in ("scores", "history")}
    tables = {name: as_table(card[name]) for name in ("scores", "history")}
    for table in tables.values():
        table.attrs["network"] = score_of(network)
    vars(network).update(tables, provenance=described)
    return network.eval()


def load_trained_arms(
    arms: Mapping[str, str | Sequence[str]], tasks: str | Sequence[str]
) -> dict[tuple[str, int], nn.Module]:
    """Trained networks of several arms on one task, for every seed that all arms have.

    Args:
        arms: for every name of your own the end of one in `toolkit.list_trained()`: {"plain": "plain", "mine": "segreg"};
            of several the first there is.
        tasks: name of the task; of several the first one that has every arm is opened.

    Returns:
        (arm, seed) -> network; the seeds at which every network has learnt come first.

    Warns:
        ToolkitWarning: the first task does not have every arm, with what it has.

    Example:
        >>> networks = tk.load_trained_arms({"plain": "plain", "SegReg": "segreg"}, "phantom-cardiac")
    """
    listed = list_trained()
    ends = {arm: [name] if isinstance(name, str) else list(name) for arm, name in arms.items()}
    tasks = [tasks] if isinstance(tasks, str) else list(tasks)
    for task, after in zip(tasks, [*tasks[1:], None], strict=True):
        rows = {arm: [listed[listed["name"] == f"{task}/{end}"] for end in own] for arm, own in ends.items()}
        own = {arm: next((one for one in found if len(one)), found[0]).set_index("seed") for arm, found in rows.items()}
        if seeds := set.intersection(*(set(one.index) for one in own.values())):
            break
        there = ", ".join(sorted(set(listed.loc[listed["task"] == task, "name"]))) or "none"
        wanted = ", ".join(" or ".join(own) for own in ends.values())
        lacking = f"{task!r} has no trained networks of {wanted} under a common seed; it has {there}."
        if after is None:
            raise ConfigError(lacking, where="load_trained_arms", fix="Choose from list_trained().")
        warnings.warn(f"{lacking} Those of {after!r} are looked for.", ToolkitWarning, stacklevel=4)
    order = sorted(seeds, key=lambda seed: (not all(one.at[seed, "above_floor"] for one in own.values()), seed))
    return {(arm, seed): load_trained(str(one.at[seed, "name"]), seed) for seed in order for arm, one in own.items()}


def trained_scores(networks: Mapping[Any, nn.Module]) -> DataFrame:
    """What the cards of trained networks say: a row a network, for the top of a page.

    Args:
        networks: by name, or by (name, seed) as `load_trained_arms` gives them.

    Returns:
        steps, patients and dice (low to high) at home, floor (what a network that has learnt exceeds), away (mean Dice of the
        sites that it was not trained on) and minutes (of one core, that its training took); NaN where a network has no card.

    Example:
        >>> table = tk.trained_scores({"plain": tk.load_trained("phantom-cardiac/plain")})
    """
    import pandas as pd

    costs = pd.read_csv(_results("costs"))
    rows = []
    for network in networks.values():
        card, known = vars(network).get("provenance"), score_of(network)
        row = {key: known.get(key) for key in ("steps", "patients", "dice", "low", "high", "floor")}
        if card is not None:
            scores = vars(network)["scores"]
            home = scores["site"].isin(card["sites"])
            row |= scores[home][["low", "high"]].mean().to_dict() | {"away": scores[~home]["dice"].mean()}
            row["minutes"] = _minutes(card["command"], costs)
        rows.append(row)
    columns = ["steps", "patients", "dice", "low", "high", "floor", "away", "minutes"]
    index = pd.MultiIndex.from_tuples([key if isinstance(key, tuple) else (key,) for key in networks])
    return pd.DataFrame(rows, index=index, columns=columns).rename_axis(["network", "seed"][: index.nlevels])


def _minutes(command: str, costs: DataFrame) -> float:
    """Of one core, as measured; NaN where no training of that command was."""
    if not (told := re.search(r"evidence\.run (\S+) --only (\S+) --seeds (\d+)(?: --folds (\d+))?", command)):
        return math.nan
    study, arm, seed, fold = told.groups()
    rows = costs[(costs["study"] == study) & (costs["arm"] == arm) & (costs["seed"] == int(seed))]
    rows = rows[rows["fold"] == int(fold)] if fold else rows
    return float(rows["cpu_minutes"].mean())


def list_claims(paper: str | None = None) -> DataFrame:
    """What the papers claim, what was measured here, and the verdict of the rule that was fixed before; see docs/evidence.md.

    Args:
        paper: "SegReg", "SelfReg-UNet", "Latent augmentation" or "Med-DisSeg"; None = all.

    Returns:
        One row a claim: claim, paper, source (where the paper says it), measure, arms, verdict, difference, low, high (first
        arm less second, or the value of a single arm), patients, trainings, planned.

    Raises:
        ConfigError: there is no such paper.

    Example:
        >>> verdicts = tk.list_claims("SegReg")[["claim", "verdict", "difference", "low", "high"]]
    """
    import pandas as pd

    stated = pd.DataFrame(_claims()).rename(columns={"id": "claim"})
    table = stated.merge(pd.read_csv(_results("verdicts")), on="claim", how="left")
    if paper is not None and paper not in set(table["paper"]):
        what = f"No claim is from {paper!r}."
        raise ConfigError(what, where="list_claims", fix=f"Choose from {', '.join(table['paper'].unique())}.")
    chosen = table if paper is None else table[table["paper"] == paper]
    return chosen.assign(arms=[" less ".join(arms) for arms in chosen["arms"]])[list(_CLAIM)].reset_index(drop=True)


def claim_rows(claim: str) -> DataFrame:
    """The measurements that a claim is judged by.

    Args:
        claim: its name in `list_claims()`.

    Returns:
        One row a patient (or image) of a training: arm, seed, fold (NaN without), site, subject, metric, value;
        no row where its study has not been run.

    Raises:
        ConfigError: there is no such claim.

    Example:
        >>> means = tk.claim_rows("segreg-home-generated").groupby(["arm", "seed"])["value"].mean()
    """
    import pandas as pd

    claims = {one["id"]: one for one in _claims()}
    choose("claim", claim, claims, where="claim_rows")
    stated = claims[claim]
    metric, sites = stated["measure"].split(" @ ")
    file = _results(stated["protocol"].split(":")[0])
    if not file.exists():
        return pd.DataFrame(columns=["arm", "seed", "fold", "site", "subject", "metric", "value"])
    table = pd.read_csv(file, dtype={"subject": str})
    chosen = (table["metric"] == metric) & table["arm"].isin(stated["arms"]) & table["seed"].isin(stated["seeds"])
    if sites != "all":
        chosen &= table["site"].isin(sites.split())
    return table[chosen].reset_index(drop=True)


def _claims() -> list[dict[str, Any]]:
    file = shipped_folders("TOOLKIT_EVIDENCE", "evidence")[0] / "claims.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))["claim"]


def _results(name: str) -> Path:
    return shipped_folders("TOOLKIT_EVIDENCE", "evidence")[0] / "results" / f"{name}.csv"


def _cards() -> list[Path]:
    """Cards of the first folder that holds each, by name."""
    folders = reversed(shipped_folders("TOOLKIT_NETWORKS", "evidence/networks"))
    cards = {file.name: file for folder in folders for file in sorted(folder.glob("*.json"))}
    return [cards[name] for name in sorted(cards)]


def _card_of(name: str, seed: int) -> Path:
    cards = {file.stem: file for file in _cards()}
    if (wanted := file_stem(name, seed)) in cards:
        return cards[wanted]
    names = sorted({(card["name"], card["seed"]) for card in map(_read, cards.values())})
    seeds = [own for other, own in names if other == name]
    others = ", ".join(dict.fromkeys(other for other, _ in names)) or "none"
    offered = f"its seeds are {seeds}" if seeds else f"there are {others}"
    what = f"There is no trained network {name!r} with seed {seed}."
    raise ConfigError(what, where="load_trained", fix=f"See list_trained(): {offered}.")


def file_stem(name: str, seed: int) -> str:
    """What the card and the weights of a network are called, without their suffixes."""
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '--', name)}--{seed}"


def weights_file(card: Path, digest: str) -> Path:
    """Where the weights of a card lie: under their hash, so that networks that are equal to the bit are stored once."""
    return card.with_name(f"{digest[:16]}.safetensors")


def _read(file: Path) -> dict[str, Any]:
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        if card.pop("format") != FORMAT or set(card) != set(FIELDS):
            raise ValueError("its fields are not those of a card")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        what = f"The card cannot be read: {error}."
        raise CheckpointError(what, where=file, fix="Install the package again.") from error
    return card

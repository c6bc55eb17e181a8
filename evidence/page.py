"""`docs/evidence.md` from the claims and the results: `python -m evidence.page` writes it, and the verdicts before it."""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import toolkit as tk
from evidence import judge
from evidence.claims import Claim, claims
from evidence.judge import NOT_HERE, NOT_RUN, RESULTS
from evidence.networks import FLOOR, FOLDER
from toolkit.measure.statistics import holm

Verdicts = dict[str, "pd.Series[Any]"]  # rows of verdicts.csv, by claim
PAGE = Path(__file__).parents[1] / "docs" / "evidence.md"
HOME = {"A", "cardiac_acdc", "seen"}  # sites trained on
GALLERY = PAGE.with_name("gallery.md")
HEAD = """# What was tested, and what was found

Written by `python -m evidence.page` from `evidence/claims.toml` and `evidence/results/`; do not edit it.
Every row is a claim of a paper. Its protocol and the rule that gives the verdict were written down before the trainings
that judge it. A verdict holds for the data, the networks and the budget named here and for nothing else.

* *measured*: a metric @ the sites scored; first arm less second, mean over patients and trainings, with its 95 % interval in
  square brackets (the wider of the tests over patients and over trainings) and the two means in round ones. Dice is a share, so
  0.01 is one point of a paper's percentages. Where a claim is about one value, that value. Where trainings were added after a
  first look, the interval is that of 97.5 %, since two looks share the risk.
* *chance of being false*: probability that the effect is not what the rule calls supported, given these data and no
  opinion before.
* *could see*: the smallest effect that this design would find with a power of 80 % (from 6 patients and 2 trainings on 78 % and more in
  simulated studies, `benchmarks/results/coverage.csv`). Where a rule has a margin, such as 0.01 of Dice at home, it is the distance from the margin.
* *trainings*: networks of each arm, of those planned. Before all of them are there the verdict is inconclusive, whatever the
  interval says: who stops at the first look that pleases finds effects where there are none. The interval of one training is
  that of its patients: it says how this pair of networks differs, not how the methods do.
* *What the machine at hand could not do*: nuclei are tested by leaving out a domain at a time, not by folds over their images as well;
  a fold of ACDC, and a reading in the race of SegReg's, has a single seed; the reading that won was trained on generated data only, the
  dispersive loss on no domain left out; the hippocampi are generated ones. Some baselines and components are not tested here, and their
  rows hold the command that would. The power that is left stands in every row.
"""


def written(results: Path) -> Verdicts:
    """The rows of `verdicts.csv`, by claim."""
    return {row["claim"]: row for _, row in pd.read_csv(results / "verdicts.csv").iterrows()}


def page(results: Path = RESULTS) -> str:
    """The whole page."""
    verdicts = written(results)
    parts = [HEAD, *_summary(verdicts), *_findings(verdicts, results)]
    for paper in dict.fromkeys(claim.paper for claim in claims()):
        parts += [f"\n## {paper}\n", *_table([claim for claim in claims() if claim.paper == paper], verdicts)]
    return "\n".join([*parts, *_race(results), *_costs(results), *_tuning(results), *_networks()]) + "\n"


def _summary(verdicts: Verdicts) -> Iterator[str]:
    counts = Counter(row["verdict"] for row in verdicts.values()).most_common()
    yield "Of {} claims: {}.".format(len(verdicts), ", ".join(f"{n} {verdict}" for verdict, n in counts))
    tested = [claim for claim in claims() if not math.isnan(verdicts[claim.id]["chance"])]
    chances = np.array([verdicts[claim.id]["chance"] for claim in tested])
    looks = np.array([1 + bool(claim.first_look) for claim in tested])
    sure = holm(np.minimum(1.0, 2 * looks * np.minimum(chances, 1 - chances))) <= 0.05
    decided = np.array([verdicts[claim.id]["verdict"] in ("supported", "contradicted") for claim in tested])
    alone = ", ".join(f"`{claim.id}`" for claim, one in zip(tested, decided & ~sure, strict=True) if one)
    yield (
        "\nEach verdict is taken alone: if no method had any effect, one claim in twenty would be decided by chance. After Holm's "
        f"correction over the {len(tested)} claims that were measured {int((decided & sure).sum())} of the {int(decided.sum())} decided "
        f"ones stay so{f' (not {alone})' if alone else ''}."
    )


def _findings(verdicts: Verdicts, results: Path) -> Iterator[str]:
    """What was decided, and whether any reading of SegReg does what its paper says."""
    yield "\n## What stands out\n"
    for verdict in ("contradicted", "supported"):
        for claim in claims():
            if (row := verdicts[claim.id])["verdict"] == verdict:
                mind = ""
                if claim.metric == "dice" and set(claim.sites) <= HOME and min(row["first"], row["second"]) < FLOOR:
                    worse = claim.arms[int(row["second"] < row["first"])]
                    mind = f" Mind that {worse} is below {FLOOR}: it has not learnt within the budget that plain training needs."
                yield f"* **{verdict}**: {claim.paper}, {claim.source}: {measured(claim, row)[0]} (`{claim.id}`).{mind}"
    for claim in claims():
        row = verdicts[claim.id]
        if claim.not_learnt and (alone := claim.verdict(row["low"], row["high"])) != "inconclusive":
            yield (
                f"* **No verdict, from networks that have not learnt**: {claim.paper}, {claim.source}: {measured(claim, row)[0]} "
                f"(`{claim.id}`). The rule alone would say {alone}, but {claim.not_learnt}."
            )
    outside = [f"`{claim.id}`" for claim in claims() if excludes(claim, verdicts[claim.id])]
    if outside:
        yield (
            "* **No room for the published difference**, on this data and with these networks, whatever the verdict: the "
            f"interval excludes the smallest one that the paper reports: {', '.join(outside)}."
        )
    if (results / "race.csv").exists():
        mean = _race_means(results / "race.csv")["away"]
        better = int((mean.drop("plain") > mean["plain"]).sum())
        final = [verdicts[name] for name in ("segreg-best-reading", "segreg-unseen-generated", "segreg-unseen-mr")]
        told = [
            f"{words} {row['difference']:.3g} [{row['low']:.3g} to {row['high']:.3g}]"
            for words, row in zip(
                (
                    "trained again under other seeds, its best",
                    "the primary reading on generated sites",
                    "on Sunnybrook",
                ),
                final,
                strict=True,
            )
            if row["verdict"] not in (NOT_RUN, NOT_HERE)
        ]
        yield (
            f"* **Does any reading of SegReg do what the paper says?** On validation patients of sites never seen {better} of "
            f"{len(mean) - 1} readings were above plain training, under one seed each. Dice there, less plain training's: "
            f"{'; '.join(told)}."
        )


def excludes(claim: Claim, row: pd.Series) -> bool:
    """Whether the interval of all planned trainings, two or more, leaves no room for the smallest published difference.

    Where plain training is so good that no Dice could rise by as much, or the networks have not learnt, nothing is excluded.
    """
    if (
        claim.effect is None
        or claim.not_learnt
        or row["trainings"] < max(2, row["planned"])
        or row["second"] + claim.effect > 1
    ):
        return False
    return bool(row["high"] < claim.effect)


def _table(chosen: list[Claim], verdicts: Verdicts) -> Iterator[str]:
    yield "| claim | verdict | the paper | measured | chance of being false | could see | trainings | protocol |"
    yield "|---|---|---|---|---|---|---|---|"
    for claim in chosen:
        row = verdicts[claim.id]
        figure = f" ([figure](gallery.md#{_figures()[claim.id]}))" if claim.id in _figures() else ""
        how = f"{claim.protocol} (`{claim.command or f'make evidence STUDY={claim.study}'}`)"
        *found, verdict = measured(claim, row)
        cells = [f"`{claim.id}`: {claim.source}{figure}", verdict, claim.published, *found, how]
        yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def measured(claim: Claim, row: pd.Series) -> list[str]:
    """What was measured, the chance of being false, what could be seen, trainings of those planned, and the verdict."""
    if row["verdict"] == NOT_HERE:
        return [f"not tested here; {claim.power}", "", f"{claim.expected:g} planned", "0", NOT_HERE]
    if row["verdict"] == NOT_RUN:
        hours = f", about {_planned()[claim.study]:g} h"
        return ["", "", f"{claim.expected:g} planned", "0", f"{NOT_RUN}{hours}"]
    compared = (
        " less ".join(claim.arms[:2]) if len(claim.arms) < 4 else "({} less {}) less ({} less {})".format(*claim.arms)
    )
    both = "" if math.isnan(row["second"]) else f" ({row['first']:.3g} and {row['second']:.3g})"
    interval = f"{row['low']:.3g} to {row['high']:.3g}{', 97.5 %' if claim.first_look else ''}"
    told = f"{claim.measure}, {compared}: {row['difference']:.3g} [{interval}]{both}; {row['patients']} {claim.unit}"
    if excludes(claim, row):
        told += f"; the published {claim.effect:g} lies outside"
    count = f"{row['trainings']} of {row['planned']}"
    verdict = f"**{row['verdict']}**"
    if row["trainings"] < row["planned"]:
        verdict += " (one training)" if row["trainings"] == 1 else " (more trainings are planned)"
    elif claim.not_learnt:
        verdict += " (networks that have not learnt)"
    return [told, f"{row['chance']:.2g}", f"{row['detectable']:.2g}", count, verdict]


@functools.cache
def _figures() -> dict[str, str]:
    """Claims that a figure of the gallery shows, with its anchor."""
    anchors: dict[str, str] = {}
    anchor = ""
    for line in GALLERY.read_text(encoding="utf-8").splitlines():
        if line.startswith("### "):
            anchor = re.sub(r"[^\w\- ]", "", line[4:].lower()).replace(" ", "-")
        elif match := re.match(r"\* \[([\w-]+)\]\(evidence\.md", line):
            anchors.setdefault(match[1], anchor)
    return anchors


@functools.cache
def _planned() -> dict[str, float]:
    """Estimated hours of a study on two quiet cores."""
    plan = pd.read_csv(RESULTS.with_name("plan.csv"))
    return dict(zip(plan["study"], plan["hours"], strict=True))


def _race(results: Path) -> Iterator[str]:
    """SegReg's readings on validation patients: what `segreg-best` is chosen from."""
    if not (results / "race.csv").exists():
        return
    yield "\n## The race of SegReg's readings\n"
    yield "Divergence, layer and weight; Dice on validation patients of the site trained on (A) and of the sites never seen.\n"
    yield from _race_table(results / "race.csv")
    if (results / "race-prostate.csv").exists():
        yield "\nThe best four of these that cost at most 0.01 at home, on phantom-prostate (`race-prostate`):\n"
        yield from _race_table(results / "race-prostate.csv")
    cardiac = pd.read_csv(results / "cardiac.csv")
    plain = cardiac[(cardiac["arm"] == "plain") & (cardiac["metric"] == "dice") & (cardiac["site"] != "A")]
    by_seed = plain.groupby("seed")["value"].mean()
    quarters = _race_means(results / "race.csv")["away"].quantile([0.25, 0.75])
    cards = [json.loads(file.read_text(encoding="utf-8"))["history"] for file in sorted(FOLDER.glob("*.json"))]
    seen = [card["segreg/T_over_N"] for card in cards if "segreg/T_over_N" in card and set(card["stage"]) == {0}]
    lines = [[value for value in line if value is not None] for line in seen]
    yield (
        f"\nHalf of the readings lie within {quarters[0.75] - quarters[0.25]:.3f} of each other, and plain training alone varies by "
        f"{by_seed.std():.3f} from seed to seed (standard deviation over {len(by_seed)} seeds of `cardiac`, test patients of the same sites): "
        "a race of one seed each ranks seeds as much as readings. And the primary reading is bounded: it lets go of rows that are far "
        f"from the reference. In {sum(line[-1] > line[0] for line in lines)} of the {len(lines)} networks below that were trained with it from their first weights on "
        "its statistic ended above where it had begun; what it does is to keep features nearer than plain training would "
        "(`segreg-anchored`), not to bring them to the reference (section 1 of `notebooks/11_segreg_appendix.ipynb` draws both)."
    )


def _race_table(race: Path) -> Iterator[str]:
    seeds = pd.read_csv(race).groupby("arm")["seed"].nunique()
    yield "| reading | home | away | seeds |"
    yield "|---|---|---|---|"
    for arm, row in _race_means(race).sort_values("away", ascending=False).iterrows():
        yield f"| {arm} | {row['A']:.3f} | {row['away']:.3f} | {seeds.loc[str(arm)]} |"


def _race_means(race: Path) -> pd.DataFrame:
    table = pd.read_csv(race).assign(place=lambda rows: rows["site"].where(rows["site"] == "A", "away"))
    return table.groupby(["arm", "place"])["value"].mean().unstack()


def _costs(results: Path) -> Iterator[str]:
    table = pd.read_csv(results / "costs.csv")
    yield "\n## Time\n"
    yield "Measured on the way, training and measurements together, one thread each on a machine with other work.\n"
    yield "| study | trainings | wall minutes each | processor minutes each |"
    yield "|---|---|---|---|"
    for study, own in table.groupby("study", sort=False):
        yield f"| {study} | {len(own)} | {own['minutes'].mean():.1f} | {own['cpu_minutes'].mean():.1f} |"


def _tuning(results: Path) -> Iterator[str]:
    table = pd.read_csv(results / "tuning.csv")
    yield "\n## Plain training, tuned on validation\n"
    yield (
        "One training a row; Dice on the validation patients of the site trained on and of the others. Other networks and data have "
        "the settings of `evidence/studies.py`, set without such a search; weights of methods are those of their papers' code where "
        "there are any, and were searched for SegReg alone (above). Within a study all arms have one budget.\n"
    )
    yield f"| {' | '.join(str(name).replace('_', ' ') for name in table.columns)} |"
    yield f"|{'---|' * len(table.columns)}"
    for row in table.itertuples(index=False):
        yield f"| {' | '.join(str(value) for value in row)} |"


def _networks() -> Iterator[str]:
    table = tk.list_trained()
    yield "\n## The networks\n"
    yield "`tk.load_trained(name, seed=...)`; mean Dice of the test patients of the sites trained on and of the others.\n"
    yield "| name | seed | method | trained on | home | away | MB | note |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in table.itertuples(index=False):
        away = "" if math.isnan(row.dice_away) else f"{row.dice_away:.3f}"
        cells = (f"`{row.name}`", row.seed, row.method, row.sites, f"{row.dice_home:.3f}", away, row.MB, row.note)
        yield f"| {' | '.join(str(cell) for cell in cells)} |"


def main() -> None:
    """Verdicts, then the page."""
    judge.write()
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.name}: {len(claims())} claims")


if __name__ == "__main__":
    main()

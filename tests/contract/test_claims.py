"""The file of claims: its form, its rules, and what it must hold."""

from __future__ import annotations

import dataclasses
import sys
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from evidence import run
from evidence.claims import FILE, Claim, claims
from evidence.judge import judge
from evidence.studies import STUDIES, best_reading, best_readings, reading
from toolkit.measure.intervals import mean_of

FIELDS = {"id", "paper", "source", "published", "protocol", "measure", "direction", "arms", "seeds", "rule"}
PAPERS = {"SegReg": 5, "SelfReg-UNet": 5, "Latent augmentation": 5, "Med-DisSeg": 4}


def test_every_claim_has_exactly_the_fields() -> None:
    for claim in tomllib.loads(FILE.read_text(encoding="utf-8"))["claim"]:
        optional = {"effect", "not_learnt"} | ({"power", "command"} if "command" in claim else {"first_look"})
        assert FIELDS <= set(claim) <= FIELDS | optional, claim["id"]
        assert all(claim[field] for field in claim), claim["id"]
        assert set(claim.get("first_look", [])) < set(claim["seeds"]), claim["id"]


def test_the_claims_cover_the_papers_and_most_of_them_are_tested() -> None:
    everything = claims()
    assert len({claim.id for claim in everything}) == len(everything)
    counts = Counter(claim.paper for claim in everything)
    assert set(counts) == set(PAPERS)
    assert all(counts[paper] >= least for paper, least in PAPERS.items())
    assert sum(bool(claim.command) for claim in everything) <= len(everything) / 4


@pytest.mark.parametrize("claim", claims(), ids=lambda claim: claim.id)
def test_a_claim_can_be_judged(claim: Claim) -> None:
    assert claim.expected > 0
    assert len(claim.arms) in (1, 2, 4)
    assert claim.seeds == sorted(set(claim.seeds))
    assert claim.metric
    assert claim.sites
    assert claim.verdict(-1e9, 1e9) == "inconclusive", "an interval that excludes nothing decides nothing"
    ends = [claim.verdict(value, value) for value in (-1e9, 1e9)]
    if claim.direction in ("higher", "not lower", "above 1"):
        assert ends == ["contradicted", "supported"]
    elif claim.direction in ("lower", "below 1"):
        assert ends == ["supported", "contradicted"]
    else:
        assert claim.direction in ("equal", "zero")
        assert "contradicted" in ends
        assert claim.verdict(0, 0) == "supported"


@pytest.mark.parametrize("claim", claims(), ids=lambda claim: claim.id)
def test_a_claim_names_a_study_that_trains_its_arms(claim: Claim) -> None:
    arms = {arm.removesuffix("-fast") for arm in claim.arms}
    assert arms <= set(STUDIES[claim.study].arms)
    assert claim.study in set(pd.read_csv(FILE.with_name("plan.csv"))["study"])


def test_a_rule_is_applied_as_it_is_written() -> None:
    claim = next(one for one in claims() if one.id == "segreg-home-generated")
    assert claim.rule == "supported: low > -0.01; contradicted: high < -0.01; sees: 0.01"
    assert claim.verdict(-0.005, 0.004) == "supported"
    assert claim.verdict(-0.02, 0.01) == "inconclusive"
    assert claim.verdict(-0.03, -0.011) == "contradicted"


def test_patients_that_several_networks_scored_count_once(tmp_path: Path) -> None:
    claim = dataclasses.replace(next(one for one in claims() if one.id == "segreg-unseen-mr"), seeds=[0])
    drawn = np.random.default_rng(0).normal(0.02, 0.01, (6, 3))  # patients, folds
    rows = [
        {
            "arm": arm,
            "seed": 0,
            "fold": fold,
            "site": "sunnybrook",
            "subject": f"p{i}",
            "metric": "dice",
            "value": value,
        }
        for i, own in enumerate(drawn)
        for fold, gain in enumerate(own)
        for arm, value in (("segreg", 0.5 + gain), ("plain", 0.5))
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "acdc.csv", index=False)
    judged = judge(claim, tmp_path)
    assert (judged.patients, judged.trainings) == (6, 3)
    assert judged.difference == pytest.approx(drawn.mean(), rel=1e-3)
    crossed = mean_of(drawn)  # folds are trainings as seeds are
    assert (judged.low, judged.high) == pytest.approx(crossed.interval(), rel=1e-3)
    pd.DataFrame([row for row in rows if row["fold"] < 2 or row["subject"] != "p0"]).to_csv(
        tmp_path / "acdc.csv", index=False
    )
    drawn[0, 2] = np.nan
    judged = judge(claim, tmp_path)
    patients, trainings = np.nanmean(drawn, 1), np.nanmean(drawn, 0)
    assert judged.difference == pytest.approx(patients.mean(), rel=1e-3)
    half = stats.t.ppf(0.975, 2) * trainings.std(ddof=1) / np.sqrt(3)  # the trainings alone
    assert judged.high - judged.low >= 2 * half * 0.999


def test_the_race_is_won_away_by_who_costs_little_at_home(tmp_path: Path) -> None:
    rows = {"plain": (0.90, 0.5), "dear": (0.88, 0.9), "good": (0.895, 0.6), "poor": (0.95, 0.4)}
    lines = [
        f"{arm},10,,{site},x,dice,{value}" for arm, own in rows.items() for site, value in zip("AB", own, strict=True)
    ]
    file = tmp_path / "race.csv"
    file.write_text("\n".join(["arm,seed,fold,site,subject,metric,value", *lines]), encoding="utf-8")
    assert (best_reading(file), best_readings(file)) == ("good", ["good", "poor"])
    assert best_readings(tmp_path / "not run") == []


def test_a_reading_is_named_by_divergence_tap_and_weight() -> None:
    term = reading("gaussian_kl-pre_activation-0.01")
    assert (term.divergence, term.tap, term.weight) == ("gaussian_kl", "pre_activation", 0.01)


def test_a_misspelt_study_trains_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["run", "cardiacs"])
    monkeypatch.setattr(run, "work", lambda todo: pytest.fail("it trained"))
    with pytest.raises(SystemExit):
        run.main()
    assert "no study or paper 'cardiacs'" in capsys.readouterr().err


def test_what_another_machine_measured_stays_when_this_one_collects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own rows take the place of older ones of the same training; who is not planned, or half measured, is not there."""
    results, runs = tmp_path / "results", tmp_path / "runs"
    results.mkdir()
    monkeypatch.setattr(run, "RESULTS", results)
    head = "arm,seed,fold,site,subject,metric,value"
    there = [
        "standard,0,,A,p,dice,0.1",
        "standard-fast,0,,A,p,dice,0.2",
        "standard,1,,A,p,dice,0.3",
        "gone,0,,A,p,dice,0.4",
    ]
    (results / "latent.csv").write_text("\n".join([head, *there, ""]), encoding="utf-8")
    costs = ["latent,standard,0,,1.0,2.0", "latent,standard,1,,3.0,4.0", "gone,standard,0,,5.0,6.0"]
    (results / "costs.csv").write_text(
        "\n".join(["study,arm,seed,fold,minutes,cpu_minutes", *costs, ""]), encoding="utf-8"
    )
    for arm, own in {"standard": 1, "cooperative": 0}.items():
        folder = run.Job("latent", arm, own, None, runs).folder
        folder.mkdir(parents=True)
        (folder / "measures.csv").write_text(f"{head}\n{arm},{own},,A,p,dice,0.6000004\n", encoding="utf-8")
        (folder / "cost.json").write_text('{"minutes": 7.001, "cpu_minutes": 8.0}', encoding="utf-8")
    run.Job("latent", "targeted", 0, None, runs).folder.mkdir(parents=True)
    assert run.collect("latent", runs) == 3
    run.collect_costs(runs)
    kept = (results / "latent.csv").read_text(encoding="utf-8").splitlines()
    assert kept[0] == head
    assert sorted(kept[1:]) == sorted([*there[:2], "standard,1,,A,p,dice,0.6", "cooperative,0,,A,p,dice,0.6"])
    table = (results / "costs.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert sorted(table) == [
        "latent,cooperative,0,,7.0,8.0",
        "latent,standard,0,,1.0,2.0",
        "latent,standard,1,,7.0,8.0",
    ]

"""The papers' claims as data: read, checked, and judged by the rule that stands beside each."""

from __future__ import annotations

import dataclasses
import operator
import re
import tomllib
from pathlib import Path

FILE = Path(__file__).with_name("claims.toml")
_COMPARE = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}
_CONDITION = re.compile(r"(low|high) (>=|<=|>|<) (-?[\d.]+(?:e-?\d+)?)")


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim of a paper; the fields are described at the head of `claims.toml`."""

    id: str
    paper: str
    source: str
    published: str
    protocol: str
    measure: str
    direction: str
    arms: list[str]
    seeds: list[int]
    rule: str
    power: str = ""
    command: str = ""
    first_look: list[int] = dataclasses.field(default_factory=list)
    effect: float | None = None
    not_learnt: str = ""

    @property
    def study(self) -> str:
        """Name of the study that tests it."""
        return self.protocol.split(":")[0]

    @property
    def metric(self) -> str:
        """Column of the study's results."""
        return self.measure.split(" @ ")[0]

    @property
    def sites(self) -> list[str]:
        """Sites whose patients count."""
        return self.measure.split(" @ ")[1].split()

    @property
    def unit(self) -> str:
        """What a row of the results is about, where it is no patient."""
        whole = {"effective_rank": "sites", "mean_cosine": "sites", "gradient_norm": "stages"}
        images = ("nuclei", "med-disseg", "selfreg-glands")
        return whole.get(self.metric, "images" if self.study.startswith(images) else "patients")

    @property
    def confidence(self) -> float:
        """Of the interval that the rule reads: 95 %, and with a second look the half of the risk for each."""
        return 0.975 if self.first_look else 0.95

    @property
    def expected(self) -> float:
        """The smallest effect that the design was expected to see."""
        return float(self._parts()["sees"])

    def verdict(self, low: float, high: float) -> str:
        """Supported, contradicted or inconclusive, from the interval."""
        ends = {"low": low, "high": high}
        for name in ("supported", "contradicted"):
            if all(_COMPARE[sign](ends[end], value) for end, sign, value in self._conditions(name)):
                return name
        return "inconclusive"

    def bounds(self) -> list[tuple[str, float]]:
        """Which end of the interval must lie beyond which value for the claim to be supported."""
        return [(end, value) for end, _, value in self._conditions("supported")]

    def _conditions(self, name: str) -> list[tuple[str, str, float]]:
        matches = [_CONDITION.fullmatch(condition) for condition in self._parts()[name].split(" and ")]
        if not all(matches):
            raise ValueError(f"{self.id}: the rule {self._parts()[name]!r} cannot be read")
        return [(match[1], match[2], float(match[3])) for match in matches if match]

    def _parts(self) -> dict[str, str]:
        return dict(part.split(": ") for part in self.rule.split("; "))


def claims() -> list[Claim]:
    """All claims in the order of the file."""
    with FILE.open("rb") as file:
        return [Claim(**claim) for claim in tomllib.load(file)["claim"]]

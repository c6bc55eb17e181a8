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
    def expected(self) -> float:
        """The smallest effect that the design was expected to see."""
        return float(self._parts()["sees"])

    def verdict(self, low: float, high: float) -> str:
        """Supported, contradicted or inconclusive, from the interval."""
        for name in ("supported", "contradicted"):
            conditions = self._parts()[name].split(" and ")
            matches = [_CONDITION.fullmatch(condition) for condition in conditions]
            if not all(matches):
                raise ValueError(f"{self.id}: the rule {self._parts()[name]!r} cannot be read")
            ends = {"low": low, "high": high}
            if all(_COMPARE[m[2]](ends[m[1]], float(m[3])) for m in matches if m):
                return name
        return "inconclusive"

    def _parts(self) -> dict[str, str]:
        return dict(part.split(": ") for part in self.rule.split("; "))


def claims() -> list[Claim]:
    """All claims in the order of the file."""
    with FILE.open("rb") as file:
        return [Claim(**claim) for claim in tomllib.load(file)["claim"]]

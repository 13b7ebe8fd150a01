"""Samples, tables and verdicts, the same for every program here."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

MAX_OVER_BAR = 1.5  # the median must meet the bar, the maximum may be this much worse


@dataclass
class Series:
    """Samples of one figure, in the unit it is printed in."""

    name: str
    unit: str
    samples: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        self.samples.append(value)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        return min(self.samples)

    @property
    def high(self) -> float:
        return max(self.samples)


@dataclass(frozen=True)
class Bar:
    """What a figure has to meet. `at_most`: smaller is better; otherwise larger is better."""

    value: float
    at_most: bool = True

    def verdict(self, series: Series) -> str:
        """`met`, or by how much not."""
        if self.at_most:
            median_ok, worst_ok = series.median <= self.value, series.high <= self.value * MAX_OVER_BAR
        else:
            median_ok, worst_ok = series.median >= self.value, series.low >= self.value / MAX_OVER_BAR
        if median_ok and worst_ok:
            return "met"
        which = "median" if not median_ok else "worst"
        found = series.median if not median_ok else (series.high if self.at_most else series.low)
        limit = self.value if not median_ok else self.value * (MAX_OVER_BAR if self.at_most else 1 / MAX_OVER_BAR)
        return f"MISSED: {which} {found:.3g}, bar {limit:.3g}"


def ratio(name: str, ours: Series, floor: Series) -> Series:
    """Ratios of pairs taken in turn; both series must have been sampled alternately."""
    pairs = zip(ours.samples, floor.samples, strict=True)
    return Series(name, "x", [a / b for a, b in pairs])


def show(title: str, rows: Sequence[tuple[Series, Bar | None]]) -> bool:
    """Print the table; whether every bar was met."""
    cores = os.cpu_count()
    print(f"\n{title}   ({platform.machine()}, {cores} cores, Python {platform.python_version()})")
    header = f"{'figure':<58} {'unit':<6} {'n':>4} {'min':>10} {'median':>10} {'max':>10}  bar"
    print(header)
    print("-" * len(header))
    met = True
    for series, bar in rows:
        verdict = ""
        if bar is not None:
            sign = "<=" if bar.at_most else ">="
            result = bar.verdict(series)
            met = met and result == "met"
            verdict = f"{sign} {bar.value:g}  {result}"
        print(
            f"{series.name:<58} {series.unit:<6} {len(series.samples):>4} "
            f"{series.low:>10.4g} {series.median:>10.4g} {series.high:>10.4g}  {verdict}"
        )
    return met

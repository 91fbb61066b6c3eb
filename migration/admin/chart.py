"""Draws a drain's history as numbers for an SVG: bytes proven, copied on top of them, and the rate, over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.utils import timezone

WIDTH, TOP, BASE = 960, 1, 159
"""Of the picture, which is stretched to its place: what stands at its axes is beside it."""


@dataclass(frozen=True, slots=True)
class Chart:
    """Points of the two areas and of the rate's line in the SVG's own units, and what stands at the axes."""

    proven: str
    copied: str
    rate: str
    fastest: float
    """Bytes per second at the upper edge."""
    last: float
    top: int
    """Bytes at the upper edge."""
    begin: datetime
    end: datetime


def draw(samples: Sequence[Mapping[str, Any]], total: int) -> Chart | None:
    """The chart of at least two samples, oldest first; None where there is nothing to draw."""
    if len(samples) < 2:
        return None
    begin, end = samples[0]["at"], samples[-1]["at"]
    seconds = (end - begin).total_seconds() or 1.0
    top = max(total, *(sample["bytes_proven"] + sample["bytes_copied"] for sample in samples), 1)
    fastest = max(sample["rate"] for sample in samples)

    def point(sample: Mapping[str, Any], share: float) -> str:
        x = WIDTH * (sample["at"] - begin).total_seconds() / seconds
        return f"{x:.1f},{BASE - (BASE - TOP) * share:.1f}"

    proven = [point(sample, sample["bytes_proven"] / top) for sample in samples]
    both = [point(sample, (sample["bytes_proven"] + sample["bytes_copied"]) / top) for sample in samples]
    rate = [point(sample, sample["rate"] / (fastest or 1.0)) for sample in samples]
    floor = f"{WIDTH},{BASE} 0,{BASE}"
    return Chart(
        proven=f"{' '.join(proven)} {floor}",
        copied=f"{' '.join(both)} {floor}",
        rate=" ".join(rate),
        fastest=fastest,
        last=samples[-1]["rate"],
        top=top,
        begin=timezone.localtime(begin),
        end=timezone.localtime(end),
    )

"""From rounds to verdicts: medians of per-round ratios, what they prove, and the same rows as table, JSON and README."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Literal

Met = bool | Literal["inconclusive"]

BEGIN, END = "<!-- written by make bench README=1 -->", "<!-- end of what make bench wrote -->"
DROPPED_FROM = 8
"""Of so many rounds on, the best and the worst decide nothing: one disturbed round is not a finding."""
BUSY = 0.15
"""With less of the cores idle they are the bound, whoever keeps them busy."""


@dataclass(frozen=True)
class Row:
    """One line of the result; its fields are those of `latest.json`."""

    id: str
    what: str
    ours: float
    peer: float | None
    ratio: float
    min: float
    max: float
    bar: str
    met: Met
    rounds: int


def compared(
    id: str,  # noqa: A002 - the field's name
    what: str,
    bar: str,
    rounds: Sequence[tuple[float, float]],
    *,
    exact: bool = False,
) -> Row:
    """The row of what was measured beside a peer in each round: (ours, peer). `exact`: counts, which one round settles."""
    ratios = [ours / peer for ours, peer in rounds]
    ours, peer = (median(side) for side in zip(*rounds, strict=True))
    return _row(id, what, ours, peer, ratios, bar, exact)


def absolute(id: str, what: str, bar: str, rounds: Sequence[float], *, exact: bool = False) -> Row:  # noqa: A002
    """The row of a figure that has a bar of its own and no peer; its ratio is to that bar."""
    limit = _limit(bar)[1]
    row = _row(id, what, median(rounds), None, [value / limit for value in rounds], f"{bar[:2]} 1", exact)
    return Row(**(asdict(row) | {"bar": bar}))


def _row(id: str, what: str, ours: float, peer: float | None, ratios: Sequence[float], bar: str, exact: bool) -> Row:  # noqa: A002
    figures = [round(value, 3) for value in (median(ratios), min(ratios), max(ratios))]
    met = verdict(ratios, bar, exact=exact)
    return Row(id, what, round(ours, 3), None if peer is None else round(peer, 3), *figures, bar, met, len(ratios))


def verdict(ratios: Sequence[float], bar: str, *, exact: bool = False) -> Met:
    """Whether the bar is met: true or false when the rounds agree, else "inconclusive".

    Two rounds that differ prove nothing and one proves less, so a timed row takes three. From DROPPED_FROM rounds on one
    round may disagree at either end.
    """
    direction, limit = _limit(bar)
    if len(ratios) < 3 and not exact:
        return "inconclusive"
    ordered = sorted(ratios)
    if len(ordered) >= DROPPED_FROM:
        ordered = ordered[1:-1]
    passed = {value >= limit if direction == ">=" else value <= limit for value in ordered}
    return passed.pop() if len(passed) == 1 else "inconclusive"


def unless_busy(row: Row, idle: float, idle_of_one: float) -> Row:
    """The row of N workers beside N times one, given how much of the cores was idle: what busy ones prove is nothing. One worker
    that had to wait for them makes N look good, and N that had to are not worse than the machine."""
    if idle_of_one < BUSY:
        reason = f"the one worker had busy cores, {idle_of_one:.0%} of them idle"
    elif idle < BUSY and row.met is not True:
        reason = "busy cores were the bound"
    else:
        return row
    return replace(row, what=f"{row.what}: inconclusive, for {reason}", met="inconclusive")


def _limit(bar: str) -> tuple[str, float]:
    found = re.fullmatch(r"(>=|<=) (\d+(?:\.\d+)?)", bar)
    if found is None:
        raise ValueError(f"{bar!r} is no bar: write it like `>= 1.4`")
    return found[1], float(found[2])


def write(path: Path, rows: Sequence[Row], known: Sequence[str]) -> None:
    """Replace the rows of the same ids in `latest.json`, and keep the others: rows can be run one by one. In the order of the
    `known` ids; what the bench does not know any more goes."""
    kept = {row.id: row for row in read(path)} if path.exists() else {}
    kept |= {row.id: row for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps([asdict(kept[name]) for name in known if name in kept], indent=1) + "\n")
    new.replace(path)


def read(path: Path) -> list[Row]:
    """The rows of a `latest.json`."""
    return [Row(**entry) for entry in json.loads(path.read_text())]


def number(value: float | None) -> str:
    """Three digits that say something."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _cells(row: Row) -> list[str]:
    met = {True: "met", False: "missed"}.get(row.met, "inconclusive") if isinstance(row.met, bool) else row.met
    spread = f"{number(row.ratio)} ({number(row.min)}-{number(row.max)})"
    return [row.id, row.what, number(row.ours), number(row.peer), spread, row.bar, met, str(row.rounds)]


HEADINGS = ["row", "what", "ours", "peer", "ratio (min-max)", "bar", "", "rounds"]


def table(rows: Sequence[Row]) -> str:
    """The rows for a terminal."""
    lines = [HEADINGS, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def markdown(rows: Sequence[Row]) -> str:
    """The README's section: what was measured, and nothing that was not."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cost_model(rows: Sequence[Row]) -> str:
    """What moving costs by these rows, as a table to size workers with; says which rows are missing instead."""
    ours = {row.id: row.ours for row in rows}
    if missing := [name for name in ("s3-large-cpu", "s3-small-cpu", "bookkeeping") if name not in ours]:
        return f"(not known before these rows were run: {', '.join(missing)})"
    gib = ours["s3-large-cpu"]
    item = (ours["s3-small-cpu"] - gib * 1000 / 1024) / 1000
    lines = [
        ["what", "cost"],
        ["---", "---"],
        ["content, CPU s of the worker per GiB", number(gib)],
        ["an item of one part, CPU ms of the worker beyond its content", number(item * 1000)],
        ["an item, SQL statements", number(ours["bookkeeping"])],
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_section(page: Path, body: str) -> None:
    """Put what the rows say between the page's markers."""
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page.name} lacks the lines {BEGIN} and {END}")
    before, rest = text.split(BEGIN, 1)
    page.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{rest.split(END, 1)[1]}")

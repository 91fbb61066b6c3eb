"""`make bench`: run the rows, print the table, write `var/bench/latest.json`, and with --readme the README's section."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench import converting, counting, figures, listing, moving, scaling
from tests.bench.figures import Row
from tests.bench.ground import Bench
from tests.servers.process import REPOSITORY

LATEST = REPOSITORY / "var" / "bench" / "latest.json"
SCALED = LATEST.with_name("scaled.json")
"""Where a run with --scale goes: its figures say whether the bench works, nothing else."""
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Group:
    """Rows that come from the same rounds."""

    rows: tuple[str, ...]
    run: Callable[[Bench, int, float, Callable[[str], None]], list[Row]]
    rounds: int = 5
    asked: bool = False
    """Only when it is named: it takes long."""


GROUPS = [
    Group(("s3-large", "s3-large-cpu"), moving.s3(moving.LARGE, "s3-large", "4 x 256 MiB", ">= 1.4", "<= 0.4")),
    Group(("s3-small", "s3-small-cpu"), moving.s3(moving.SMALL, "s3-small", "1000 x 1 MiB", ">= 1.3", "<= 0.7")),
    Group(("swift-large",), moving.swift(moving.LARGE, "swift-large", "4 x 256 MiB", ">= 1.2")),
    Group(("swift-small",), moving.swift(moving.SMALL, "swift-small", "1000 x 1 MiB", ">= 1.2")),
    Group(("tiny",), moving.tiny),
    Group(("sparse", "sparse-rss"), moving.sparse, rounds=3),
    Group(("convert-postgres",), converting.postgres, rounds=3),
    Group(("convert-sqlite",), converting.sqlite, rounds=3),
    Group(("bookkeeping",), counting.bookkeeping, rounds=1),
    Group(("plan-time", "plan-memory", "plan-claim"), counting.plan, rounds=3),
    Group(("plan-million-time", "plan-million-memory", "plan-million-claim"), counting.plan_million, rounds=1, asked=True),
    Group(("list-refs",), listing.pages),
    Group(("scale-2", "scale-4"), scaling.workers, rounds=3),
]


KNOWN = [row for group in GROUPS for row in group.rows]


def choices(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for; ends the program with a sentence where that makes no sense."""
    parser = argparse.ArgumentParser(prog="make bench", usage="make bench [ROWS='s3-small tiny'] [ROUNDS=5] [README=1]")
    asked = [row for group in GROUPS if group.asked for row in group.rows]
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {' '.join(KNOWN)}; by default all but {' '.join(asked)}")
    parser.add_argument("--rounds", type=int, help="instead of each row's own number")
    parser.add_argument("--scale", type=float, default=1, help="make the data so much smaller, to try the bench out")
    parser.add_argument("--readme", action="store_true", help="write README and docs/performance.md from the kept figures")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.rows) - set(KNOWN):
        parser.error(f"no such rows: {' '.join(sorted(unknown))}; there are {' '.join(KNOWN)}")
    if chosen.rounds is not None and chosen.rounds < 1:
        parser.error(f"{chosen.rounds} rounds measure nothing: ask for one or more (a verdict takes three)")
    if not 0 < chosen.scale <= 1:
        parser.error(f"a scale of {chosen.scale:g}: give more than 0 and at most 1, which is full size")
    if chosen.readme and chosen.scale != 1:
        parser.error("the README takes figures of full size only: leave out --scale or --readme")
    return chosen


def main() -> int:
    chosen = choices()
    groups = [group for group in GROUPS if set(group.rows) & set(chosen.rows) or not (chosen.rows or group.asked)]
    kept = LATEST if chosen.scale == 1 else SCALED
    rows, failed = [], []
    for number in ENDINGS:
        signal.signal(number, _interrupt)
    try:
        with Bench() as bench:
            for group in groups:
                started = time.monotonic()
                say(f"{', '.join(group.rows)}")
                try:
                    found = group.run(bench, chosen.rounds or group.rounds, chosen.scale, say)
                except Exception:
                    traceback.print_exc()
                    failed.append(group.rows[0])
                    continue
                rows += found
                figures.write(kept, found, KNOWN)
                say(f"  {time.monotonic() - started:.0f} s")
    except KeyboardInterrupt:
        done = f"{', '.join(row.id for row in rows)} kept in {kept.relative_to(REPOSITORY)}" if rows else "nothing was measured"
        print(f"\ninterrupted; servers and data are gone, {done}", file=sys.stderr)
        return 130
    print(f"\n{figures.table(rows)}\n\nkept in {kept.relative_to(REPOSITORY)}")
    if chosen.readme and LATEST.exists():
        latest = figures.read(LATEST)
        figures.write_section(REPOSITORY / "README.md", figures.markdown(latest))
        figures.write_section(REPOSITORY / "docs" / "performance.md", figures.cost_model(latest))
    if failed:
        print(f"\nfailed, with nothing measured: {' '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _interrupt(*_: object) -> None:
    for number in ENDINGS:  # what is cleaned up now is cleaned up to its end
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())

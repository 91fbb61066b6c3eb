"""The family of a snapshot as a tree: what it builds on, and what builds on it, as far as a page should go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stores.models import Snapshot

UPWARD = 200
"""Parents that are looked up."""
NEAREST = 8
"""Parents that are shown beside the full snapshot."""
DOWNWARD = 40
"""Descendants that are shown, of at most so many generations as LEVELS."""
LEVELS = 5

_PARENTS = """
WITH RECURSIVE up(id, parent_id, step) AS (
  SELECT id, parent_id, 0 FROM snapshots WHERE id = %s
  UNION ALL
  SELECT s.id, s.parent_id, up.step + 1 FROM snapshots s JOIN up ON s.id = up.parent_id WHERE up.step < %s
)
SELECT s.* FROM snapshots s JOIN up ON up.id = s.id WHERE up.step > 0 ORDER BY up.step DESC
"""
_DESCENDANTS = """
WITH RECURSIVE down(id, step) AS (
  SELECT id, 0 FROM snapshots WHERE id = %s
  UNION ALL
  SELECT s.id, down.step + 1 FROM snapshots s JOIN down ON s.parent_id = down.id WHERE s.removed IS NULL AND down.step < %s
)
SELECT s.* FROM snapshots s JOIN down ON down.id = s.id WHERE down.step > 0 ORDER BY down.step, s.id LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class Link:
    """A line of the tree; without an item it stands for `left_out` lines."""

    level: int
    item: Snapshot | None = None
    left_out: int = 0


def family(item: Snapshot) -> list[Link]:
    """The tree in the order of reading, two queries whatever its size; empty where the item stands alone."""
    parents = list(Snapshot.objects.raw(_PARENTS, [item.pk, UPWARD]))
    below = list(Snapshot.objects.raw(_DESCENDANTS, [item.pk, LEVELS, DOWNWARD + 1]))
    if not parents and not below:
        return []
    links = list(_above(parents))
    own = links[-1].level + 1 if links else 0
    links.append(Link(own, item))
    links += _below(item.pk, below[:DOWNWARD], own + 1)
    return [*links, Link(own + 1, left_out=1)] if len(below) > DOWNWARD else links


def _above(parents: Sequence[Snapshot]) -> Iterator[Link]:
    if len(parents) <= NEAREST + 1:
        yield from (Link(level, parent) for level, parent in enumerate(parents))
        return
    yield Link(0, parents[0])
    yield Link(1, left_out=len(parents) - NEAREST - 1)
    yield from (Link(level, parent) for level, parent in enumerate(parents[-NEAREST:], start=2))


def _below(parent_id: int, rows: Sequence[Snapshot], level: int) -> Iterator[Link]:
    for row in rows:
        if row.parent_id == parent_id:
            yield Link(level, row)
            yield from _below(row.pk, rows, level + 1)

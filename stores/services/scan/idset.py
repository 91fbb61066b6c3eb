"""A set of row ids in one bit each: what a scan has seen of a store with millions of files still fits in memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

_PAGE_BYTES = 512


class IdSet:
    """Positive whole numbers, kept in pages so that a few far-apart ones stay small too."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = defaultdict(lambda: bytearray(_PAGE_BYTES))

    def add(self, ids: Iterable[int]) -> None:
        for number in ids:
            page, bit = divmod(number, 8 * _PAGE_BYTES)
            self._pages[page][bit >> 3] |= 1 << (bit & 7)

    def __contains__(self, number: int) -> bool:
        page, bit = divmod(number, 8 * _PAGE_BYTES)
        return page in self._pages and bool(self._pages[page][bit >> 3] & 1 << (bit & 7))

"""The last journal line of every install path, in a throw-away file: a journal of millions of lines is not held in memory."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self


class LineIndex:
    """Lines by install path; a later line of the same path takes the earlier one's place."""

    def __init__(self) -> None:
        self._file = tempfile.NamedTemporaryFile(prefix="cloudstorage-rebuild-")  # noqa: SIM115 - it lives as long as the index
        self._database = sqlite3.connect(self._file.name, isolation_level=None)
        self._database.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN;"
            "CREATE TABLE line (path TEXT PRIMARY KEY, depth INTEGER, body TEXT) WITHOUT ROWID;"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._database.close()
        self._file.close()

    def add(self, line: Mapping[str, Any]) -> None:
        row = (line["install_path"], line.get("depth", 0), json.dumps(line))
        self._database.execute("INSERT OR REPLACE INTO line (path, depth, body) VALUES (?, ?, ?)", row)

    def find(self, paths: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The lines of these install paths."""
        wanted = list(dict.fromkeys(paths))
        found: dict[str, dict[str, Any]] = {}
        for at in range(0, len(wanted), 500):
            some = wanted[at : at + 500]
            marks = ",".join("?" * len(some))
            for path, body in self._database.execute(f"SELECT path, body FROM line WHERE path IN ({marks})", some):  # noqa: S608 - the marks are question marks
                found[path] = json.loads(body)
        return found

    def chains(self, size: int) -> Iterator[Sequence[dict[str, Any]]]:
        """Lines that have a parent, parents before children, in batches that never mix two depths."""
        after: tuple[int, str] = (-1, "")
        while True:
            rows = self._database.execute(
                "SELECT depth, path, body FROM line WHERE depth > 0 AND (depth, path) > (?, ?) ORDER BY depth, path LIMIT ?",
                (*after, size),
            ).fetchall()
            if not rows:
                return
            same = [row for row in rows if row[0] == rows[0][0]]
            after = (same[-1][0], same[-1][1])
            yield [json.loads(body) for _, _, body in same]

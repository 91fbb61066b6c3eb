"""The hash of an item of several files is that of what `sha256sum` prints, whatever their names."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from stores.manifest import manifest_sha256

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("names", [("a", "b"), ("a\\b", "c"), ("a\nb", "a\\n"), (" a", "ä"), ("\udcff", "\\")], ids=ascii)
def test_several_files_are_hashed_as_sha256sum_prints_them(tmp_path: Path, names: tuple[str, ...]) -> None:
    files = []
    for name in names:
        (tmp_path / name).write_bytes(name.encode("utf-8", "surrogateescape"))
        files.append((name, hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()))
    printed = subprocess.run(["sha256sum", "--", *sorted(names)], cwd=tmp_path, capture_output=True, check=True).stdout
    assert manifest_sha256(files) == hashlib.sha256(printed).hexdigest()


def test_single_file_is_its_own_hash_and_one_that_is_not_known_leaves_none() -> None:
    assert manifest_sha256([("a\nb", "0" * 64)]) == "0" * 64
    assert manifest_sha256([("a", "0" * 64), ("b", "")]) == ""

"""What holds the shape of the code: lint, format, types, import rules, migrations, generated docs, every command tested."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.unit


def succeeds(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-8000:]}{done.stderr[-4000:]}"


def test_lint_finds_nothing():
    succeeds(str(BIN / "ruff"), "check", ".")


def test_every_file_is_formatted():
    succeeds(str(BIN / "ruff"), "format", "--check", ".")


def test_types_hold_strictly():
    succeeds(str(BIN / "mypy"))


def test_imports_go_one_way():
    succeeds(str(BIN / "lint-imports"))


def test_no_migration_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOUDSTORAGE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'none.sqlite3'}")
    succeeds(sys.executable, "manage.py", "makemigrations", "--check", "--dry-run")


def test_generated_docs_are_current(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOUDSTORAGE_DATA_DIR", str(tmp_path))
    succeeds(sys.executable, "manage.py", "docs_build", "--check")


def test_every_module_says_why_it_exists():
    silent = []
    for app in ("cloudstorage", "stores", "migration"):
        for module in (ROOT / app).rglob("*.py"):
            text = module.read_text()
            if text.strip() and "/migrations/" not in str(module) and not text.startswith(('"""', '#!/usr/bin/env python\n"""')):
                silent.append(str(module.relative_to(ROOT)))
    assert silent == []


def test_whatever_is_found_amiss_comes_with_a_remedy():
    silent = []
    for path in [*(ROOT / "stores").rglob("*.py"), *(ROOT / "migration").rglob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or getattr(call.func, "id", "") not in {"Finding", "ProbeStep"}:
                continue
            words = [getattr(word, "value", word) for word in call.args]
            grave = next((place for place, word in enumerate(words) if word in {"blocker", "warning", "unknown"}), None)
            named = [each.value for each in call.keywords if each.arg == "remedy"]
            if grave is not None and not any([*words[grave + 2 : grave + 3], *named]):
                silent.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert silent == []


def test_every_command_is_run_by_a_test():
    commands = {
        path.stem
        for app in ("stores", "migration")
        for path in (ROOT / app / "management" / "commands").glob("[a-z]*.py")
        if not path.stem.startswith("_")
    }
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    untested = {name for name in commands if not re.search(rf"""["']{name}["']""", tests)}
    assert untested == set()


def test_nothing_was_added_to_the_top_level():
    allowed = {
        "manage.py", "cloudstorage", "stores", "migration", "templates", "static", "tests", "requirements.txt",
        "requirements-dev.txt", "README.md", "LICENSE", "CHANGELOG.md", "docs", "pyproject.toml", "Makefile", ".ci", ".gitignore",
    }  # fmt: skip
    listed = subprocess.run(["git", "ls-tree", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) <= allowed

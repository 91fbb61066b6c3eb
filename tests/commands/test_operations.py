"""The runbook's commands exist and take what it gives them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class

DOCUMENTS = Path(__file__).parents[2] / "docs"
RUNBOOK = (DOCUMENTS / "operations.md").read_text()
LINES = [
    line.removeprefix("manage.py ")
    for block in re.findall(r"^```sh\n(.*?)^```", RUNBOOK, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
    if line.startswith("manage.py ")
]


@pytest.mark.unit
@pytest.mark.parametrize("line", sorted(set(LINES)))
def test_command_of_the_runbook_takes_what_it_is_given(line):
    name, *arguments = shlex.split(line)
    command = load_command_class(get_commands()[name], name)
    parsed = command.create_parser("manage.py", name).parse_args(arguments)
    assert parsed.traceback is False


@pytest.mark.unit
def test_every_command_of_ours_that_changes_something_is_in_the_runbook_or_only_looks():
    looking = {"store_list", "openapi", "docs_build", "worker", "worker_queue", "token_create"}
    steering = {"migration_pause", "migration_resume", "migration_cancel", "user_change"}
    ours = {name for name, app in get_commands().items() if str(app) in {"stores", "migration", "cloudstorage"}}
    assert ours - {line.split()[0] for line in LINES} <= looking | steering


@pytest.mark.unit
def test_examples_name_settings_that_exist():
    known = (DOCUMENTS / "settings.md").read_text()
    example = (DOCUMENTS / "deploy" / "cloudstorage.env").read_text()
    named = set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE))
    assert len(named) > 5
    assert {name for name in named if f"`{name}`" not in known} == set()


@pytest.mark.unit
@pytest.mark.parametrize("unit", sorted(path.name for path in (DOCUMENTS / "deploy").glob("*.service")))
def test_units_leave_the_exports_writable(unit):
    """Both processes write to them, and only the host's fstab knows where they are."""
    said = (DOCUMENTS / "deploy" / unit).read_text().splitlines()
    assert {line for line in said if line.startswith(("ProtectSystem", "ReadOnlyPaths", "InaccessiblePaths"))} <= {
        "ProtectSystem=full"
    }

"""The committed description is the one that the code serves."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from django.core.management import call_command

from tests.servers.process import REPOSITORY

COMMITTED = REPOSITORY / "docs" / "openapi.yaml"


@pytest.mark.unit
def test_committed_description_is_that_of_the_code(tmp_path: Path):
    fresh = tmp_path / "openapi.yaml"
    call_command("spectacular", "--file", str(fresh), "--validate", "--fail-on-warn")
    assert COMMITTED.read_text() == fresh.read_text(), "run `make openapi` and commit docs/openapi.yaml"


@pytest.mark.unit
def test_description_is_of_openapi_3_1_with_bearer_tokens_and_problems():
    found = yaml.safe_load(COMMITTED.read_text())
    assert found["openapi"].startswith("3.1")
    assert found["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            if path.endswith("/schema/"):
                continue
            assert operation["operationId"], (path, method)
            assert operation["description"], (path, method)
            assert "application/problem+json" in operation["responses"]["default"]["content"], (path, method)


@pytest.mark.unit
def test_secrets_are_no_part_of_any_answer():
    found = yaml.safe_load(COMMITTED.read_text())
    for name, schema in found["components"]["schemas"].items():
        if name.endswith(("Body", "BodyRequest", "Patch", "PatchedStorePatch")) or name == "NewTokenView":
            continue
        assert not {"secret", "secretkey", "key", "password", "token"} & {
            field for field, kind in schema.get("properties", {}).items() if kind.get("type") == "string" and name != "FileView"
        }, name


@pytest.mark.db
@pytest.mark.django_db
def test_served_description_is_the_committed_one(api):
    answer = api("viewer").get("schema/")
    assert answer.status_code == 200
    assert yaml.safe_load(answer.content) == yaml.safe_load(COMMITTED.read_text())

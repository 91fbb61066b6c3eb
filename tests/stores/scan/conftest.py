"""A built region, and its two exports as stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from stores.models import ImageStore
from tests.demo.build import BuiltRegion, build_region, copy_region
from tests.stores.scan.helpers import add_export


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltRegion:
    return build_region(tmp_path_factory.mktemp("region"), scale="tiny")


@pytest.fixture
def region(built: BuiltRegion, tmp_path: Path) -> BuiltRegion:
    """A copy that a test may damage, and that markers may be written to."""
    return copy_region(built, tmp_path / "region")


@pytest.fixture
def zone1(admin, region: BuiltRegion) -> ImageStore:
    return add_export(admin, "zone1", region.zones["zone1"])


@pytest.fixture
def zone2(admin, region: BuiltRegion) -> ImageStore:
    return add_export(admin, "zone2", region.zones["zone2"])

"""The settings' providers are loaded by dotted path, and a wrong one is told at start, not at the first store."""

from __future__ import annotations

import pytest

from stores import drivers
from stores.apps import check_store_drivers
from stores.drivers.nfs import NFSDriver

pytestmark = pytest.mark.unit


def test_driver_is_loaded_by_its_dotted_path():
    assert drivers.load("stores.drivers.nfs.NFSDriver") is NFSDriver


@pytest.mark.parametrize(
    ("path", "error", "names"),
    [
        ("NFSDriver", ImportError, "'NFSDriver'"),
        ("stores.drivers.nowhere.Driver", ImportError, "nowhere"),
        ("stores.drivers.nfs.Nothing", ImportError, "Nothing"),
        ("stores.drivers.nfs.Root", TypeError, "Root"),
    ],
)
def test_path_is_refused_when_no_driver_is_there(path, error, names):
    with pytest.raises(error, match=names):
        drivers.load(path)


def test_settings_as_they_are_pass_the_check():
    assert check_store_drivers(None) == []


@pytest.mark.parametrize(
    ("name", "path", "says"),
    [
        ("Ceph", "stores.drivers.ceph.CephDriver", "cannot be loaded"),
        ("Tape", "stores.drivers.nfs.NFSDriver", "is called NFS, not Tape"),
    ],
)
def test_check_says_what_is_wrong_when_a_provider_is_not_what_it_says(settings, name, path, says):
    settings.STORE_DRIVERS = {"NFS": "stores.drivers.nfs.NFSDriver", name: path}
    (error,) = check_store_drivers(None)
    assert error.id == "stores.E001"
    assert says in error.msg
    assert error.hint

"""The kinds of image stores; one file each, behind the contract of `base`, found by their dotted path."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from stores.drivers.base import StoreDriver


@cache
def load(path: str) -> type[StoreDriver]:
    """The driver class at a dotted path, as settings name it; raises ImportError or TypeError saying what is wrong."""
    module, _, name = path.rpartition(".")
    if not module:
        raise ImportError(f"{path!r} is not a dotted path of a driver class.")
    found = getattr(import_module(module), name, None)
    if found is None:
        raise ImportError(f"The module {module} has no {name}.")
    if not (isinstance(found, type) and issubclass(found, StoreDriver)):
        raise TypeError(f"{path} is not a StoreDriver.")
    return found

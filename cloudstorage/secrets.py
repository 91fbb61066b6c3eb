"""Secrets at rest: a Fernet key ring of its own (not SECRET_KEY), newest key first, in CLOUDSTORAGE_SECRET_KEYS_FILE (0600)."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from cloudstorage.files import publish
from cloudstorage.models import Installation

_PREFIX = "fernet:"


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(Fernet.generate_key() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process has made it at the same moment
            publish(temporary, path)
    finally:
        temporary.unlink()


@lru_cache(maxsize=1)
def _ring() -> MultiFernet:
    path = Path(settings.SECRET_KEYS_FILE)
    if not path.exists():
        installation = Installation.get()
        if installation.key_ring_used:
            raise ImproperlyConfigured(
                f"The key ring {path} is missing but this database holds encrypted secrets. Restore it from the backup;"
                " without it every store's secrets must be entered again."
            )
        _create(path)
        Installation.objects.filter(pk=installation.pk).update(key_ring_used=True)
    if path.stat().st_mode & 0o077:
        raise ImproperlyConfigured(f"The key ring {path} can be read by others. Run: chmod 600 {path}")
    try:
        return MultiFernet([Fernet(key) for key in path.read_bytes().split()])
    except ValueError:  # of an empty file, too
        message = f"The key ring {path} is damaged: not every line is a key. Restore it from the backup."
        raise ImproperlyConfigured(message) from None


def encrypt(plain: str) -> str:
    """Encrypt with the newest key."""
    return _PREFIX + _ring().encrypt(plain.encode()).decode()


def decrypt(stored: str) -> str:
    """Decrypt with any key of the ring; raises ImproperlyConfigured when none fits."""
    try:
        return _ring().decrypt(stored.removeprefix(_PREFIX).encode()).decode()
    except InvalidToken:
        raise ImproperlyConfigured(
            "A stored secret cannot be decrypted with any key of the ring. Restore the key ring that belongs to this database."
        ) from None

"""Backup of database and key ring in one archive, and its way back into an empty database.

A dump of our own through Django's models, not the databases' tools: it needs no program of the server's version on the host, is
the same on SQLite and PostgreSQL (a backup of one goes into the other), and can be checked row by row by whoever has the file.
"""

# ruff: noqa: SLF001 - `_meta` and `_base_manager` are Django's public names

from __future__ import annotations

import base64
import hashlib
import json
import os
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from django.apps import apps
from django.conf import settings
from django.core.management.color import no_style
from django.db import connection, models, transaction
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone

from cloudstorage.checkpoints import reach
from cloudstorage.errors import Conflict, Invalid
from cloudstorage.files import publish
from cloudstorage.models import Installation

FORMAT = 1
MANIFEST, KEY_RING = "manifest.json", "key-ring.json"
_LEFT_OUT = {"sessions", "django_q", "axes"}
"""Apps whose rows die with their process: who is signed in, messages of the queue, failed logins."""
_MADE_BY_MIGRATIONS = {"contenttypes.ContentType", "auth.Permission", "auth.Group", "cloudstorage.Installation"}
_ROWS = 2000
_SCRYPT = {"n": 2**15, "r": 8, "p": 1}

LOADED = "A backup was loaded into it, and what worked on the former database may still count here."
RESTORED = "It was restored from a backup and has not been compared with the stores yet."
"""Why a database is read-only after a restore."""


@dataclass(slots=True)
class Manifest:
    """What an archive holds; written last, so that an archive without one is known to be cut off."""

    cloud: str
    created: str
    version: str
    migrations: list[list[str]]
    members: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> sha256, and of a table its rows and columns."""
    format: int = FORMAT

    @property
    def rows(self) -> int:
        return sum(member.get("rows", 0) for member in self.members.values())

    @property
    def has_key_ring(self) -> bool:
        return KEY_RING in self.members


# --- writing ---------------------------------------------------------------------------------------------------------------


def write(path: Path, *, passphrase: str) -> Manifest:
    """Write an archive of this moment, while everything goes on, and read it back before it gets its name.

    The key ring goes in under `passphrase`; with an empty one it is left out. Raises Conflict where the file exists.
    """
    if path.exists():
        raise Conflict(f"{path} exists already and is not overwritten.", remedy="Choose another name.", field="file")
    for left in path.parent.glob(f".{path.name}.????????"):  # of one that was killed
        left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        try:
            with os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b") as file:
                with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                    manifest = _write_members(archive, passphrase)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            message = f"{path} cannot be written: {error.strerror}. No backup was made."
            raise Invalid(message, remedy="Name a file in a folder with room that you may write to.", field="file") from None
        reach("backup.written")
        verify(temporary, passphrase=passphrase)
        try:
            publish(temporary, path)
        except FileExistsError:
            raise Conflict(f"{path} was made by somebody else meanwhile.", remedy="Choose another name.", field="file") from None
    finally:
        temporary.unlink(missing_ok=True)
    return manifest


def _write_members(archive: zipfile.ZipFile, passphrase: str) -> Manifest:
    cloud = str(Installation.get().uuid)
    with _snapshot():
        applied = sorted(MigrationRecorder(connection).applied_migrations())
        manifest = Manifest(
            cloud=cloud,
            created=timezone.now().isoformat(),
            version=settings.VERSION,
            migrations=[list(name) for name in applied],
        )
        for model in _models(apps):
            columns = [column.attname for column in model._meta.concrete_fields]
            with _member(archive, manifest, f"tables/{model._meta.label}.jsonl") as put:
                count = 0
                rows = model._base_manager.order_by("pk").values_list(*columns)
                for row in rows.iterator(chunk_size=_ROWS):
                    put((json.dumps([_plain(value) for value in row], separators=(",", ":")) + "\n").encode())
                    count += 1
            manifest.members[f"tables/{model._meta.label}.jsonl"] |= {"rows": count, "columns": columns}
    ring = Path(settings.SECRET_KEYS_FILE)
    if passphrase and ring.exists():
        with _member(archive, manifest, KEY_RING) as put:
            put(_seal(ring.read_bytes(), passphrase))
    archive.writestr(MANIFEST, json.dumps({name: getattr(manifest, name) for name in Manifest.__slots__}, indent=1))
    return manifest


@contextmanager
def _snapshot() -> Iterator[None]:
    """Everything that is read inside is of one moment, and nobody waits for it."""
    if connection.in_atomic_block:
        yield
    elif connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("BEGIN")  # not IMMEDIATE, as Django would here: a reader of the WAL hinders no writer
            try:
                yield
            finally:
                cursor.execute("ROLLBACK")
    else:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield


def _models(registry: Any) -> list[Any]:
    found = registry.get_models(include_auto_created=True)
    mine = [model for model in found if model._meta.managed and not model._meta.proxy]
    return [model for model in mine if model._meta.app_label not in _LEFT_OUT]


@contextmanager
def _member(archive: zipfile.ZipFile, manifest: Manifest, name: str) -> Iterator[Callable[[bytes], None]]:
    digest = hashlib.sha256()
    with archive.open(name, "w", force_zip64=True) as member:

        def put(data: bytes) -> None:
            digest.update(data)
            member.write(data)

        yield put
    manifest.members[name] = {"sha256": digest.hexdigest()}


def _plain(value: Any) -> Any:
    """A column's value as JSON holds it; nothing is rounded."""
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, (uuid.UUID, Decimal)):
        return str(value)
    return value


def _seal(ring: bytes, passphrase: str) -> bytes:
    salt = os.urandom(16)
    token = _cipher(passphrase, salt, _SCRYPT).encrypt(ring)
    return json.dumps({"kdf": "scrypt", **_SCRYPT, "salt": base64.b64encode(salt).decode(), "token": token.decode()}).encode()


def _unseal(sealed: bytes, passphrase: str) -> bytes:
    told = json.loads(sealed)
    try:
        return _cipher(passphrase, base64.b64decode(told["salt"]), told).decrypt(told["token"].encode())
    except InvalidToken:
        message = "The passphrase does not open the key ring of this backup."
        raise Invalid(message, remedy="Give the one that the backup was written with.", field="passphrase") from None


def _cipher(passphrase: str, salt: bytes, cost: Mapping[str, int]) -> Fernet:
    key = Scrypt(salt=salt, length=32, n=cost["n"], r=cost["r"], p=cost["p"]).derive(passphrase.encode())
    return Fernet(base64.urlsafe_b64encode(key))


# --- checking --------------------------------------------------------------------------------------------------------------


def verify(path: Path, *, passphrase: str) -> Manifest:
    """Read the whole archive: every member is there with the content that was written. Raises Invalid for what is wrong."""
    with _opened(path) as archive:
        manifest = _manifest(archive)
        for name, told in manifest.members.items():
            digest, lines = hashlib.sha256(), 0
            try:
                with archive.open(name) as member:
                    while block := member.read(1 << 20):
                        digest.update(block)
                        lines += block.count(b"\n")
            except (KeyError, zipfile.BadZipFile, zlib.error, OSError, EOFError):
                raise _damaged(f"{name} cannot be read") from None
            if digest.hexdigest() != told["sha256"] or lines != told.get("rows", lines):
                raise _damaged(f"{name} is not what was written")
        if manifest.has_key_ring and passphrase:
            _unseal(archive.read(KEY_RING), passphrase)
    return manifest


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}.", field="file") from None
    except zipfile.BadZipFile:
        raise _damaged("it is no archive, or was cut off") from None
    with archive:
        yield archive


def _manifest(archive: zipfile.ZipFile) -> Manifest:
    try:
        manifest = Manifest(**json.loads(archive.read(MANIFEST)))
    except (KeyError, ValueError, TypeError, zipfile.BadZipFile, zlib.error):
        raise _damaged("it has no manifest") from None
    if manifest.format != FORMAT:
        message = f"This backup is of format {manifest.format}, and this version reads format {FORMAT}."
        raise Invalid(message, remedy="Restore it with the version that wrote it, then upgrade.", field="file")
    return manifest


def _damaged(why: str) -> Invalid:
    return Invalid(f"This backup is damaged: {why}.", remedy="Use another backup. Nothing was changed.", field="file")


# --- restoring -------------------------------------------------------------------------------------------------------------


def restore(path: Path, *, passphrase: str, inside: Callable[[], None]) -> Manifest:
    """Load an archive into an empty database, which is read-only from the same transaction on; `inside` runs in it too.

    The key ring is put in its place first, and never over another one. May be repeated after any death. Raises Invalid for the
    archive or the passphrase, Conflict where database or key ring are not free; nothing was changed then.
    """
    manifest = verify(path, passphrase=passphrase)
    with _opened(path) as archive:
        ring = _ring_of(archive, manifest, passphrase)
        executor = MigrationExecutor(connection)
        recorded = {(app, name) for app, name in manifest.migrations}
        _refuse_occupied(executor, recorded, manifest)
        if ring is not None:
            _place_ring(ring)
        reach("restore.ring-placed")
        targets = [key for key in recorded if key in executor.loader.graph.nodes and _is_leaf(executor, key, recorded)]
        executor.migrate(targets)
        state = MigrationExecutor(connection).loader.project_state(targets)
        present = set(executor.loader.graph.nodes) == recorded
        with transaction.atomic():
            _load(archive, manifest, state.apps)
            if present:
                begin_anew(inside)
            reach("restore.before-commit")
    reach("restore.loaded")
    if not present:  # an older schema: it is read-only already, and what is new comes before anybody may work
        later = MigrationExecutor(connection)
        later.migrate(later.loader.graph.leaf_nodes())
        begin_anew(inside)
    return manifest


def begin_anew(inside: Callable[[], None]) -> None:
    """Run `inside`, once after a load, which may have died before: until then the database says that it was only loaded."""
    with transaction.atomic():
        if Installation.objects.select_for_update().filter(read_only=LOADED).exists():
            inside()
            Installation.objects.update(read_only=RESTORED)


def _is_leaf(executor: MigrationExecutor, key: tuple[str, str], recorded: set[tuple[str, str]]) -> bool:
    """The last recorded migration of its app."""
    children = executor.loader.graph.node_map[key].children
    return not any(child.key in recorded and child.key[0] == key[0] for child in children)


def _refuse_occupied(executor: MigrationExecutor, recorded: set[tuple[str, str]], manifest: Manifest) -> None:
    unknown = sorted(recorded - set(executor.loader.graph.nodes))
    if unknown:
        message = f"This backup is of a newer version ({manifest.version}): it has the migration {'.'.join(unknown[0])}."
        raise Conflict(message, remedy="Install that version, then restore.", field="file")
    applied = set(MigrationRecorder(connection).applied_migrations()) if connection.introspection.table_names() else set()
    if not applied:
        return
    empty = "Use an empty database: set DATABASE_URL to a new one, or move the file away."
    if ("cloudstorage", "0003_read_only") in applied and Installation.why_read_only():
        message = "This database was restored already, and waits to be compared with the stores."
        raise Conflict(message, remedy="Run: manage.py restore --reconcile", field="database")
    if applied != recorded:
        raise Conflict("The database is of another version than the backup.", remedy=empty, field="database")
    for model in _models(apps):
        if model._meta.label not in _MADE_BY_MIGRATIONS and model._base_manager.exists():
            raise Conflict(
                f"The database is not empty: it has {model._meta.verbose_name_plural}.", remedy=empty, field="database"
            )


def _ring_of(archive: zipfile.ZipFile, manifest: Manifest, passphrase: str) -> bytes | None:
    """The key ring, or None where there is none to place; refuses what would leave the secrets unreadable."""
    if not manifest.has_key_ring:
        return None
    if not passphrase:
        message = "This backup has a key ring, which takes its passphrase."
        raise Invalid(message, remedy="Give --passphrase-file or --passphrase-env.", field="passphrase")
    ring = _unseal(archive.read(KEY_RING), passphrase)
    path = Path(settings.SECRET_KEYS_FILE)
    if path.exists() and not set(ring.split()) <= set(path.read_bytes().split()):
        message = f"There is another key ring at {path}."
        raise Conflict(message, remedy="Move it away, or name another in CLOUDSTORAGE_SECRET_KEYS_FILE.", field="passphrase")
    return ring


def _place_ring(ring: bytes) -> None:
    path = Path(settings.SECRET_KEYS_FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(ring)
        file.flush()
        os.fsync(file.fileno())
    try:
        with suppress(FileExistsError):  # it has all these keys, as was seen
            publish(temporary, path)
    finally:
        temporary.unlink()


def _load(archive: zipfile.ZipFile, manifest: Manifest, registry: Any) -> None:
    found = {model._meta.label: model for model in _models(registry)}
    loaded = [found[name.removeprefix("tables/").removesuffix(".jsonl")] for name in manifest.members if name != KEY_RING]
    for model in reversed(loaded):
        if model._meta.label in _MADE_BY_MIGRATIONS or model._meta.auto_created:
            model._base_manager.all()._raw_delete(connection.alias)
    for model in loaded:
        name = f"tables/{model._meta.label}.jsonl"
        fields = [model._meta.get_field(column) for column in _names(model, manifest.members[name]["columns"])]
        with archive.open(name) as member:
            for rows in _batches(member):
                model._base_manager.bulk_create(_object(model, fields, row) for row in rows)
    found["cloudstorage.Installation"]._base_manager.update(read_only=LOADED)
    statements = connection.ops.sequence_reset_sql(no_style(), loaded)
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def _names(model: Any, columns: list[str]) -> list[str]:
    by_column = {column.attname: column.name for column in model._meta.concrete_fields}
    return [by_column[column] for column in columns]


def _object(model: Any, fields: list[Any], row: list[Any]) -> Any:
    pairs = zip(fields, row, strict=True)
    return model(
        **{kind.attname: value if isinstance(kind, models.JSONField) else kind.to_python(value) for kind, value in pairs}
    )


def _batches(member: IO[bytes]) -> Iterator[list[list[Any]]]:
    batch: list[list[Any]] = []
    for line in member:
        batch.append(json.loads(line))
        if len(batch) == _ROWS:
            yield batch
            batch = []
    if batch:
        yield batch

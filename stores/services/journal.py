"""Makes an object store self-describing: append-only journal objects beside the data say what each object is and how we know.

One JSON line per item: identity, owner, chain, files with size, SHA-256, etag and proof. A line may stand twice (a crash between
the object and the row); readers take the last. Objects of a deleted item are gone, so its lines mean nothing.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from django.db.models import Prefetch
from django.utils import timezone

from cloudstorage.checkpoints import reach
from stores.models import KINDS, ImageStore, Kind
from stores.services.image_stores import driver_for
from stores.states import RefState

FOLDER = ".cs-journal/"
_LINES = 500


def write(store: ImageStore, *, batches: int = 20) -> int:
    """Write what the journal of `store` lacks, at most `batches` objects per kind; returns how many items."""
    written = 0
    for kind, models in KINDS.items():
        for _ in range(batches):
            files = Prefetch("files", queryset=models.file.objects.order_by("path"))
            related = ["item__account", *(["item__parent"] if kind == Kind.SNAPSHOT else [])]
            lacking = models.ref.objects.filter(store=store, state__in=[RefState.READY, RefState.HIDDEN], journalled=False)
            refs = list(lacking.order_by("pk").select_related(*related).prefetch_related(files)[:_LINES])
            if not refs:
                break
            body = "".join(json.dumps(_line(kind, ref), separators=(",", ":")) + "\n" for ref in refs).encode()
            key = f"{FOLDER}{timezone.now():%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:8]}.jsonl"
            driver_for(store).put(key, body, metadata={"cs-kind": "journal"}, token=f"journal-{uuid.uuid4().hex[:8]}")
            reach("journal.written")
            models.ref.objects.filter(pk__in=[ref.pk for ref in refs]).update(journalled=True)
            written += len(refs)
    return written


def _line(kind: Kind, ref: Any) -> dict[str, Any]:
    item = ref.item
    line = {
        "kind": str(kind),
        "uuid": str(item.uuid),
        "name": item.name,
        "account": item.account_id,
        "account_name": item.account.account_name,
        "upstream_id": item.upstream_id,
        "format": item.format,
        "hypervisor": item.hypervisor_type,
        "virtual_size": item.size,
        "install_path": ref.install_path,
        "sha256": ref.sha256,
        "proof": ref.proof,
        "proven_at": ref.proven_at.isoformat() if ref.proven_at else None,
        "files": [
            {
                "path": file.path,
                "size": file.size,
                "sha256": file.sha256,
                "etag": file.etag,
                "proof": file.proof,
                "format": file.format,
                "backing": file.backing,
            }
            for file in ref.files.all()
        ],
    }
    if kind == Kind.TEMPLATE:
        line |= {"unique_name": item.unique_name, "type": item.type, "public": item.public}
    if kind == Kind.SNAPSHOT:
        line |= {"volume": item.volume_upstream_id, "parent": str(item.parent.uuid) if item.parent else None}
    return line

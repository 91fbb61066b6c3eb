"""What the REST API shows of stores, items and transfers: UUIDs, bytes as integers, RFC 3339 times, and never a secret."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from rest_framework import serializers

from cloudstorage.rest.views import Body, Serializer
from stores.layout import MAX_ID
from stores.models import ImageStore, Kind, ScanRun, Snapshot
from stores.services import image_stores
from stores.services.inventory import relative_name
from stores.states import (
    READABLE,
    SCAN_TRANSITIONS,
    STORE_TRANSITIONS,
    RefState,
    Role,
    ScanState,
    StoreState,
    TransferState,
    allowed_events,
)


class Named(Serializer):
    """Something by id and name."""

    id = serializers.UUIDField(source="uuid")
    name = serializers.CharField()


class ZoneView(Named):
    """A zone."""


class ZoneBody(Body):
    """A new zone."""

    name = serializers.CharField(max_length=255)


class AccountView(Serializer):
    """An owner of items."""

    id = serializers.UUIDField(source="uuid")
    upstream_id = serializers.IntegerField(source="pk", help_text="Account id in CloudStack, as it stands in paths on an export.")
    name = serializers.CharField(source="account_name")


class OptionView(Serializer):
    """An option of a driver."""

    name = serializers.CharField()
    label = serializers.CharField()  # type: ignore[assignment]  # the field's name is also an attribute of Serializer
    help = serializers.CharField()
    kind = serializers.ChoiceField(["text", "integer", "boolean", "choice"])
    required = serializers.BooleanField()  # type: ignore[assignment]  # the field's name is also an attribute of Serializer
    secret = serializers.BooleanField(help_text="Write-only: never in any answer.")
    default = serializers.CharField(allow_blank=True)
    choices = serializers.ListField(child=serializers.CharField())


class ProviderView(Serializer):
    """A kind of store."""

    name = serializers.CharField()
    label = serializers.CharField()  # type: ignore[assignment]  # the field's name is also an attribute of Serializer
    scope = serializers.ChoiceField(["ZONE", "REGION"])
    url_help = serializers.CharField()
    options = OptionView(many=True)


class StepView(Serializer):
    """One step of a probe. `unknown`: not allowed to find out, which is not absent."""

    name = serializers.CharField()
    status = serializers.ChoiceField(["ok", "info", "warning", "blocker", "unknown"])
    message = serializers.CharField()
    remedy = serializers.CharField(allow_blank=True)
    facts = serializers.DictField()
    field = serializers.CharField(allow_null=True)
    seconds = serializers.FloatField()


class StepsView(Serializer):
    """A live probe, step by step."""

    usable = serializers.BooleanField(help_text="No step is a blocker.")
    steps = StepView(many=True)


class ReachView(Serializer):
    """Whether a worker reaches a store."""

    worker = serializers.UUIDField(source="worker.uuid")
    ok = serializers.BooleanField()
    error = serializers.CharField(allow_blank=True)
    checked_at = serializers.DateTimeField()


class StoreView(Serializer):
    """A store with what is on it."""

    id = serializers.UUIDField(source="uuid")
    name = serializers.CharField()
    provider = serializers.CharField(source="image_provider_name")
    url = serializers.CharField(allow_blank=True)
    place = serializers.CharField(help_text="What identifies it to a person: an export, or an endpoint and its bucket.")
    zone = Named(allow_null=True)
    scope = serializers.ChoiceField(["ZONE", "REGION"])
    role = serializers.ChoiceField([role.value for role in Role])
    state = serializers.ChoiceField([state.value for state in StoreState])
    allowed = serializers.SerializerMethodField(help_text="Events possible in this state.")
    readonly = serializers.BooleanField()
    read_limit = serializers.IntegerField(allow_null=True, help_text="Bytes per second; null = no limit.")
    created = serializers.DateTimeField()
    total_bytes = serializers.IntegerField(source="total_size", allow_null=True)
    used_bytes = serializers.IntegerField(allow_null=True)
    templates = serializers.IntegerField(help_text="Items Ready there; ISOs are templates.")
    snapshots = serializers.IntegerField()
    volumes = serializers.IntegerField()
    pending = serializers.IntegerField(help_text="Items promised there, not yet in bytes.")
    item_bytes = serializers.IntegerField(source="bytes", help_text="Content of the items that are there.")
    probed_at = serializers.DateTimeField(allow_null=True)
    scanned_at = serializers.DateTimeField(allow_null=True)

    def get_allowed(self, store: ImageStore) -> list[str]:
        """What the state table allows."""
        return list(allowed_events(STORE_TRANSITIONS, StoreState(store.state)))


class StoreDetailView(StoreView):
    """A store with its options (secrets empty), its last probe, and who reaches it."""

    details = serializers.SerializerMethodField(help_text="Options by name; a secret is always empty.")
    secrets_set = serializers.SerializerMethodField(help_text="Names of the secrets that are set.")
    steps = StepView(source="probe_steps", many=True)
    facts = serializers.DictField()
    reach = ReachView(many=True)

    def get_details(self, store: ImageStore) -> dict[str, str]:
        """Without secrets."""
        return image_stores.details_of(store)

    def get_secrets_set(self, store: ImageStore) -> list[str]:
        """Only their names."""
        return sorted(store.details.filter(secret=True).exclude(value="").values_list("name", flat=True))


class DetailsField(serializers.DictField):
    """Driver options by name."""

    child = serializers.CharField(allow_blank=True, trim_whitespace=False)


class PlaceBody(Body):
    """A place to try out."""

    provider = serializers.CharField()
    url = serializers.CharField(required=False, allow_blank=True, default="")
    details = DetailsField(required=False, default=dict, help_text="Options of the provider, see /providers; write-only.")
    zone = serializers.UUIDField(required=False, allow_null=True, default=None)


class StoreBody(PlaceBody):
    """A store to add."""

    name = serializers.CharField(required=False, allow_blank=True, default="")
    role = serializers.ChoiceField([role.value for role in Role], required=False, default=Role.IMAGE.value)


class StorePatch(Body):
    """What to change of a store; what is left out stays."""

    name = serializers.CharField(required=False)
    readonly = serializers.BooleanField(required=False)
    read_limit = serializers.IntegerField(required=False, allow_null=True)
    details = DetailsField(required=False, help_text="Merged into the present ones; an empty secret stays as it is.")


class ScanBody(Body):
    """A scan."""

    catalogue = serializers.DictField(
        required=False, allow_null=True, default=None, help_text="Names, owners and uuids of items."
    )


class ScanView(Serializer):
    """A scan of a store."""

    id = serializers.UUIDField(source="uuid")
    store = Named()
    state = serializers.ChoiceField([state.value for state in ScanState])
    allowed = serializers.SerializerMethodField(help_text="Events possible in this state.")
    actor = serializers.CharField()
    created = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)
    attempts = serializers.IntegerField(help_text="How often a process took it up; more than once when one died.")
    files = serializers.IntegerField(help_text="Files of items seen so far.")
    error = serializers.CharField(allow_blank=True, help_text="Why it failed.")
    remedy = serializers.CharField(allow_blank=True)

    def get_allowed(self, run: ScanRun) -> list[str]:
        """What the state table allows."""
        return list(allowed_events(SCAN_TRANSITIONS, ScanState(run.state)))


class ScanDetailView(ScanView):
    """A scan with its report."""

    report = serializers.DictField(help_text="Empty before it has ended.")


class FileView(Serializer):
    """A file of an item on one store."""

    path = serializers.SerializerMethodField(help_text="Relative to the item: what `content?path=` takes.")
    key = serializers.CharField(source="path", help_text="Where it lies on the store.")
    size = serializers.IntegerField()
    sha256 = serializers.CharField(allow_blank=True)
    etag = serializers.CharField(allow_blank=True)
    proof = serializers.CharField(allow_blank=True)
    format = serializers.CharField(allow_blank=True)
    virtual_size = serializers.IntegerField(allow_null=True)
    backing = serializers.CharField(allow_blank=True)
    problem = serializers.CharField(allow_blank=True)

    def get_path(self, file: Any) -> str:
        """By its ref's install path."""
        return relative_name(file.ref.install_path, file.path)


class RefView(Serializer):
    """An item is, or will be, on a store."""

    store = Named()
    state = serializers.CharField()
    pending = serializers.SerializerMethodField(help_text="Promised there: read from another store until its bytes are proven.")
    proof = serializers.CharField(allow_blank=True)
    size = serializers.IntegerField()

    def get_pending(self, ref: Any) -> bool:
        """Promised."""
        return bool(ref.state == RefState.PROMISED)


class RefDetailView(RefView):
    """A ref with its files and proof."""

    install_path = serializers.CharField(allow_blank=True)
    physical_size = serializers.IntegerField()
    sha256 = serializers.CharField(allow_blank=True)
    proven_at = serializers.DateTimeField(allow_null=True)
    ref_cnt = serializers.IntegerField(help_text="Holds: while above 0, this copy is not evicted.")
    error = serializers.CharField(source="error_str", allow_blank=True)
    files = FileView(many=True)


class ItemView(Serializer):
    """What templates, snapshots and volumes share."""

    id = serializers.UUIDField(source="uuid")
    name = serializers.CharField()
    account = AccountView()
    upstream_id = serializers.IntegerField(allow_null=True)
    format = serializers.CharField(allow_blank=True)
    hypervisor = serializers.CharField(source="hypervisor_type", allow_blank=True)
    virtual_size = serializers.IntegerField(source="size", allow_null=True)
    created = serializers.DateTimeField()
    readable = serializers.SerializerMethodField(help_text="A readable copy is on an attached store.")
    stores = RefView(source="listed_refs", many=True)

    def get_readable(self, item: Any) -> bool:
        """As far as the rows tell."""
        return any(ref.state in READABLE and ref.store.state == StoreState.ATTACHED for ref in item.listed_refs)


class TemplateView(ItemView):
    """A template or ISO."""

    unique_name = serializers.CharField()
    display_text = serializers.CharField(allow_blank=True)
    type = serializers.CharField()
    public = serializers.BooleanField()
    cross_zones = serializers.BooleanField()
    checksum = serializers.CharField(allow_blank=True)
    zones = serializers.SerializerMethodField(help_text="Zones that show it.")

    def get_zones(self, template: Any) -> list[dict[str, str]]:
        """By name."""
        shown = (ref.zone for ref in template.zone_refs.all() if ref.removed is None)
        return [{"id": str(zone.uuid), "name": zone.name} for zone in sorted(shown, key=lambda zone: str(zone.name))]


class VolumeView(ItemView):
    """A volume in secondary storage."""

    zone = Named(allow_null=True)


class SnapshotView(ItemView):
    """A volume's snapshot."""

    zone = Named(allow_null=True)
    volume_upstream_id = serializers.IntegerField(allow_null=True)
    path = serializers.CharField()
    parent = serializers.UUIDField(source="parent.uuid", allow_null=True, default=None)  # type: ignore[assignment]  # the field's name is also an attribute of Serializer
    depth = serializers.IntegerField(help_text="0 for a full snapshot.")


class TemplateDetailView(TemplateView):
    """A template with its copies and their files."""

    stores = RefDetailView(source="listed_refs", many=True)


class VolumeDetailView(VolumeView):
    """A volume with its copies and their files."""

    stores = RefDetailView(source="listed_refs", many=True)


class SnapshotDetailView(SnapshotView):
    """A snapshot with its copies, their files, and its place in the chain."""

    stores = RefDetailView(source="listed_refs", many=True)
    children = serializers.SerializerMethodField(help_text="Snapshots that build on it.")

    def get_children(self, snapshot: Snapshot) -> list[str]:
        """Their ids."""
        return [str(found) for found in snapshot.children.order_by("pk").values_list("uuid", flat=True)]


class DeletedView(Serializer):
    """An item whose bytes wait in the trash of an export."""

    id = serializers.UUIDField(source="uuid")
    name = serializers.CharField()
    account = AccountView()
    format = serializers.CharField(allow_blank=True)
    virtual_size = serializers.IntegerField(source="size", allow_null=True)
    deleted = serializers.DateTimeField(source="removed")
    until = serializers.SerializerMethodField(help_text="When the trash is purged of it.")

    def get_until(self, item: Any) -> datetime:
        """The end of the grace time."""
        until: datetime = item.removed + timedelta(seconds=settings.TRASH_GRACE_SECONDS)
        return until


class EnsureBody(Body):
    """Where an item is wanted."""

    store = serializers.UUIDField(required=False, allow_null=True, default=None, help_text="Default: the region's object store.")


class UploadQuery(Body):
    """What a new item is, beside its bytes."""

    name = serializers.CharField(max_length=255)
    filename = serializers.CharField(max_length=200, help_text="Name of the image; its ending tells the format.")
    account = serializers.UUIDField(help_text="Id of its owner.")
    zone = serializers.UUIDField(required=False, allow_null=True, default=None, help_text="Default: the region.")
    sha256 = serializers.CharField(required=False, default="", help_text="Of the body; another one is refused.")
    unique_name = serializers.CharField(required=False, default="", max_length=255, help_text="Of a template.")
    display_text = serializers.CharField(required=False, default="", max_length=4096, help_text="Of a template.")
    public = serializers.BooleanField(required=False, default=False, help_text="Of a template.")
    volume_upstream_id = serializers.IntegerField(
        required=False,
        allow_null=True,
        default=None,
        min_value=0,
        max_value=MAX_ID,
        help_text="Of a snapshot: the volume's id in CloudStack.",
    )
    parent = serializers.UUIDField(
        required=False, allow_null=True, default=None, help_text="Of a snapshot: the one that it builds on."
    )  # type: ignore[assignment]  # the field's name is also an attribute of Serializer


class WorkerView(Serializer):
    """A worker and what it reaches."""

    id = serializers.UUIDField(source="uuid")
    hostname = serializers.CharField()
    pid = serializers.IntegerField()
    os_user = serializers.CharField(allow_blank=True)
    version = serializers.CharField(allow_blank=True)
    started = serializers.DateTimeField()
    heartbeat = serializers.DateTimeField()
    stopped = serializers.DateTimeField(allow_null=True)
    reach = serializers.SerializerMethodField()

    def get_reach(self, worker: Any) -> list[dict[str, Any]]:
        """Store by store."""
        return [
            {"store": str(row.store.uuid), "name": row.store.name, "ok": row.ok, "error": row.error, "checked_at": row.checked_at}
            for row in worker.reach.all()
        ]


class TransferView(Serializer):
    """The copying of one item."""

    id = serializers.UUIDField(source="uuid")
    kind = serializers.ChoiceField([kind.value for kind in Kind])
    item = serializers.SerializerMethodField(help_text="Id and name.")
    source = Named()  # type: ignore[assignment]  # the field's name is also an attribute of Serializer
    target = Named()
    batch = serializers.UUIDField(source="batch.uuid", allow_null=True, default=None)
    parent = serializers.UUIDField(source="parent.uuid", allow_null=True, default=None)  # type: ignore[assignment]  # the field's name is also an attribute of Serializer
    on_demand = serializers.SerializerMethodField()
    canary = serializers.BooleanField()
    state = serializers.ChoiceField([state.value for state in TransferState])
    attempts = serializers.IntegerField()
    next_attempt_at = serializers.DateTimeField()
    worker = serializers.UUIDField(source="worker.uuid", allow_null=True, default=None)
    bytes_total = serializers.IntegerField()
    bytes_done = serializers.IntegerField()
    proof = serializers.CharField(allow_blank=True)
    error_cause = serializers.CharField(allow_blank=True)
    error = serializers.CharField(allow_blank=True)
    remedy = serializers.CharField(allow_blank=True)
    created = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    progress_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)

    def get_item(self, transfer: Any) -> dict[str, str] | None:
        """Read for the whole page at once."""
        found: dict[str, str] | None = self.context["items"].get((transfer.kind, transfer.item_id))
        return found

    def get_on_demand(self, transfer: Any) -> bool:
        """Ahead of the background."""
        return bool(transfer.priority == 0)


class HappeningView(Serializer):
    """One thing that happened to an item, or was done to it."""

    at = serializers.DateTimeField()
    what = serializers.CharField()
    words = serializers.CharField(allow_blank=True)
    store = serializers.CharField(allow_blank=True, help_text="Name of the store, or from where to where.")
    worker = serializers.CharField(allow_blank=True)
    actor = serializers.CharField(allow_blank=True, help_text="Who did it; for auditors.")
    outcome = serializers.ChoiceField(["done", "failed", "refused"])
    remedy = serializers.CharField(allow_blank=True)


class HistoryView(Serializer):
    """What happened to an item, newest first."""

    results = HappeningView(many=True)
    before = serializers.DateTimeField(allow_null=True, help_text="Ask with this for what is older; null where there is nothing.")


class HistoryQuery(Body):
    """Which part of a history is wanted."""

    before = serializers.DateTimeField(required=False, allow_null=True, default=None, help_text="Only what is older.")
    limit = serializers.IntegerField(required=False, default=50, min_value=1, max_value=200)

"""What the REST API shows of preflights, conversions, drains and verifications."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from cloudstorage.rest.views import Body, Serializer
from migration.bottleneck import CAUSES
from migration.models import Conversion, Drain, Verification
from migration.rules import DEFAULT, VERIFICATIONS, of_drain
from migration.states import (
    CONVERSION_TRANSITIONS,
    DRAIN_TRANSITIONS,
    ConversionState,
    DrainState,
    VerificationState,
)
from stores.api.serializers import DetailsField, Named
from stores.models import Kind
from stores.services.transfers import Order
from stores.services.windows import schedule
from stores.states import allowed_events


class PreflightView(Serializer):
    """A preflight; `finished` is null until it has ended."""

    id = serializers.UUIDField(source="uuid")
    created = serializers.DateTimeField()
    finished = serializers.DateTimeField(allow_null=True)
    actor = serializers.CharField()
    name = serializers.CharField(allow_blank=True)
    provider = serializers.CharField()
    url = serializers.CharField(allow_blank=True)
    blockers = serializers.IntegerField()
    warnings = serializers.IntegerField()
    error = serializers.CharField(allow_blank=True, help_text="Why it ended without a report.")


class PreflightDetailView(PreflightView):
    """A preflight with its report."""

    report = serializers.DictField(help_text="zones, findings, object_store, requests, time, not_checked; empty until it ended.")


class ObjectStoreBody(Body):
    """CloudStack's parameters of updateCloudToUseObjectStore."""

    provider = serializers.CharField()
    name = serializers.CharField(required=False, allow_blank=True, default="", help_text="Default: the url.")
    url = serializers.CharField(required=False, allow_blank=True, default="")
    details = DetailsField(required=False, default=dict, help_text="Options of the provider, see /providers; write-only.")


class PreflightBody(ObjectStoreBody):
    """A preflight to run."""

    wait = serializers.BooleanField(required=False, default=False, help_text="Answer when it has ended (201), not at once (202).")


class ConversionBody(Body):
    """A conversion. With `preflight` alone, everything is as that preflight was given it."""

    provider = serializers.CharField(required=False, allow_blank=True, default="")
    name = serializers.CharField(required=False, allow_blank=True, default="")
    url = serializers.CharField(required=False, allow_blank=True, default="")
    details = DetailsField(required=False, default=dict, help_text="Options of the provider, see /providers; write-only.")
    preflight = serializers.UUIDField(required=False, allow_null=True, default=None, help_text="Default: the newest that fits.")
    override = serializers.ListField(
        child=serializers.CharField(), required=False, default=list, help_text="Codes of blockers that are accepted."
    )
    dry_run = serializers.BooleanField(required=False, default=False, help_text="Answer with the plan (200); nothing is changed.")


class FormerStoreView(Serializer):
    """A store as it was before the conversion."""

    store = Named()
    former_role = serializers.CharField()
    former_readonly = serializers.BooleanField()


class ConversionView(Serializer):
    """The switch of the region to an object store."""

    id = serializers.UUIDField(source="uuid")
    state = serializers.ChoiceField([state.value for state in ConversionState])
    allowed = serializers.SerializerMethodField(help_text="Events possible in this state.")
    object_store = Named()
    preflight = serializers.UUIDField(source="preflight.uuid", allow_null=True, default=None)
    actor = serializers.CharField()
    converted_at = serializers.DateTimeField()
    ended_at = serializers.DateTimeField(allow_null=True)
    overrides = serializers.ListField(child=serializers.CharField())
    counts = serializers.DictField(help_text="Promised and counted refs by kind, and the seconds that the transaction took.")
    stores = FormerStoreView(many=True)

    def get_allowed(self, conversion: Conversion) -> list[str]:
        """What the state table allows."""
        return list(allowed_events(CONVERSION_TRANSITIONS, ConversionState(conversion.state)))


_WINDOW = "When it may run: 22:00-06:00, or Mon-Fri 22:00-06:00; Sat,Sun 00:00-24:00. Empty = always."
_TIME_ZONE = "Of the windows, which go by the clock on the wall there: Europe/Berlin. Empty = the installation's."
_ZONES = "Ids or names: only what has a copy in one of them, and the snapshots that it builds on. Empty = all."


class RulesView(Serializer):
    """What a drain moves and how, from its plan to its end."""

    zones = serializers.ListField(child=serializers.CharField(), help_text="Names; empty = all.")
    kinds = serializers.ListField(child=serializers.ChoiceField(list(Kind)), help_text="Empty = all.")
    order = serializers.ChoiceField(list(Order))
    verification = serializers.ChoiceField(list(VERIFICATIONS), help_text="What makes a copy count as proven.")
    canary_items = serializers.IntegerField()

    def to_representation(self, instance: Drain) -> dict[str, Any]:
        """As they were planned."""
        return of_drain(instance).fixed()


class DrainView(Serializer):
    """Moving every item off the staging stores."""

    id = serializers.UUIDField(source="uuid")
    name = serializers.CharField(source="batch.name")
    batch = serializers.UUIDField(source="batch.uuid", help_text="For /transfers?batch=…")
    conversion = serializers.UUIDField(source="conversion.uuid")
    object_store = Named(source="conversion.object_store")
    state = serializers.ChoiceField([state.value for state in DrainState])
    allowed_actions = serializers.SerializerMethodField(help_text="Events possible in this state.")
    note = serializers.CharField(allow_blank=True, help_text="Why it is in this state.")
    actor = serializers.CharField()
    created = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)
    canary_proven_at = serializers.DateTimeField(allow_null=True)
    concurrency = serializers.IntegerField(source="batch.concurrency", help_text="Items under way at once.")
    bandwidth = serializers.IntegerField(
        source="batch.bandwidth", allow_null=True, help_text="Bytes per second; null = no limit."
    )
    window = serializers.CharField(source="batch.window", allow_blank=True, help_text=_WINDOW)
    time_zone = serializers.SerializerMethodField(help_text="By whose clock the windows go; empty where there are none.")
    rules = RulesView(source="*")

    def get_allowed_actions(self, drain: Drain) -> list[str]:
        """What the state table allows."""
        return list(allowed_events(DRAIN_TRANSITIONS, DrainState(drain.state)))

    def get_time_zone(self, drain: Drain) -> str:
        """The installation's where none was given."""
        window = drain.batch.window
        return schedule(window, drain.batch.time_zone).zone.key if window else ""


class ErrorView(Serializer):
    """Failures and pending retries of one cause."""

    cause = serializers.CharField()
    count = serializers.IntegerField()
    failed = serializers.BooleanField(help_text="They wait for a person; else they are tried again by themselves.")
    example = serializers.CharField()
    remedy = serializers.CharField(allow_blank=True)


class BottleneckView(Serializer):
    """What holds a drain up, how that is known, and what can be done about it."""

    cause = serializers.ChoiceField(CAUSES)
    words = serializers.CharField()
    why = serializers.CharField(allow_blank=True)
    remedy = serializers.CharField(allow_blank=True)
    shares = serializers.DictField(
        child=serializers.FloatField(),
        help_text="Of the time that copies took in the last minute, by cause; empty if not measured.",
    )


class HoursView(Serializer):
    """Time windows as they stand at this moment."""

    words = serializers.CharField(help_text="With their time zone.")
    opens = serializers.DateTimeField(allow_null=True, help_text="When they are closed now; null while they are open.")
    when = serializers.CharField(allow_blank=True, help_text="The same by the windows' own clock.")


class ProgressView(Serializer):
    """How far a drain is. Bytes proven, copied (not proven yet) and remaining add up to total."""

    items = serializers.DictField(child=serializers.IntegerField(), help_text="By state, and `total`.")
    bytes = serializers.DictField(child=serializers.IntegerField(), help_text="total, proven, copied, remaining.")
    percent = serializers.FloatField(help_text="Of the bytes, proven.")
    rate = serializers.FloatField(help_text="Bytes per second over the last minute.")
    eta_low = serializers.FloatField(allow_null=True, help_text="Seconds; null where nothing moves.")
    eta_high = serializers.FloatField(allow_null=True)
    bottleneck = BottleneckView(allow_null=True, help_text="What holds it up now; null while it does not run.")
    window = HoursView(allow_null=True, help_text="When it may run; null where it may always, or has ended.")
    zones = serializers.ListField(child=serializers.DictField())
    running = serializers.ListField(child=serializers.DictField(), help_text="Copies under way, the longest silent first.")
    errors = ErrorView(many=True)  # type: ignore[assignment]  # the field's name is also an attribute of Serializer


class DrainDetailView(DrainView):
    """A drain with its progress."""

    progress = ProgressView()


class SampleView(Serializer):
    """A point of a drain's history."""

    at = serializers.DateTimeField()
    items_proven = serializers.IntegerField()
    bytes_proven = serializers.IntegerField()
    bytes_copied = serializers.IntegerField()
    running = serializers.IntegerField()
    rate = serializers.FloatField(help_text="Bytes per second since the point before.")


class DrainBody(Body):
    """A drain to plan; nothing moves before it is started."""

    conversion = serializers.UUIDField(required=False, allow_null=True, default=None, help_text="Default: the open one.")
    name = serializers.CharField(required=False, allow_blank=True, default="")
    zones = serializers.ListField(child=serializers.CharField(), required=False, default=list, help_text=_ZONES)
    kinds = serializers.ListField(
        child=serializers.ChoiceField(list(Kind)), required=False, default=list, help_text="Empty = all."
    )
    order = serializers.ChoiceField(list(Order), required=False, default=str(DEFAULT.order))
    verification = serializers.ChoiceField(list(VERIFICATIONS), required=False, default=DEFAULT.verification)
    canary_items = serializers.IntegerField(required=False, default=DEFAULT.canary_items, min_value=0)
    concurrency = serializers.IntegerField(required=False, default=DEFAULT.concurrency)
    bandwidth = serializers.IntegerField(required=False, allow_null=True, default=None, help_text="Bytes per second.")
    window = serializers.CharField(required=False, allow_blank=True, default="", help_text=_WINDOW)
    time_zone = serializers.CharField(required=False, allow_blank=True, default="", help_text=_TIME_ZONE)
    start = serializers.BooleanField(required=False, default=False, help_text="Start it at once.")


class LimitsBody(Body):
    """Limits to change; what is left out stays. They bite within one part."""

    concurrency = serializers.IntegerField(required=False)
    bandwidth = serializers.IntegerField(required=False, allow_null=True)
    window = serializers.CharField(required=False, allow_blank=True, help_text=_WINDOW)
    time_zone = serializers.CharField(required=False, allow_blank=True, help_text=_TIME_ZONE)
    read_limits = serializers.DictField(
        child=serializers.IntegerField(allow_null=True), required=False, help_text="Bytes per second by id of a source store."
    )


class RetryBody(Body):
    """What is to be tried again."""

    causes = serializers.ListField(
        child=serializers.CharField(),
        required=False,
        default=list,
        help_text="As `/errors` names them; default: whatever failed.",
    )


class VerifyBody(Body):
    """A check of a store."""

    sample_percent = serializers.FloatField(required=False, default=100)
    mode = serializers.ChoiceField([Verification.CONTENT, Verification.LISTING], required=False, default=Verification.CONTENT)


class VerificationView(Serializer):
    """A check of what a store really has."""

    id = serializers.UUIDField(source="uuid")
    store = Named()
    state = serializers.ChoiceField([state.value for state in VerificationState])
    mode = serializers.ChoiceField([Verification.CONTENT, Verification.LISTING, Verification.RETIRE])
    actor = serializers.CharField()
    sample_percent = serializers.FloatField()
    created = serializers.DateTimeField()
    finished_at = serializers.DateTimeField(allow_null=True)
    items_checked = serializers.IntegerField()
    bytes_checked = serializers.IntegerField()
    findings_count = serializers.IntegerField()
    note = serializers.CharField(help_text="What it waits for, and what is to be done; empty if nothing is in its way.")


class VerificationDetailView(VerificationView):
    """A check with what it found."""

    findings = serializers.ListField(child=serializers.DictField(), help_text="The first thousand.")


class RetriedView(Serializer):
    """How many are tried again."""

    count = serializers.IntegerField()


def progress_of(found: Any) -> dict[str, Any]:
    """A `drain.Progress` as `ProgressView` takes it."""
    names = ("items", "bytes", "percent", "rate", "eta_low", "eta_high", "bottleneck", "window", "zones", "running", "errors")
    return {name: getattr(found, name) for name in names}

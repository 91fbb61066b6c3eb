"""The stores' part of the console: change lists of the small tables, and pages of stores, items and work."""

from __future__ import annotations

from django.contrib import admin

from cloudstorage.actors import ActorRole
from cloudstorage.console.pages import entry
from cloudstorage.console.site import ReadOnlyAdmin
from stores.admin import items, scans, stores, work
from stores.models import Account, Zone
from stores.states import Kind

__all__ = ["AccountAdmin", "ZoneAdmin", "items", "scans", "stores", "work"]

entry(10, "Storage", "Secondary Storage", "store_list", "store")
entry(11, "Storage", "Staging Store", "staging_list", "stage")
entry(12, "Storage", "Zones", "stores_zone_changelist", "zone")
entry(13, "Storage", "Accounts", "stores_account_changelist", "people")
for order, kind in enumerate(Kind):
    entry(20 + order, "Items", f"{kind.capitalize()}s", "item_list", kind.value, arguments=(kind.value,))
entry(35, "Work", "Transfers", "transfer_list", "transfer")
entry(36, "Work", "Scans", "scan_list", "scan")
entry(37, "Work", "Workers", "worker_list", "worker")


@admin.register(Zone)
class ZoneAdmin(ReadOnlyAdmin):
    add = ("Add a zone", "zone_add", ActorRole.STORAGE_ADMIN)
    empty = "No zone yet. NFS stores belong to a zone of the cloud, so a zone is the first thing to add."
    list_display = ("name", "uuid")
    search_fields = ("name",)


@admin.register(Account)
class AccountAdmin(ReadOnlyAdmin):
    empty = "No account is known. Accounts appear when a scan finds what belongs to them, or when the cloud registers an item."
    list_display = ("id", "account_name", "uuid")
    search_fields = ("account_name",)

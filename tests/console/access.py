"""Who may look at and who may change what: every address of the console, and how to reach it in the tests' cloud."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.urls import get_resolver, reverse
from django.urls.resolvers import URLResolver

NOBODY: frozenset[str] = frozenset()
EVERYONE = frozenset({"viewer", "operator", "storage-admin", "auditor"})
OPERATORS = frozenset({"operator", "storage-admin"})
ADMINS = frozenset({"storage-admin"})
OWNERS = frozenset({"viewer", "storage-admin"})
"""Of the tests' token, which is the viewer's; for others there is none."""
HIDDEN = {"token_revoke"}
"""What those who may not see it are told not to be there."""

LOOK: dict[str, frozenset[str]] = {
    "index": EVERYONE, "store_list": EVERYONE, "staging_list": EVERYONE, "store": EVERYONE, "item_list": EVERYONE, "item": EVERYONE,
    "item_deleted": EVERYONE,
    "staging": EVERYONE, "transfer_list": EVERYONE, "worker_list": EVERYONE, "migration_list": EVERYONE, "conversion": EVERYONE, "drain": EVERYONE,
    "drain_live": EVERYONE, "preflight_list": EVERYONE, "preflight": EVERYONE, "verification_list": EVERYONE,
    "verification": EVERYONE, "scan_list": EVERYONE, "scan": EVERYONE, "token_list": EVERYONE, "token_add": EVERYONE,
    "token_revoke": OWNERS, "audit_list": frozenset({"auditor"}), "store_add": ADMINS, "store_edit": ADMINS, "store_remove": ADMINS, "zone_add": ADMINS,
    "user_add": ADMINS, "user_edit": ADMINS, "wizard": ADMINS, "rules": ADMINS, "review": ADMINS, "setting_list": ADMINS,
    "retirement_list": EVERYONE, "retirement": EVERYONE, "retirement_report": EVERYONE, "retire": ADMINS, "retirement_files": ADMINS,
    "retirement_cancel": ADMINS, "item_delete": ADMINS, "drain_plan": OPERATORS, "drain_cancel": OPERATORS, "drain_limits": OPERATORS, "verify": OPERATORS,
    "commit": EVERYONE, "rollback": EVERYONE, "rollback_abandon": ADMINS,
    "rest_list": EVERYONE, "rest_operation": EVERYONE,
    "preferences": EVERYONE, "password_change": EVERYONE, "password_change_done": EVERYONE, "stores_zone_changelist": EVERYONE,
    "stores_account_changelist": EVERYONE, "auth_user_changelist": ADMINS,
}  # fmt: skip
"""Pages, and who sees them."""

SEND: dict[str, frozenset[str]] = {
    "store_test": OPERATORS, "scan_cancel": OPERATORS, "store_scan": OPERATORS, "store_readonly": ADMINS, "item_ensure": OPERATORS,
    "item_undelete": ADMINS, "items_ensure": OPERATORS, "items_delete": ADMINS, "transfer_retry": OPERATORS,
    "drain_start": OPERATORS, "drain_pause": OPERATORS, "drain_resume": OPERATORS, "drain_retry": OPERATORS,
    "preferences": EVERYONE, "token_revoke": OWNERS, "filter_save": EVERYONE, "filter_delete": EVERYONE, "rollback_retry": ADMINS, "retirement_acknowledge": ADMINS, "retirement_look_again": ADMINS,
    "retirement_cancel": ADMINS,
    "token_add": EVERYONE, "store_add": ADMINS, "store_edit": ADMINS, "store_remove": ADMINS, "zone_add": ADMINS, "user_add": ADMINS, "user_edit": ADMINS,
    "wizard": ADMINS, "wizard_discard": ADMINS, "rules": ADMINS, "review": ADMINS, "retire": ADMINS, "retirement_files": ADMINS, "item_delete": ADMINS,
    "drain_plan": OPERATORS, "drain_cancel": OPERATORS, "drain_limits": OPERATORS, "verify": OPERATORS,
    "commit": ADMINS, "rollback": ADMINS, "rollback_abandon": ADMINS, "password_change": EVERYONE,
}  # fmt: skip
"""Buttons and forms, and who may send them. What is not in LOOK is a button, and no page."""

OF_THE_ADMIN: dict[str, frozenset[str]] = {
    "jsi18n": EVERYONE,
    "autocomplete": NOBODY,
    "app_list": EVERYONE,
}
"""What Django's admin brings with it, to look at: nothing of it changes anything."""

ELSEWHERE = {"login", "logout", "view_on_site", "(?P<url>.*)$", "healthz", "readyz", "metrics"}
"""Addresses that have tests of their own, in test_access and tests/api/test_monitoring."""


def every_address(resolver: Any = None, prefix: str = "") -> Iterator[str]:
    """The name of each address outside of the REST API, and the route of those that have none."""
    for entry in (resolver or get_resolver()).url_patterns:
        route = prefix + str(entry.pattern)
        if isinstance(entry, URLResolver):
            if not route.startswith("api/"):
                yield from every_address(entry, route)
        else:
            yield entry.name or route


def address(cloud: Any, name: str) -> str:
    """Where in the tests' cloud the address of that name is; for a detail page that of an object which is there."""
    return reverse(f"console:{name}", args=cloud.arguments(name))

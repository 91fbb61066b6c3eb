"""The migration's part of the console: overview, wizard, conversions, the live page of a drain, verifications, retirements."""

from __future__ import annotations

from cloudstorage.console.pages import entry
from migration.admin import conversions, drains, overview, retirements, staging, undo, verifications, wizard

__all__ = ["conversions", "drains", "overview", "retirements", "staging", "undo", "verifications", "wizard"]

entry(0, "", "Overview", "index", "overview")
entry(30, "Work", "Migration", "migration_list", "migrate")
entry(31, "Work", "Verifications", "verification_list", "verify")
entry(32, "Work", "Retirements", "retirement_list", "stage")

"""Reads what lies on a store into the rows, and reports how both have drifted apart since the last time."""

from stores.services.scan.report import Findings, ScanReport
from stores.services.scan.run import perform
from stores.services.scan.runs import cancel_scan, free_abandoned, live_scan, request_scan, scan_store, take_waiting

__all__ = [
    "Findings",
    "ScanReport",
    "cancel_scan",
    "free_abandoned",
    "live_scan",
    "perform",
    "request_scan",
    "scan_store",
    "take_waiting",
]

"""Reads what lies on a store into the rows, and reports how both have drifted apart since the last time."""

from stores.services.scan.report import Findings, ScanReport
from stores.services.scan.run import scan_store

__all__ = ["Findings", "ScanReport", "scan_store"]

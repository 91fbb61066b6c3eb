"""Runs inside the servers' virtual environment: builds Swift's rings and runs one Swift server with its own swift.conf.

Swift reads /etc/swift/swift.conf while it is imported (limits, storage policies); a `swift_dir` in a server's own
configuration comes too late for those. So the path is put in place before anything else of Swift is imported.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path


def build_rings(swift_dir: str, ports: dict[str, int]) -> None:
    """One device on this machine per ring; everything is stored once."""
    from swift.common.ring import RingBuilder

    for kind, port in ports.items():
        builder = RingBuilder(part_power=4, replicas=1, min_part_hours=1)
        address = {"ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", "replication_port": port}
        builder.add_dev({"id": 0, "region": 1, "zone": 1, "device": "d1", "weight": 1.0, "meta": "", **address})
        builder.rebalance()
        builder.get_ring().save(str(Path(swift_dir) / f"{kind}.ring.gz"))


def main() -> None:
    command, swift_dir, *arguments = sys.argv[1:]
    from swift.common import utils

    utils.set_swift_dir(swift_dir)
    if command == "rings":
        build_rings(swift_dir, {kind: int(port) for kind, port in (pair.split("=") for pair in arguments)})
        return
    # Swift's servers would leave the process group by which ProcessGroup freezes and kills them.
    os.setsid = lambda: None
    sys.argv = [f"swift-{command}", str(Path(swift_dir) / f"{command}.conf"), "--verbose"]
    package = {"proxy-server": "proxy", "account-server": "account", "container-server": "container"}
    import_module(f"swift.{package.get(command, 'obj')}.server").main()


if __name__ == "__main__":
    main()

"""Runs inside the servers' virtual environment: `keystone-manage` with each command line given, then Keystone on a loopback port.

All in forks of one process: to import Keystone takes most of what each of them does.
"""

from __future__ import annotations

import json
import os
import sys
import traceback


def main() -> None:
    port, commands = int(sys.argv[1]), sys.argv[2:]
    # Keystone reads the command line as its own when it is imported: ours must be gone by then.
    del sys.argv[1:]
    from keystone.cmd import cli

    for command in commands:
        _run(cli.main, ["keystone-manage", *json.loads(command)])
    from keystone.wsgi.api import application
    from waitress import serve

    # Two threads: SQLite has one writer, and a test's requests are short.
    serve(application, host="127.0.0.1", port=port, threads=2)


def _run(manage, words) -> None:
    child = os.fork()
    if not child:
        try:
            manage(argv=words)
        except BaseException:  # even a SystemExit: a fork must never go on in what its parent was doing
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"{' '.join(words)} failed")


if __name__ == "__main__":
    main()

"""Runs inside the servers' virtual environment: serves Keystone on the given loopback port."""

from __future__ import annotations

import sys


def main() -> None:
    port = int(sys.argv.pop())
    # Keystone reads the command line as its own when it is imported: the port must be gone by then.
    from keystone.wsgi.api import application
    from waitress import serve

    # Two threads: SQLite has one writer, and a test's requests are short.
    serve(application, host="127.0.0.1", port=port, threads=2)


if __name__ == "__main__":
    main()

"""What a queue cluster's processes share stays shared: they never collect garbage among what was loaded before they forked."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

CLUSTER = """
import gc, os, sys
sys.argv = ["manage.py", "worker_queue"]
import django
django.setup()
loaded = len(gc.get_objects())
pid = os.fork()
if not pid:
    os._exit(0 if gc.get_freeze_count() > 0.9 * loaded and len(gc.get_objects()) < 0.1 * loaded else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_forks_of_a_cluster_leave_what_was_loaded_before_alone() -> None:
    done = subprocess.run([sys.executable, "-c", CLUSTER], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr

"""The bench works at all: one round of a few files, ours beside a peer, on the servers that other tests use too."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.bench.figures import compared
from tests.bench.ground import Bench, swift_target
from tests.bench.moving import beside
from tests.bench.peers import swift_upload
from tests.crash.machine import state_of, wait_for

pytestmark = pytest.mark.live


def test_a_round_measures_both_sides_and_leaves_nothing_behind(swift_server, postgres_server):
    said = []
    with Bench(swift=swift_server, postgres=postgres_server) as bench:
        folder = bench.folder
        dataset = bench.dataset("few", 3, 4096)
        ((ours, peer),) = beside(bench, dataset, swift_target, [swift_upload], 1, said.append)
    assert (dataset.files, dataset.size) == (3, 3 * 4096)
    assert ours.proof in {"verified", "attested", "read-back"}
    assert min(ours.seconds, ours.cpu, ours.database_cpu, peer.seconds, peer.cpu) > 0
    assert len(said) == 2
    assert compared("few", "files", ">= 1.0", [(3 / ours.seconds, 3 / peer.seconds)]).met == "inconclusive"
    assert not folder.exists()


_KILLED = """
import os, subprocess, sys
from pathlib import Path
from tests.bench.ground import cleaned_up
with cleaned_up(*map(Path, sys.argv[1:])):
    print(subprocess.Popen(["sleep", "600"], env=os.environ | {"KNOWS": sys.argv[1] + "/data"}).pid, flush=True)
    os.kill(os.getpid(), 9)
"""


def test_a_bench_that_is_killed_leaves_neither_processes_nor_folders_behind(tmp_path):
    folders = [tmp_path / "disk", tmp_path / "memory"]
    for folder in folders:
        (folder / "data").mkdir(parents=True)
    command = [sys.executable, "-c", _KILLED, *map(str, folders)]
    ended = subprocess.run(command, env=os.environ, check=False, capture_output=True, text=True)
    assert ended.returncode == -9, ended.stderr
    wait_for(lambda: state_of(int(ended.stdout)) in "XZ", "what the bench had started to end")
    wait_for(lambda: not any(folder.exists() for folder in folders), "the folders to go")

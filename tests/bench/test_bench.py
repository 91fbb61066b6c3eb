"""The bench works at all: one round of a few files, ours beside a peer, on the servers that other tests use too."""

from __future__ import annotations

import pytest

from tests.bench.figures import compared
from tests.bench.ground import Bench, swift_target
from tests.bench.moving import beside
from tests.bench.peers import swift_upload

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

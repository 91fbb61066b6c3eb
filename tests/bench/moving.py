"""The rows that move data: ours beside the peers, round by round, on the same server and files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench.figures import Row, absolute, compared
from tests.bench.ground import (
    Bench,
    Dataset,
    MiB,
    Run,
    Target,
    converted_region,
    drain,
    s3_target,
    swift_target,
    workers_up,
)
from tests.bench.peers import PEER_FOLDER, rclone_s3, rclone_swift, swift_upload

Peer = Callable[[Bench, Dataset, str], Run]


@dataclass(frozen=True)
class Data:
    """A data set at a scale: `--scale` shrinks the number of files, or their size where there are few."""

    name: str
    count: int
    size: int
    data_every: int = 1

    def make(self, bench: Bench, scale: float) -> Dataset:
        count, size = (max(1, int(self.count * scale)), self.size) if self.count > 10 else (self.count, int(self.size * scale))
        return bench.dataset(self.name, count, max(4096, size), data_every=self.data_every)


LARGE = Data("large", 4, 256 * MiB)
SMALL = Data("small", 1000, MiB)
TINY = Data("tiny", 2000, 4096)
SPARSE = Data("sparse", 1, 4096 * MiB, data_every=10)


def ours(bench: Bench, dataset: Dataset, target: Target, *, memory: bool = False) -> Run:
    """One drain by default settings, its workers up before."""
    with (
        converted_region(bench, dataset, target) as (database, environment, control),
        workers_up(bench, database, environment) as machines,
    ):
        return drain(bench, database, control, machines, memory=memory)


def beside(
    bench: Bench,
    dataset: Dataset,
    make_target: Callable[[Bench], Target],
    peers: Sequence[Peer],
    rounds: int,
    say: Callable[[str], None],
    *,
    memory: bool = False,
) -> list[tuple[Run, Run]]:
    """(ours, the fastest peer) of each round; whoever was first in one round is last in the next."""
    found = []
    for number in range(rounds):
        sides: list[Peer | None] = [None, *peers]
        runs: dict[Peer | None, Run] = {}
        for side in sides if number % 2 == 0 else sides[::-1]:
            if side is None:
                target = make_target(bench)
                bucket, part = target.bucket, "volumes/"
                runs[side] = ours(bench, dataset, target, memory=memory)
            else:
                bucket, part = bench.new_bucket(), f"{PEER_FOLDER}/"
                runs[side] = side(bench, dataset, bucket)
            stored = bench.stored(bucket, part)
            bench.wipe()
            if stored != (dataset.files, dataset.size):
                raise RuntimeError(f"{side or 'ours'}: {stored} is stored, not {(dataset.files, dataset.size)}")
            run, name = runs[side], getattr(side, "__name__", "ours")
            say(
                f"  {dataset.name} {number + 1}/{rounds} {name:13} {run.seconds:7.2f} s {dataset.mib / run.seconds:8.1f} MiB/s"
                f"  CPU {run.cpu:6.2f} s  database {run.database_cpu:5.2f} s  {run.proof}"
            )
        best = min((runs[peer] for peer in peers), key=lambda run: run.seconds)
        found.append((runs[None], best))
    return found


def _proof(pairs: Sequence[tuple[Run, Run]]) -> str:
    return ", ".join(sorted({mine.proof for mine, _ in pairs}))


def _throughput(row: str, what: str, bar: str, dataset: Dataset, pairs: Sequence[tuple[Run, Run]], per: float) -> Row:
    figures = [(per / mine.seconds, per / peer.seconds) for mine, peer in pairs]
    return compared(row, f"{what}; proof: {_proof(pairs)}", bar, figures)


def _cpu(row: str, what: str, bar: str, pairs: Sequence[tuple[Run, Run]]) -> Row:
    database = median(mine.database_cpu for mine, _ in pairs)
    told = f"{what}; our database {database:.1f} s beside it; proof: {_proof(pairs)}"
    return compared(row, told, bar, [(mine.cpu, peer.cpu) for mine, peer in pairs])


def s3(data: Data, row: str, what: str, faster: str, cheaper: str) -> Callable[..., list[Row]]:
    def run(bench: Bench, rounds: int, scale: float, say: Callable[[str], None]) -> list[Row]:
        dataset = data.make(bench, scale)
        pairs = beside(bench, dataset, s3_target, [rclone_s3], rounds, say)
        return [
            _throughput(row, f"{what} to S3, MiB/s against rclone", faster, dataset, pairs, dataset.mib),
            _cpu(f"{row}-cpu", f"{what} to S3, client CPU s against rclone", cheaper, pairs),
        ]

    return run


def swift(data: Data, row: str, what: str, faster: str) -> Callable[..., list[Row]]:
    def run(bench: Bench, rounds: int, scale: float, say: Callable[[str], None]) -> list[Row]:
        dataset = data.make(bench, scale)
        pairs = beside(bench, dataset, swift_target, [rclone_swift, swift_upload], rounds, say)
        against = "the better of rclone and `swift upload`"
        return [_throughput(row, f"{what} to Swift, MiB/s against {against}", faster, dataset, pairs, dataset.mib)]

    return run


def tiny(bench: Bench, rounds: int, scale: float, say: Callable[[str], None]) -> list[Row]:
    dataset = TINY.make(bench, scale)
    pairs = beside(bench, dataset, s3_target, [rclone_s3], rounds, say)
    return [_throughput("tiny", "2000 x 4 KiB to S3, objects/s against rclone", ">= 1.0", dataset, pairs, dataset.files)]


def sparse(bench: Bench, rounds: int, scale: float, say: Callable[[str], None]) -> list[Row]:
    dataset = SPARSE.make(bench, scale)
    pairs = beside(bench, dataset, s3_target, [rclone_s3], rounds, say, memory=True)
    bench.forget(dataset)
    what = "a file of 4 GiB, 90 % holes, to S3"
    peaks = [mine.peak / MiB for mine, _ in pairs]
    return [
        _throughput("sparse", f"{what}, MiB/s against rclone", ">= 1.0", dataset, pairs, dataset.mib),
        absolute("sparse-rss", f"{what}: peak resident MiB of worker and children", "<= 300", peaks),
    ]

"""From rounds to verdicts: what counts as met, what as missed, and what the spread leaves open."""

from __future__ import annotations

import json

import pytest

from tests.bench import figures
from tests.bench.__main__ import choices
from tests.bench.figures import BEGIN, END, Row, absolute, compared, unless_busy, verdict

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("ratios", "bar", "met"),
    [
        ([1.5, 1.4, 1.9, 1.6, 1.45], ">= 1.4", True),
        ([1.5, 1.39, 1.9, 1.6, 1.45], ">= 1.4", "inconclusive"),
        ([1.2, 1.39, 1.1, 1.3, 1.0], ">= 1.4", False),
        ([0.4, 0.3, 0.35], "<= 0.4", True),
        ([0.5, 0.6, 0.41], "<= 0.4", False),
        ([0.5, 0.3, 0.3], "<= 0.4", "inconclusive"),
        ([2.0, 2.0], ">= 1.4", "inconclusive"),
        ([9.9] + [1.0] * 7, ">= 1.4", False),
        ([9.9, 9.9] + [1.0] * 6, ">= 1.4", "inconclusive"),
    ],
)
def test_a_verdict_is_what_the_rounds_agree_on(ratios, bar, met):
    assert verdict(ratios, bar) == met


@pytest.mark.parametrize(
    ("ours", "idle", "idle_of_one", "met"),
    [
        (1.9, 0.1, 0.5, True),
        (1.5, 0.5, 0.6, False),
        (1.5, 0.1, 0.6, "inconclusive"),
        (1.9, 0.1, 0.1, "inconclusive"),
        (1.5, 0.1, 0.1, "inconclusive"),
    ],
)
def test_more_workers_are_judged_only_where_busy_cores_did_not_decide(ours, idle, idle_of_one, met):
    row = unless_busy(compared("scale-2", "2 workers", ">= 0.9", [(ours, 2)] * 3), idle, idle_of_one)
    assert row.met == met
    assert ("busy cores" in row.what) == (met == "inconclusive")


def test_a_count_needs_no_second_round():
    assert verdict([0.9], "<= 1", exact=True) is True
    assert verdict([1.1], "<= 1", exact=True) is False


def test_a_malformed_bar_is_refused():
    with pytest.raises(ValueError, match="no bar"):
        verdict([1, 1, 1], "at least 2")


def test_ratios_are_per_round_and_the_middle_one_is_told():
    row = compared("s3", "what", ">= 1.4", [(200, 100), (100, 100), (90, 60)])
    assert row == Row("s3", "what", 100, 100, 1.5, 1.0, 2.0, ">= 1.4", "inconclusive", 3)


def test_a_figure_without_a_peer_is_held_against_its_own_bar():
    row = absolute("rss", "what", "<= 300", [150, 240, 270])
    assert row == Row("rss", "what", 240, None, 0.8, 0.5, 0.9, "<= 300", True, 3)


def test_latest_keeps_the_rows_of_other_runs_and_nothing_but_the_fields(tmp_path):
    path = tmp_path / "bench" / "latest.json"
    old, other = absolute("a", "old", "<= 1", [2, 2, 2]), absolute("b", "b", "<= 1", [1, 1, 1])
    new = absolute("a", "new", "<= 1", [0.5, 0.5, 0.5])
    figures.write(path, [other, absolute("gone", "gone", "<= 1", [1, 1, 1])], ["a", "b", "gone"])
    figures.write(path, [old], ["a", "b"])
    figures.write(path, [new], ["a", "b"])
    assert figures.read(path) == [new, other]
    fields = ["id", "what", "ours", "peer", "ratio", "min", "max", "bar", "met", "rounds"]
    assert [list(entry) for entry in json.loads(path.read_text())] == [fields, fields]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tyni"], "no such rows: tyni; there are s3-large s3-large-cpu s3-small"),
        (["tiny", "--rounds", "0"], "0 rounds measure nothing: ask for one or more"),
        (["--rounds", "-1"], "-1 rounds measure nothing"),
        (["--rounds", "few"], "--rounds: invalid int value: 'few'"),
        (["--scale", "0"], "give more than 0 and at most 1"),
        (["--scale", "0.1", "--readme"], "figures of full size only"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused_with_what_would(arguments, told, capsys):
    with pytest.raises(SystemExit):
        choices(arguments)
    assert told in capsys.readouterr().err


def test_the_readme_holds_the_rows_between_its_markers_and_is_otherwise_left_alone(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    figures.write_section(readme, figures.markdown([compared("s3", "what", ">= 1.4", [(3, 2)] * 3)]))
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "| s3 | what | 3.00 | 2.00 | 1.50 (1.50-1.50) | >= 1.4 | met | 3 |" in text
    assert "old" not in text


def test_a_readme_without_markers_is_not_guessed_at(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing\n")
    with pytest.raises(ValueError, match="lacks the lines"):
        figures.write_section(readme, "rows")
    assert readme.read_text() == "nothing\n"


def test_the_cost_of_an_item_is_what_a_small_one_takes_beyond_its_content():
    rows = [
        absolute(row, row, "<= 1", [ours]) for row, ours in (("s3-large-cpu", 2.048), ("s3-small-cpu", 6), ("bookkeeping", 2.5))
    ]
    told = figures.cost_model(rows)
    assert "per GiB | 2.05 |" in told
    assert "beyond its content | 4.00 |" in told
    assert "SQL statements | 2.50 |" in told


def test_a_cost_that_was_not_measured_is_not_made_up():
    assert figures.cost_model([]) == "(not known before these rows were run: s3-large-cpu, s3-small-cpu, bookkeeping)"

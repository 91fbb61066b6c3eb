"""The state machines as tables: every state can be reached and left as told, and nothing happens that no table allows."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migration.states import (
    CONVERSION_TRANSITIONS,
    DRAIN_TRANSITIONS,
    ConversionEvent,
    ConversionState,
    DrainEvent,
    DrainState,
)
from stores.states import (
    LIVE_REF_STATES,
    LIVE_TRANSFER_STATES,
    REF_TRANSITIONS,
    SCAN_TRANSITIONS,
    STORE_TRANSITIONS,
    TRANSFER_TRANSITIONS,
    IllegalTransition,
    RefEvent,
    RefState,
    ScanEvent,
    ScanState,
    StoreEvent,
    StoreState,
    TransferEvent,
    TransferState,
    allowed_events,
    mermaid,
    next_state,
    sources,
)

pytestmark = pytest.mark.unit

MACHINES = {
    # table, states, events, where a row may begin, where it ends for good
    "ref": (REF_TRANSITIONS, RefState, RefEvent, {RefState.ALLOCATED, RefState.PROMISED}, {RefState.DESTROYED}),
    "store": (STORE_TRANSITIONS, StoreState, StoreEvent, {StoreState.ATTACHED}, {StoreState.REMOVED}),
    "transfer": (
        TRANSFER_TRANSITIONS,
        TransferState,
        TransferEvent,
        {TransferState.BLOCKED, TransferState.QUEUED},
        {TransferState.PROVEN, TransferState.CANCELLED},
    ),
    "scan": (
        SCAN_TRANSITIONS,
        ScanState,
        ScanEvent,
        {ScanState.QUEUED},
        {ScanState.FINISHED, ScanState.FAILED, ScanState.CANCELLED},
    ),
    "conversion": (
        CONVERSION_TRANSITIONS,
        ConversionState,
        ConversionEvent,
        {ConversionState.CONVERTED},
        {ConversionState.COMMITTED, ConversionState.ROLLED_BACK},
    ),
    "drain": (DRAIN_TRANSITIONS, DrainState, DrainEvent, {DrainState.PLANNED}, {DrainState.CANCELLED}),
}


def reachable(table: Mapping, start: set) -> set:
    found = set(start)
    while more := {target for (state, _), target in table.items() if state in found} - found:
        found |= more
    return found


@pytest.fixture(params=MACHINES)
def machine(request):
    return MACHINES[request.param]


def test_every_state_is_reachable_and_every_event_is_used(machine):
    table, states, events, start, _ = machine
    assert reachable(table, start) == set(states)
    assert {event for _, event in table} == set(events)


def test_only_terminal_states_allow_nothing(machine):
    table, states, _, _, ends = machine
    assert {state for state in states if not allowed_events(table, state)} == ends


def test_an_end_can_be_reached_from_every_state(machine):
    table, states, _, _, ends = machine
    for state in states:
        assert reachable(table, {state}) & ends, state


@given(name=st.sampled_from(sorted(MACHINES)), data=st.data())
def test_any_sequence_of_events_follows_the_table(name, data):
    table, states, events, start, _ = MACHINES[name]
    state = data.draw(st.sampled_from(sorted(start)))
    for event in data.draw(st.lists(st.sampled_from(list(events)), max_size=20)):
        if (state, event) in table:
            assert event in allowed_events(table, state)
            assert state in sources(table, event)
            state = next_state(table, state, event)
            assert state in states
        else:
            assert state not in sources(table, event)
            with pytest.raises(IllegalTransition) as refusal:
                next_state(table, state, event)
            assert refusal.value.allowed == allowed_events(table, state)
            assert all(name in str(refusal.value) for name in refusal.value.allowed)


def test_what_is_not_live_has_ended():
    assert set(RefState) - LIVE_REF_STATES == {RefState.DESTROYED}
    ended = set(TransferState) - LIVE_TRANSFER_STATES
    assert ended == {TransferState.PROVEN, TransferState.CANCELLED, TransferState.FAILED}


def test_nothing_becomes_ready_but_by_a_kept_promise_a_finished_write_or_bytes_read_to_be_right_again():
    ways = {(state, event) for (state, event), target in REF_TRANSITIONS.items() if target == RefState.READY}
    assert ways == {
        (RefState.CREATING, RefEvent.OPERATION_SUCCEEDED),
        (RefState.PROMISED, RefEvent.PROMISE_KEPT),
        (RefState.FAILED, RefEvent.DAMAGE_MENDED),
    }


def test_nothing_leaves_proven():
    assert not [event for (state, event) in TRANSFER_TRANSITIONS if state == TransferState.PROVEN]


def test_diagram_has_one_line_for_each_transition(machine):
    table, *_ = machine
    first, *lines = mermaid(table).splitlines()
    assert first == "stateDiagram-v2"
    assert lines == [f"    {state} --> {target}: {event}" for (state, event), target in table.items()]

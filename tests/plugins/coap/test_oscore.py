"""OSCORE contexts: which numbers and Echo values may be used after one was forgotten."""

from __future__ import annotations

from dfud_coap.oscore import EPOCH_S, LEAD_MS, Contexts, Header


def test_no_number_is_used_twice_and_no_old_echo_counts_after_a_context_was_forgotten() -> None:
    contexts = Contexts(1)
    headers = [Header(b"\0", bytes([n]) * 8 + b"d@a", "d@a") for n in range(3)]
    first = contexts.derive(headers[0], b"k" * 16, EPOCH_S + 10.0)
    assert first is not None and first.sequence == 10_000
    # Challenged again and again by the same message that is replayed: other numbers, and soon nothing.
    replayed = [contexts.derive(headers[0], b"k" * 16, EPOCH_S + 10.0) for _ in range(LEAD_MS + 3)]
    assert [c and c.sequence for c in replayed] == [*range(10_001, 10_001 + LEAD_MS), None, None, None]
    contexts.establish(first, made_s=100.0)
    assert contexts.get(headers[0].id_context) is first and contexts.is_fresh(99.0) and not first.forgotten
    first._aio.sender_sequence_number = 50_000  # a lively one
    second = contexts.derive(headers[1], b"k" * 16, EPOCH_S + 11.0)
    assert second is not None
    contexts.establish(second, made_s=101.0)  # there is room for one
    assert contexts.get(headers[0].id_context) is None and len(contexts) == 1 and first.forgotten
    # The same context again: not below what was used; and what established it is not fresh again.
    assert contexts.derive(headers[0], b"k" * 16, EPOCH_S + 12.0) is None
    again = contexts.derive(headers[0], b"k" * 16, EPOCH_S + 51.0)
    assert again is not None and again.sequence == 51_000
    assert not contexts.is_fresh(100.0) and contexts.is_fresh(100.1) and not contexts.is_fresh(None)

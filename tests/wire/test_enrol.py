"""What a new device says of itself."""

from __future__ import annotations

import pytest

from dfud.errors import PeerError
from dfud.wire.enrol import Enrolment, decode_enrolment_untrusted, encode_enrolment


def test_an_enrolment_comes_back_as_it_was() -> None:
    said = Enrolment("lamps", "Türsteuerung 1/ä", "dfc_code", "s" * 22)
    assert decode_enrolment_untrusted(encode_enrolment(said)) == said


@pytest.mark.parametrize("device", [".", "..", "a/../b", "/", "a\x1b[31m", "a\u202eb", " a", "u\u0308", ""])
def test_a_claim_gives_no_name_that_leads_elsewhere(device: str) -> None:
    message = encode_enrolment(Enrolment("lamps", device, "dfc_code", "s" * 22))
    with pytest.raises(PeerError, match="device name"):
        decode_enrolment_untrusted(message)

"""docs/coap.md says what the code does: numbers, names and keys are the same."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
from dfud_coap import block, echo, message, notifying, oscore, reliability, translate
from dfud_coap.config import CoapConfig

from dfud.api import Chunks
from tests.plugins.coap.world import PACKAGE

TEXT = (Path(__file__).parents[3] / "docs" / "coap.md").read_text()
FLAT = " ".join(TEXT.split())


def test_every_key_that_is_named_exists_with_the_default_that_is_named() -> None:
    keys = {field.name: field.default for field in msgspec.structs.fields(CoapConfig)}
    limits = TEXT[TEXT.index("## Limits") : TEXT.index("**Amplification.**")]
    named = set(re.findall(r"\| ([^|]*) \| (?:closed|5\.03|4\.13|the |silence)", limits))
    found = {name for cell in named for name in re.findall(r"`(\w+)`", cell)}
    assert found >= {"body_max", "contexts", "sessions", "waiting_per_address"} and found <= set(keys)
    for name in ("plain", "dtls_port", "block_max", "certificate", "client_ca", "verify_addresses", "observe_check_s"):
        assert f"`{name}`" in FLAT.replace("`plain = true`", "`plain`") and name in keys
    assert (keys["port"], keys["dtls_port"], keys["plain"], keys["observe_check_s"]) == (5683, 5684, False, 900.0)


def test_numbers() -> None:
    for number, name in translate.FORMATS.items():
        assert f"{number} {name}" in FLAT
    assert (message.Option.AUTHORIZATION, message.Option.COMMAND) == (4209, 4210)
    assert f"at most {message.DATAGRAM_MAX_BYTES} bytes" in FLAT or f"| {message.DATAGRAM_MAX_BYTES} bytes |" in FLAT
    assert block.LIFETIME_S == 93 and "are kept for 93 s" in FLAT
    assert reliability.EXCHANGE_LIFETIME_S == 247 and "remembered for 247 s" in FLAT and reliability.NSTART == 1
    assert echo.ECHO_LIFETIME_S == 30 and "an Echo is good for 30 s" in FLAT
    assert echo.VERIFIED_S == 3600 and "remembered for an hour" in FLAT and echo.AMPLIFICATION == 3
    assert f"Max-Age of chunks is {translate.CHUNK_MAX_AGE_S}" in FLAT
    assert notifying.OBSERVE_MARGIN_S == 100 and "Max-Age is that and 100 s" in FLAT
    assert oscore.WINDOW == 32 and "| Replay window | 32 |" in FLAT and oscore.NONCE_BYTES == 8
    assert (oscore.DEVICE_ID, oscore.SERVER_ID, oscore.KEY_BYTES) == (b"\1", b"\0", 16)
    assert f"up to {CoapConfig().verified:,} of them (`verified`)" in FLAT


def test_the_etag_rule() -> None:
    assert "`first << 12 | (last - first)`" in FLAT
    assert translate.etag(Chunks(PACKAGE, 5, [b"", b"", b""])) == bytes.fromhex("01234567") + (5 << 12 | 2).to_bytes(4, "big")


def test_every_code_that_is_sent_is_in_the_document() -> None:
    for code in message.Code:
        text = f"{code >> 5}.{code & 31:02}"
        if code >= 0x40 and text not in ("2.01", "2.02", "4.15"):
            assert text in TEXT, text

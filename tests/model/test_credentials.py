"""Device credentials: every form that is understood, and none that is not."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfud.model.credentials import keys_of, new_secret, protect, verify
from tests.real_parts import require

KEY = b"k" * 32


def spec_of(*credentials: object, place: str = "authentication") -> dict[str, object]:
    return {place: {"credentials": list(credentials)}}


def test_a_secret_has_128_bits_and_comes_once() -> None:
    assert len(new_secret()) == 22
    assert new_secret() != new_secret()


@pytest.mark.parametrize("place", ["authentication", "credentials"])
@pytest.mark.parametrize("form", ["hunter2", {"plain": "hunter2"}])
def test_a_plain_password_is_kept_as_a_keyed_hash(place: str, form: object) -> None:
    kept = protect(spec_of({"pass": form}, {"user": {"username": "u", "password": form}}, place=place), KEY)
    assert "hunter2" not in str(kept)
    assert verify(kept, None, "hunter2", KEY)
    assert verify(kept, "u", "hunter2", KEY)
    assert not verify(kept, None, "hunter3", KEY)
    assert not verify(kept, "v", "hunter2", KEY)
    assert not verify(kept, None, "hunter2", b"another key")
    assert protect(kept, KEY) == kept


def test_two_devices_with_one_password_are_not_kept_alike() -> None:
    assert protect(spec_of({"pass": "x"}), KEY) != protect(spec_of({"pass": "x"}), KEY)


def test_authentication_hides_credentials_as_in_drogue() -> None:
    spec = {**spec_of({"pass": "new"}), **spec_of({"pass": "old"}, place="credentials")}
    assert verify(spec, None, "new", KEY)
    assert not verify(spec, None, "old", KEY)


@pytest.mark.parametrize(
    "stored",
    [
        "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1",
        "$6$rounds=10000$saltstringsaltst$OW1/O6BYHV6BcXZu8QVeXbDWra3Oeqh0sbHbbMCVNSnCM/UrjmM0Dp8vOuZeHBy/YTBmSK6H9qs/y3RnOaw5v.",
    ],
)
def test_sha512_crypt_reads_the_vectors_of_its_author(stored: str) -> None:
    assert verify(spec_of({"pass": {"sha512": stored}}), None, "Hello world!", KEY)
    assert not verify(spec_of({"pass": {"sha512": stored}}), None, "Hello world", KEY)


@pytest.mark.parametrize("password", ["a", "hey", "x" * 63, "x" * 64, "x" * 130, "ü€"])
def test_sha512_crypt_agrees_with_openssl(password: str) -> None:
    run = subprocess.run([require("openssl"), "passwd", "-6", "-stdin"], input=password.encode(), capture_output=True)
    stored = run.stdout.decode().strip()
    assert verify(spec_of({"pass": {"sha512": stored}}), None, password, KEY)
    assert not verify(spec_of({"pass": {"sha512": stored}}), None, password + "x", KEY)


def test_bcrypt_is_read() -> None:
    stored = bcrypt.hashpw(b"hey", bcrypt.gensalt(4)).decode()
    assert verify(spec_of({"pass": {"bcrypt": stored}}), None, "hey", KEY)
    assert not verify(spec_of({"pass": {"bcrypt": stored}}), None, "hex", KEY)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["pass", "user", "plain", "dfud", "bcrypt", "sha512", "username", "password", "credentials", "x"]
                ),
                inner,
            )
        ),
        max_leaves=8,
    )
)
def test_no_spec_whatever_it_holds_raises_or_lets_a_stranger_in(rubbish: object) -> None:
    spec = {"authentication": {"credentials": [rubbish]}}
    assert not verify(protect(spec, KEY), None, "a password nobody has set", KEY)
    assert not verify({"authentication": rubbish}, "user", "a password nobody has set", KEY)


def test_keys_are_valid_between_their_dates() -> None:
    spec = spec_of(
        {"psk": {"key": "YQ=="}},
        {"psk": {"key": "Yg==", "validity": {"notBefore": "2030-01-01T00:00:00Z"}}},
        {"psk": {"key": "Yw==", "validity": {"notAfter": "2020-01-01T00:00:00Z"}}},
        {"psk": {"key": "not base64"}},
        {"psk": {"key": "ZA==", "validity": {"notAfter": "2030-01-01T00:00:00Z"}}},
        {"psk": {"key": "ZA==", "validity": {"notAfter": 7}}},
    )
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert keys_of(spec, now, KEY) == keys_of(protect(spec, KEY), now, KEY) == [b"a", b"d"]


def test_a_pre_shared_key_is_kept_sealed() -> None:
    spec = spec_of({"psk": {"key": "c2l4dGVlbiBieXRlcyEh", "validity": {"notAfter": "2030-01-01T00:00:00Z"}}})
    kept = protect(spec, KEY)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert "c2l4dGVlbiBieXRlcyEh" not in str(kept) and "2030" in str(kept)
    assert protect(kept, KEY) == kept != protect(spec, KEY)
    assert keys_of(kept, now, KEY) == [b"sixteen bytes!!"]
    assert keys_of(kept, now, b"another key") == []
    for broken in ("", "AAAA", "!", None, 7):
        assert keys_of(spec_of({"psk": {"sealed": broken}}), now, KEY) == []

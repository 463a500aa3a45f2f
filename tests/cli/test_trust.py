"""Whom dfuctl trusts when it speaks TLS, and that it reads no authorities where it does not."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from dfud.cli.client import trust
from tests.e2e.certificates import Authority


@pytest.mark.parametrize("url", ["https://dfud.example", "HTTPS://dfud.example"])
def test_over_tls_the_public_authorities_are_trusted(url: str) -> None:
    context = trust(url, None)
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname
    assert context.cert_store_stats()["x509_ca"] > 10


def test_with_a_ca_only_that_one_is_trusted(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text(ssl.DER_cert_to_PEM_cert(Authority().der))
    context = trust("https://dfud.example", str(authority))
    assert context.cert_store_stats()["x509_ca"] == 1
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname
    with pytest.raises(OSError):
        trust("https://dfud.example", str(tmp_path / "nothing"))


def test_without_tls_nobody_is_trusted() -> None:
    context = trust("http://127.0.0.1:8881", None)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.cert_store_stats()["x509_ca"] == 0

"""The trust anchors of an app: spec.trustAnchors.anchors[].certificate, base64 of PEM, or PEM. Pure.

Certificates are read in parts, some of them late: one of which any part cannot be read is none, here and wherever it is presented.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from dfud.errors import PeerError

UNREADABLE = (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm)


def anchors_of(spec: Mapping[str, Any]) -> list[x509.Certificate]:
    """Return the certificates whose holders sign for an app's devices; what is none is left out. Never raises."""
    return [certificate for _, text in _texts(spec) for certificate in _read(text)]


def check_anchors_untrusted(spec: Mapping[str, Any]) -> None:
    """Raise PeerError for an anchor that anchors_of() would leave out."""
    for number, text in _texts(spec):
        if not _read(text):
            raise PeerError(
                f"spec.trustAnchors.anchors[{number}].certificate: no certificate that can be read, expected an X.509 one "
                "(version 3) in PEM or its base64"
            )


def _texts(spec: Mapping[str, Any]) -> list[tuple[int, str]]:
    section = spec.get("trustAnchors")
    anchors = section.get("anchors") if isinstance(section, Mapping) else None
    found = []
    for number, anchor in enumerate(anchors if isinstance(anchors, list) else ()):
        text = anchor.get("certificate") if isinstance(anchor, Mapping) else None
        if isinstance(text, str):
            found.append((number, text))
    return found


def _read(text: str) -> list[x509.Certificate]:
    """Return the certificates of one anchor, all of them or none."""
    try:
        pem = text.encode() if text.startswith("-----") else base64.b64decode(text)
        found = x509.load_pem_x509_certificates(pem)
        for certificate in found:
            certificate.subject.rfc4514_string()
            certificate.public_key()
    except UNREADABLE:
        return []
    return found


def subjects_of(spec: Mapping[str, Any]) -> set[str]:
    """Return the names of an app's anchors, by which the app of a client certificate is found."""
    return {certificate.subject.rfc4514_string() for certificate in anchors_of(spec)}

"""The trust anchors of an app: spec.trustAnchors.anchors[].certificate, base64 of PEM, or PEM. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from cryptography import x509


def anchors_of(spec: Mapping[str, Any]) -> list[x509.Certificate]:
    """Return the certificates whose holders sign for an app's devices; what is none is left out."""
    section = spec.get("trustAnchors")
    anchors = section.get("anchors") if isinstance(section, Mapping) else None
    found: list[x509.Certificate] = []
    for anchor in anchors if isinstance(anchors, list) else ():
        text = anchor.get("certificate") if isinstance(anchor, Mapping) else None
        if not isinstance(text, str):
            continue
        try:
            pem = text.encode() if text.startswith("-----") else base64.b64decode(text)
            found += x509.load_pem_x509_certificates(pem)
        except ValueError:
            continue
    return found


def subjects_of(spec: Mapping[str, Any]) -> set[str]:
    """Return the names of an app's anchors, by which the app of a client certificate is found."""
    return {certificate.subject.rfc4514_string() for certificate in anchors_of(spec)}

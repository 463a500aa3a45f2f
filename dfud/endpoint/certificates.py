"""Client certificates: which app's anchor issued one, and what its device may be called."""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from dfud.api import Cache, Store
from dfud.model.anchors import UNREADABLE, anchors_of

Anchors = dict[str, list[tuple[str, x509.Certificate]]]
APPS_AT_ONCE = 500


class Presented:
    """A client certificate that could be read. names: the forms of its subject, most exact first."""

    def __init__(self, certificate: x509.Certificate) -> None:
        self.certificate = certificate
        self.issuer = certificate.issuer.rfc4514_string()
        names = [str(a.value) for a in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
        # As Drogue writes a subject, and `drg create device-cert` into spec.alias.
        drogues = ", ".join(f"{a.rfc4514_attribute_name}={a.value!s}" for a in certificate.subject)
        self.names = [certificate.subject.rfc4514_string(), drogues, *names]


def read_certificate_untrusted(der: bytes) -> Presented | None:
    try:
        return Presented(x509.load_der_x509_certificate(der))
    except UNREADABLE:
        return None


def valid(certificate: x509.Certificate, now_s: float) -> bool:
    return certificate.not_valid_before_utc <= datetime.fromtimestamp(now_s, UTC) <= certificate.not_valid_after_utc


def issued(anchor: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(anchor)
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


class TrustAnchors:
    """The anchors of all apps by their subject, read when they are needed first after a change."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._all: Cache[str, Anchors] = Cache(1)

    def forget(self) -> None:
        """An app has changed."""
        self._all.forget_all()

    async def issuers(self, presented: Presented, now_s: float) -> list[tuple[str, x509.Certificate]]:
        """Return the apps, with the anchor, that issued a certificate and are valid now."""
        anchors = await self._all.load("all", self._load)
        found = anchors.get(presented.issuer, ())
        return [(app, a) for app, a in found if valid(a, now_s) and issued(a, presented.certificate)]

    async def _load(self) -> Anchors:
        anchors: Anchors = {}
        offset = 0
        while apps := await self._store.apps(limit=APPS_AT_ONCE, offset=offset):
            offset += len(apps)
            for app in apps:
                for certificate in anchors_of(app.spec):
                    anchors.setdefault(certificate.subject.rfc4514_string(), []).append((app.name, certificate))
        return anchors

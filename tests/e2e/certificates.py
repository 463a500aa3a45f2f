"""A CA and server certificates for tests, made anew each time."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Authority:
    def __init__(self, name: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        self.certificate = self._sign(self._name, self._key, ca=True)

    def _sign(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool = False, host: str = ""
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if host:
            names: list[x509.GeneralName] = [x509.DNSName(host), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def server(self, directory: Path, host: str = "localhost") -> tuple[Path, Path, bytes]:
        """Write a certificate for `host` and its key; return both paths and the certificate as DER."""
        key = ec.generate_private_key(ec.SECP256R1())
        return _write(directory, self._sign(_named(host), key, host=host), key)


def self_signed(directory: Path, host: str = "localhost") -> tuple[Path, Path, bytes]:
    """Write a self-signed certificate for `host` and its key, as `openssl req -x509` makes it; return as server() does."""
    own = Authority(host)
    return _write(directory, own._sign(_named(host), own._key, host=host), own._key)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _write(directory: Path, found: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> tuple[Path, Path, bytes]:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "server.pem").write_bytes(found.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8
    (directory / "server.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption())
    )
    return directory / "server.pem", directory / "server.key", found.public_bytes(serialization.Encoding.DER)

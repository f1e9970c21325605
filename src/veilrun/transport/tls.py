"""A node's TLS identity: one self-signed certificate, known to its clients by its hash.

No authority vouches for a node. Its operator hands out the *pin*, `sha256:` and the 64 hex
digits of the certificate's SHA-256, and a client that knows the pin speaks to the holder of
that certificate's key or to nobody.

Covered: a stranger on the wire who reads, changes, or answers in the node's place.
Not covered: a pin that came over a channel a stranger controls, and the node itself: TLS ends
there, and the node is not trusted.

Invariant: the private key is written once, with mode 0600, and is never replaced silently: a
new key would look like an attack to every client that holds the old pin.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import re
import ssl
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from veilrun import atomic
from veilrun.errors import RefusedError, StorageError, UsageError

CERTIFICATE_FILE: Final = "node-certificate.pem"
PRIVATE_KEY_FILE: Final = "node-private-key.pem"
LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "::1")

_LIFETIME: Final = datetime.timedelta(days=3650)
"""The pin is what clients trust, so an early expiry would protect nobody and stop everybody."""

_USES: Final = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
"""Between parties that call each other, each is also a client."""

_PIN: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")


@dataclass(frozen=True, slots=True)
class Identity:
    """A node's certificate and where its private key lies. The key itself is never held here.

    certificate_pem: what a client needs for `client_context`; not secret.
    pin: `sha256:<64 hex>` of the certificate's DER form; not secret.
    """

    certificate_pem: bytes
    pin: str
    certificate_path: Path
    private_key_path: Path


def ensure_identity(folder: Path, hosts: Sequence[str] = ()) -> Identity:
    """The identity in `folder`, made on the first call; `hosts` are extra names it answers to.

    Clients that pin never look at the names; they matter only to tools that do not pin.

    Raises:
        RefusedError: the private key can be read by other users of this machine.
        UsageError: the folder holds half an identity, or files that are not one.
        StorageError: the files cannot be written or read.
    """
    certificate_path, key_path = folder / CERTIFICATE_FILE, folder / PRIVATE_KEY_FILE
    if not key_path.exists() and not certificate_path.exists():
        _create(certificate_path, key_path, hosts)
    try:
        mode = stat.S_IMODE(key_path.stat().st_mode)
        certificate_pem = certificate_path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder} holds half an identity ({error.filename} is missing); "
            "restore the file, or remove the other one to make a new identity with a new pin"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot read the identity in {folder}: {error.strerror}") from error
    if mode & 0o077:
        raise RefusedError(
            f"{key_path} can be read by others (mode {mode:04o}); run: chmod 600 {key_path}"
        )
    identity = Identity(certificate_pem, _pin_of(certificate_pem), certificate_path, key_path)
    server_context(identity)  # the key must fit the certificate now, not at the first client
    return identity


def server_context(identity: Identity) -> ssl.SSLContext:
    """What a node listens with: TLS 1.3 only.

    Raises:
        UsageError: the private key is damaged or belongs to another certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load_chain(context, identity)
    return context


def client_context(certificate_pem: bytes) -> ssl.SSLContext:
    """For raw sockets: TLS 1.3 that trusts exactly this certificate, under whatever host name.

    The machine's own list of authorities is not consulted, and the name is not compared: a node
    is reached by address, through tunnels and under new names, and the key is the stronger test.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    _trust_only(context, certificate_pem)
    return context


def peer_client_context(identity: Identity, certificate_pem: bytes) -> ssl.SSLContext:
    """What one party calls another with: as `client_context`, and it shows its own certificate.

    Raises:
        UsageError: the private key does not fit, or what is to be trusted is not in PEM form.
    """
    context = client_context(certificate_pem)
    _load_chain(context, identity)
    return context


def peer_server_context(identity: Identity, certificate_pems: Iterable[bytes]) -> ssl.SSLContext:
    """What a party listens with: a caller must hold the key of one of these certificates.

    Which of them it is, `streams.NameOf` learns from the certificate.

    Raises:
        UsageError: the private key does not fit, or what is to be trusted is not in PEM form.
    """
    context = server_context(identity)
    context.num_tickets = 0  # parties meet once; a ticket would only be in the way at the end
    _trust_only(context, b"\n".join(certificate_pems))
    return context


def is_loopback(host: str) -> bool:
    """Whether packets to `host` stay on this machine. Other names than localhost do not count."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def parse_pin(text: str) -> bytes:
    """The 32 bytes of a pin as `Identity.pin` writes it, for `aiohttp.Fingerprint`.

    Raises:
        UsageError: `text` is not `sha256:` and 64 hex digits.
    """
    match = _PIN.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            "a pin is sha256: and 64 hex digits, as `veilrun node` prints it; "
            f"this one has {len(text.strip())} characters"
        )
    return bytes.fromhex(match[1])


def _load_chain(context: ssl.SSLContext, identity: Identity) -> None:
    try:
        context.load_cert_chain(identity.certificate_path, identity.private_key_path)
    except (ssl.SSLError, OSError) as error:
        raise UsageError(
            f"{identity.private_key_path} does not fit {identity.certificate_path}; "
            "remove both to make a new identity with a new pin"
        ) from error


def _trust_only(context: ssl.SSLContext, certificate_pems: bytes) -> None:
    context.verify_mode = ssl.CERT_REQUIRED
    # A trusted certificate ends the chain although it is no authority.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=certificate_pems.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError, ValueError) as error:
        raise UsageError("the certificate to trust is not in PEM form") from error


def _pin_of(certificate_pem: bytes) -> str:
    try:
        der = x509.load_pem_x509_certificate(certificate_pem).public_bytes(Encoding.DER)
    except ValueError as error:
        raise UsageError("the node's certificate file does not hold a certificate") from error
    return "sha256:" + hashlib.sha256(der).hexdigest()


def _create(certificate_path: Path, key_path: Path, hosts: Sequence[str]) -> None:
    """Write a new key pair; the key first, so that a certificate always has its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "veilrun node")])
    now = datetime.datetime.now(datetime.UTC)
    names = [_general_name(host) for host in dict.fromkeys((*LOOPBACK_HOSTS, *hosts))]
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks differ
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        # Not an authority: the key cannot vouch for a second certificate.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_USES), critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256())
    try:
        key_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StorageError(f"cannot make {key_path.parent}: {error.strerror}") from error
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    atomic.write_file(key_path, secret, mode=0o600)
    atomic.write_file(certificate_path, certificate.public_bytes(Encoding.PEM))


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise UsageError(f"{host!r} is neither a host name nor an address") from error

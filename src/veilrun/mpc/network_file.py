"""The network file, `mpc.toml`: who the three parties are and where they are reached.

    [P0]                              the dealer, the model's owner
    address = "owner.example:7000"
    certificate = "p0.pem"            beside this file, or an absolute path

    [P1]                              the client; it calls and is never called
    certificate = "p1.pem"

    [P2]                              the assistant
    address = "assistant.example:7002"
    certificate = "p2.pem"

All three parties hold the same file. `veilrun mpc identity` makes a party's certificate.

Invariant: three different certificates, so a connection tells which party is at its other end.
Covered: unknown, missing and misspelt entries are errors that name them. Not covered: a file
that came over a way a stranger controls; the certificates in it are what is trusted.
"""

from __future__ import annotations

import ssl
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from veilrun.errors import DecodeError, PeerError, UsageError
from veilrun.transport.streams import NameOf
from veilrun.wire import fields
from veilrun.wire.fields import Fields

ROLES: Final = ("P0", "P1", "P2")
_LISTENING: Final = ("P0", "P2")
_MAX_FILE_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Member:
    """One party. host, port: where it listens; P1's are empty and 0."""

    role: str
    host: str
    port: int
    certificate_pem: bytes

    @property
    def certificate_der(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self.certificate_pem.decode("ascii"))


@dataclass(frozen=True, slots=True)
class Network:
    """The three parties, by role."""

    members: Mapping[str, Member]

    def name_of(self, *callers: str) -> NameOf:
        """For a listener that lets in these roles only."""
        roles = {self.members[role].certificate_der: role for role in callers}

        def find(certificate: bytes | None, address: str) -> str:
            if certificate is None or certificate not in roles:
                raise PeerError(f"{address} shows a certificate of none of {', '.join(callers)}")
            return roles[certificate]

        return find


def load(path: Path) -> Network:
    """Read a network file and the certificates it names.

    Raises:
        UsageError: the file cannot be read, or is not as above; the message names the entry.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the network file {path}: {error.strerror}") from error
    if len(content) > _MAX_FILE_BYTES:
        raise UsageError(f"{path} is no network file: it has {len(content)} bytes")
    try:
        body = tomllib.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    try:
        top = Fields(body, "")
        members = {role: _member(role, top.take(role, fields.mapping), path) for role in ROLES}
        top.finish()
    except DecodeError as error:
        raise UsageError(f"{path}: {error}") from error
    _check_different(members, path)
    return Network(members)


def write(path: Path, members: Mapping[str, tuple[str | None, str]]) -> None:
    """Write a network file. members: role -> (address or None, path of the certificate)."""
    lines = []
    for role in ROLES:
        address, certificate = members[role]
        lines.append(f"[{role}]")
        if address is not None:
            lines.append(f"address = {_quoted(address)}")
        lines += [f"certificate = {_quoted(certificate)}", ""]
    path.write_text("\n".join(lines), "utf-8")


def parse_address(value: Any, name: str) -> tuple[str, int]:
    """A reader for `wire.fields`: "host:port" or "[v6 address]:port"."""
    text = fields.short_text(value, name)
    host, colon, port = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    if is_bracketed:
        host = host[1:-1]
    good_host = (
        host and host.isprintable() and " " not in host and (is_bracketed or ":" not in host)
    )
    good_port = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 1 << 16
    if not (colon and good_host and good_port):
        raise DecodeError(f'{name} must be "host:port", is {text[:80]!r}', field=name)
    return host, int(port)


def _member(role: str, value: Mapping[str, Any], path: Path) -> Member:
    body = Fields(value, role)
    host, port = "", 0
    if role in _LISTENING:
        host, port = body.take("address", parse_address)
    certificate = path.parent / body.take("certificate", fields.short_text)
    body.finish()
    try:
        pem = certificate.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path}: cannot read {role}'s certificate {certificate}: {error.strerror}; "
            f"`veilrun mpc identity` at {role} makes it"
        ) from error
    member = Member(role, host, port, pem)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii"))
        _ = member.certificate_der
    except (UnicodeDecodeError, ValueError, ssl.SSLError) as error:
        raise UsageError(f"{path}: {certificate} holds no certificate in PEM form") from error
    return member


def _check_different(members: Mapping[str, Member], path: Path) -> None:
    owners: dict[bytes, str] = {}
    for role, member in members.items():
        other = owners.setdefault(member.certificate_der, role)
        if other != role:
            raise UsageError(f"{path}: {other} and {role} have the same certificate")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'

"""Where a node is and which certificate it must show. Values, no I/O.

Invariant: an address without a pinned certificate is one on this machine, and was asked for
by an option that says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from veilrun.errors import RefusedError, UsageError
from veilrun.transport.tls import is_loopback, parse_pin


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """url: scheme, host and port, no path. pin: SHA-256 of the node's certificate (DER).
    api_key: what the node asks of its clients, if it asks for anything.

    Made by `pinned_node` or `insecure_plain_http_node_for_loopback_only`.
    """

    url: str
    pin: bytes | None
    api_key: str | None = field(default=None, repr=False)


def pinned_node(url: str, pin: str, *, api_key: str | None = None) -> NodeAddress:
    """The node at an https URL that shows the certificate `sha256:<64 hex digits>`."""
    _check_url(url, scheme="https")
    return NodeAddress(url.rstrip("/"), parse_pin(pin), api_key)


def insecure_plain_http_node_for_loopback_only(
    url: str, *, api_key: str | None = None
) -> NodeAddress:
    """A node on this machine without TLS, for trying things out."""
    host = _check_url(url, scheme="http")
    if not is_loopback(host):
        raise RefusedError(f"plain HTTP is for this machine only; {host} is another: use https")
    return NodeAddress(url.rstrip("/"), None, api_key)


def _check_url(url: str, *, scheme: str) -> str:
    """The host of a URL that has this scheme, a host, perhaps a port, and nothing else."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port  # raises when it is no number
    except ValueError as error:
        raise UsageError(f"not a URL: {url[:200]!r}") from error
    if parts.scheme != scheme:
        other = " (plain HTTP would show ids and answers on the wire)" if scheme == "https" else ""
        raise RefusedError(f"the node's URL must begin with {scheme}://{other}, got {url[:200]!r}")
    if not host or parts.username is not None or parts.path.strip("/") or parts.query:
        raise UsageError(f"a node's URL is {scheme}://host:port and nothing more")
    return host

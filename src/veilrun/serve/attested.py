"""What machine is at the other end: evidence for a fresh nonce, before any token is sent to it.

Steps of `Gate.open`:
1. Ask the node for evidence with a nonce of our own, over a connection to the pinned certificate.
2. Appraise it: the policy, and as demands the nonce, the key of that certificate, and the root of
   the weights where it is known here.
3. Remember which connections are open, and when that was.

The gate is closed again after `max_age_s`, and when no connection that was open since is left: a
node that was restarted is appraised again, though it shows the same certificate. With none left, a
new connection is for an appraisal or not at all; so the node must keep idle ones, as ours do.

Covered: another machine, other software, other weights, old evidence. Not covered: a TLS key that
the attested software gives away; weights, where the caller does not say which; an answer that has
begun when a verdict gets too old.

Invariant: what the node does can only cause a `PeerError` or a `TransportError`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import aiohttp

from veilrun.attest.bundle import MAX_BYTES, Bundle, decode_bundle
from veilrun.attest.certificates import key_sha256, read_certificate
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.policy import AllOf, Demands
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.attest.rules import Freshness
from veilrun.attest.verdict import appraise, require
from veilrun.errors import RefusedError, UsageError
from veilrun.serve.node_address import NodeAddress
from veilrun.serve.node_http import NodeTimeouts, check_status, network_faults, read_body
from veilrun.wire.attestation import ATTESTATION_PATH, NONCE_BYTES, NONCE_PARAMETER

_log = logging.getLogger(__name__)

_MAX_AGE_S: Final = 3600.0
_NOT_FOUND: Final = 404


@dataclass(frozen=True, eq=False)
class Requirement:
    """What the node's machine must prove.

    weights_root: of the encrypted weights, as `veilrun encrypt` wrote them; None: not compared.
    endorsements: what vendors say, besides what the node sends along.
    """

    policy: AllOf
    weights_root: bytes | None = None
    endorsements: Endorsements = field(default_factory=Endorsements)

    @property
    def max_age_s(self) -> float:
        """How long a verdict holds: the policy's `freshness.max_age_s`, or an hour."""
        limits = [one.max_age_s for one in self.policy.rules if isinstance(one, Freshness)]
        return min((one for one in limits if one is not None), default=_MAX_AGE_S)


class WatchedPin(aiohttp.Fingerprint):
    """A pin that sees every new connection, and refuses those that nobody has asked for."""

    def __init__(self, pin: bytes) -> None:
        super().__init__(pin)
        self.certificate: bytes | None = None
        self.is_appraising = False
        self._open: list[asyncio.BaseTransport] = []

    @property
    def is_connected(self) -> bool:
        """Whether a connection that came through here is still open."""
        self._open = [one for one in self._open if not one.is_closing()]
        return bool(self._open)

    def check(self, transport: asyncio.Transport) -> None:
        """Called by aiohttp for every new connection, before anything is sent."""
        super().check(transport)
        if not self.is_appraising and not self.is_connected:
            transport.close()
            raise aiohttp.ServerDisconnectedError("the node must be appraised again first")
        self.certificate = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        self._open.append(transport)


class Gate:
    """Open while the node's machine is known to be what is required; without one, always."""

    def __init__(self, address: NodeAddress, requirement: Requirement | None) -> None:
        """Raises RefusedError if evidence is required over plain HTTP: it is about a TLS key."""
        self._address, self._requirement = address, requirement
        self.pin: WatchedPin | None = None
        self._appraised_s: float | None = None
        if requirement is not None:
            if address.pin is None:
                raise RefusedError("evidence is about the node's TLS key, and plain HTTP has none")
            self.pin = WatchedPin(address.pin)

    @property
    def is_open(self) -> bool:
        """Whether tokens may be sent."""
        if self._requirement is None or self.pin is None:
            return True
        if self._appraised_s is None or not self.pin.is_connected:
            return False
        return time.monotonic() - self._appraised_s < self._requirement.max_age_s

    async def open(self, session: aiohttp.ClientSession, timeouts: NodeTimeouts) -> None:
        """Appraise the node, unless nothing is required; steps as above.

        Raises:
            AppraisalError: its machine is not what is required.
            PeerError, TransportError: it gives no evidence that could be read.
        """
        requirement, pin = self._requirement, self.pin
        if requirement is None or pin is None:
            return
        self._appraised_s = None
        begun_s, pin.is_appraising = time.monotonic(), True
        try:
            # 1. evidence
            nonce = secrets.token_bytes(NONCE_BYTES)
            evidence = await self._evidence(session, timeouts, nonce)
            # 2. verdict
            certificate = pin.certificate
            if certificate is None:
                raise AppraisalError(Reason.BINDING_TLS, "evidence", "no connection was seen")
            key = key_sha256(read_certificate(certificate).public_key())
            demands = Demands(nonce, key, requirement.weights_root)
            await asyncio.to_thread(verify_evidence, evidence, requirement, demands)
        finally:
            pin.is_appraising = False
        # 3. since when
        self._appraised_s = begun_s
        _log.info("the node's machine is what the policy asks for")

    async def _evidence(
        self, session: aiohttp.ClientSession, timeouts: NodeTimeouts, nonce: bytes
    ) -> bytes:
        limit = aiohttp.ClientTimeout(sock_connect=timeouts.connect_s, total=timeouts.card_s)
        request = session.get(
            self._address.url + ATTESTATION_PATH,
            params={NONCE_PARAMETER: nonce.hex()},
            timeout=limit,
            allow_redirects=False,
        )
        with network_faults(timeouts.card_s):
            async with request as response:
                if response.status == _NOT_FOUND:
                    raise AppraisalError(
                        Reason.MISSING, "evidence", "the node has none: it runs without --attester"
                    )
                await check_status(response)
                return await read_body(response, MAX_BYTES)


def verify_evidence(evidence: bytes, requirement: Requirement, demands: Demands) -> None:
    """A node's bundle is what is required, now.

    Raises:
        AppraisalError: it is not, or needs a library that is missing here.
        DecodeError: malformed.
    """
    try:
        bundle = decode_bundle(evidence) + Bundle(endorsements=requirement.endorsements)
        require(appraise(bundle, requirement.policy, demands, datetime.now(UTC)))
    except UsageError as error:
        raise AppraisalError(Reason.MISSING, "evidence", str(error)) from error

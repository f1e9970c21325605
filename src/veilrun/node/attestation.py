"""GET /veilrun/v1/attestation: evidence of this machine for a client's nonce.

One at a time, and few may wait: devices are slow, and clients ask once per connection.

Invariant: the engine is not touched, so nobody's answers wait for evidence.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from aiohttp import web

from veilrun.attest.live.machine import Attested, AttesterError, evidence_of
from veilrun.errors import DecodeError
from veilrun.node.front import Refusal
from veilrun.wire.attestation import ATTESTATION_PATH, NONCE_PARAMETER, decode_nonce

_log = logging.getLogger(__name__)

_MAX_ASKING: Final = 8
_BUSY_S: Final = 1.0


class AttestationPath:
    """The path for one node: what its evidence is about, and who makes it."""

    def __init__(self, attested: Attested) -> None:
        self._attested = attested
        # A client that leaves does not stop the device: the next one waits for its thread.
        self._device = ThreadPoolExecutor(1, "attester")
        self._n_asking = 0

    def add_to(self, app: web.Application) -> None:
        """Serve the path in a node's application, behind its key check."""
        app.router.add_get(ATTESTATION_PATH, self._give, allow_head=False)

    async def _give(self, http: web.Request) -> web.Response:
        try:
            nonce = decode_nonce(http.query.get(NONCE_PARAMETER, ""))
        except DecodeError as error:
            raise Refusal(400, "invalid_request", str(error), param=error.field) from error
        if self._n_asking >= _MAX_ASKING:
            raise Refusal(
                429, "queue_full", "too many ask for evidence at a time",
                outcome="busy", retry_after_s=_BUSY_S,
            )  # fmt: skip
        self._n_asking += 1
        try:
            loop = asyncio.get_running_loop()
            body = await loop.run_in_executor(self._device, evidence_of, self._attested, nonce)
        except AttesterError as error:
            _log.error("no evidence: %s", error)
            raise Refusal(
                503, "attestation_failed", "this machine's attester gives no evidence",
                outcome="unavailable",
            ) from error  # fmt: skip
        finally:
            self._n_asking -= 1
        return web.Response(body=body, content_type="application/json")

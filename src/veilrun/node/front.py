"""What every HTTP surface of a node has: the key check, bounded bodies, errors as JSON.

Errors are `{"error": {"message", "type", "param", "code"}}`; a path that is not served is 404.

Invariant: neither bodies nor ids are logged, and a fault of ours is still an answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import math
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from veilrun.node.exchange import ClientGone
from veilrun.node.metrics import Outcome
from veilrun.wire.generate import HEALTH_PATH

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What the node takes on.

    max_running: answers at a time; a request with n answers counts n times.
    max_queued: requests that may wait for their turn; one more is answered 429.
    max_body_bytes: a request's body. body_timeout_s: how long it may take to arrive.
    """

    max_running: int = 16
    max_queued: int = 64
    max_body_bytes: int = 4 * 2**20
    body_timeout_s: float = 30.0


class Refusal(Exception):
    """An HTTP error answer: not a fault of ours, so no `VeilrunError`."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        outcome: Outcome = "invalid",
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.outcome = outcome
        self.retry_after_s = retry_after_s
        self.body: dict[str, object] = {
            "error": {"message": message, "type": _type(status), "param": param, "code": code}
        }

    def response(self) -> web.Response:
        """What the client gets."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(math.ceil(self.retry_after_s))
        return web.json_response(self.body, status=self.status, headers=headers)


class Front:
    """Middleware and readers for one application. With `api_key`, clients must send it."""

    def __init__(self, limits: ServerLimits, api_key: str | None) -> None:
        self._limits = limits
        self._key_digest = None if api_key is None else _digest(api_key)

    def application(self) -> web.Application:
        """An application without routes; run it with `handler_cancellation=True`."""
        app = web.Application(
            client_max_size=self._limits.max_body_bytes, middlewares=[self._guard]
        )
        app.on_response_prepare.append(_hide_software)
        return app

    async def read(self, http: web.Request) -> bytes:
        """The whole body, if it is short and quick enough."""
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                return await http.read()
        except TimeoutError as error:
            raise Refusal(408, "request_timeout", "the body took too long to arrive") from error
        except web.HTTPRequestEntityTooLarge as error:
            limit = self._limits.max_body_bytes
            message = f"the body is larger than {limit} bytes"
            raise Refusal(413, "body_too_large", message) from error
        except web.RequestPayloadError as error:
            raise Refusal(400, "invalid_request", "the body is not what it says") from error

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.path != HEALTH_PATH:
                self._check_key(request)
            return await handler(request)
        except Refusal as refusal:
            return refusal.response()
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed):
            return Refusal(404, "not_found", "there is nothing here").response()
        except web.HTTPException as error:
            return Refusal(error.status, "http_error", error.reason).response()
        except ClientGone:
            raise  # there is nobody left to answer
        except Exception as error:  # noqa: BLE001 - our own fault, and still an answer
            _log.error("a request failed with %s", type(error).__name__)
            return Refusal(500, "internal_error", "the node failed").response()

    def _check_key(self, http: web.Request) -> None:
        if self._key_digest is None:
            return
        scheme, _, key = http.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            _digest(key.strip()), self._key_digest
        ):
            raise Refusal(401, "invalid_api_key", "the API key is missing or wrong")


def _type(status: int) -> str:
    names = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    return names.get(status, "invalid_request_error" if status < 500 else "server_error")


def _digest(key: str) -> bytes:
    # Digests have one length, so comparing them tells nothing about the key's.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


async def _hide_software(_: Any, response: web.StreamResponse) -> None:
    response.headers["Server"] = "veilrun-node"

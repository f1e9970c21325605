"""Who may talk to the proxy, what every reply says of itself, and the shape of every error.

Covered: other users of the network (loopback or an API key), web pages that reach for a local
proxy (DNS rebinding: the Host header; forms and simple requests: the content type; no CORS).
Not covered: every local user and program that reaches the loopback port, when no API key is
set; what applications with access do to each other.

Invariant: a request that reaches a handler has passed every guard; every reply but those of
aiohttp's own HTTP parser carries the mode's row of the guarantee ladder.
"""

from __future__ import annotations

import hmac
import logging
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from veilrun.errors import UsageError, VeilrunError
from veilrun.serve.openai_errors import ErrorReply, RequestFault, reply_to
from veilrun.transport.tls import is_loopback
from veilrun.types import EE, Mode

HEALTH_PATH: Final = "/health"

_log = logging.getLogger(__name__)


def mode_headers(mode: Mode = EE) -> dict[str, str]:
    """The mode's guarantee, complete, as response headers."""
    return {
        "x-veilrun-mode": mode.name,
        "x-veilrun-stands-against": mode.stands_against,
        "x-veilrun-does-not-stop": mode.does_not_stop,
    }


def guards(*, host: str, api_key: str | None) -> list[Middleware]:
    """The middlewares of an application that listens on `host`, outermost first."""
    return [web.middleware(one) for one in (_errors, _host_guard(host), _key_guard(api_key))]


async def add_mode_headers(_: web.Request, response: web.StreamResponse) -> None:
    """For `Application.on_response_prepare`: it sees every reply, errors included."""
    response.headers.update(_REPLY_HEADERS)


_REPLY_HEADERS: Final = {**mode_headers(), "Server": "veilrun-proxy"}


async def read_json(request: web.Request) -> bytes:
    """The body of a request that says it is JSON.

    A web page can send any other type to a local address without asking the browser first.
    """
    if request.content_type != "application/json":
        raise RequestFault("the content type must be application/json", status=415)
    return await request.read()


def error_response(reply: ErrorReply) -> web.Response:
    """An error as its own reply."""
    return web.Response(
        body=reply.body(),
        status=reply.status,
        headers=reply.headers,
        content_type="application/json",
    )


def failure(error: Exception) -> ErrorReply:
    """The reply to any error. The log gets its type, never its text, which may name ids."""
    if isinstance(error, VeilrunError):
        if not isinstance(error, UsageError):
            _log.warning("%s", type(error).__name__)
        return reply_to(error)
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = "" if place is None else f"{place.tb_frame.f_code.co_name}:{place.tb_lineno}"
    _log.error("internal error: %s in %s", type(error).__name__, where)
    return ErrorReply(500, "internal error of the proxy", "server_error")


async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        status = error.status
        message = f"{request.method} {request.path}: {error.reason}"
        reply = ErrorReply(status, message, "invalid_request_error", headers=_allow(error))
    except Exception as error:  # noqa: BLE001 - the last handler: its reply is the report
        reply = failure(error)
    return error_response(reply)


def _allow(error: web.HTTPException) -> dict[str, str]:
    allowed = error.headers.get("Allow")
    return {} if allowed is None else {"Allow": allowed}


def _host_guard(host: str) -> Middleware:
    """On loopback, refuse names that a web page could have pointed at this machine."""
    check = is_loopback(host)

    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if check and not is_loopback(_host_name(request.headers.get("Host", ""))):
            raise RequestFault(
                "the Host header must name this machine: localhost, 127.0.0.1 or [::1]",
                code="host_not_allowed",
                status=403,
            )
        return await handler(request)

    return guard


def _host_name(host_header: str) -> str:
    """The host without its port; `[::1]:8080` keeps its brackets."""
    name, colon, port = host_header.rpartition(":")
    return name if colon and port.isdigit() else host_header


def _key_guard(api_key: str | None) -> Middleware:
    """With an API key set, ask for it everywhere but at the health check."""
    expected = None if api_key is None else api_key.encode()

    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if expected is not None and request.path != HEALTH_PATH:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            given_bytes = given.strip().encode("utf-8", "surrogateescape")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given_bytes, expected):
                raise RequestFault("wrong or missing API key", code="invalid_api_key", status=401)
        return await handler(request)

    return guard

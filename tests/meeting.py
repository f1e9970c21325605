"""Two ends of a channel on this machine, for tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from veilrun.transport import channel
from veilrun.transport.channel import Channel
from veilrun.transport.connection import DEFAULT_BOUNDS, Bounds
from veilrun.transport.tls import client_context, server_context

HOST = "127.0.0.1"


def together(*calls: Callable[[], Any]) -> list[Any]:
    """The calls' results; each call has a thread."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [one.result(timeout=60) for one in [pool.submit(call) for call in calls]]


def listening(
    identity, bounds: Bounds = DEFAULT_BOUNDS, name: str | None = "left", port: int = 0
) -> channel.Listener:
    """Whoever comes is called `name`."""
    context = server_context(identity)
    return channel.listen(HOST, port, context=context, name_of=lambda *_: name, bounds=bounds)


def calling(identity, port: int, bounds: Bounds = DEFAULT_BOUNDS, **more: Any) -> Channel:
    """Connects; the other side is called "right"."""
    context = client_context(identity.certificate_pem)
    return channel.connect(HOST, port, peer="right", context=context, bounds=bounds, **more)


@contextlib.contextmanager
def pair(identity, bounds: Bounds = DEFAULT_BOUNDS) -> Iterator[tuple[Channel, Channel]]:
    """`left`, the client, whose peer is "right"; and the other end."""
    with listening(identity, bounds) as listener:
        left, right = together(
            lambda: calling(identity, listener.port, bounds), lambda: listener.accept(10)
        )
    with left, right:
        yield left, right

"""A software TPM, and a relay that lies, for tests of nodes that prove what they are."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from veilrun.wire.attestation import ATTESTATION_PATH
from veilrun.wire.generate import GENERATE_PATH, MODELS_PATH


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def software_tpm(state: Path) -> Iterator[str]:
    """The address of a TPM that lives as long as the block."""
    port = free_port()  # the tools look for the control channel one port higher
    process = subprocess.Popen(
        [
            *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state.resolve()}"),
            *("--server", f"type=tcp,port={port},bindaddr=127.0.0.1"),
            *("--ctrl", f"type=tcp,port={port + 1},bindaddr=127.0.0.1"),
            *("--flags", "not-need-init,startup-clear"),
        ]
    )
    try:
        deadline_s = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline_s, "swtpm does not listen"
                time.sleep(0.05)
        yield f"swtpm:host=127.0.0.1,port={port}"
    finally:
        process.terminate()
        process.wait()


@dataclass
class Relay:
    """What stands where a node should: it answers with whatever evidence it likes."""

    card: bytes
    evidence: Callable[[bytes], bytes]
    nonces: list[bytes] = field(default_factory=list)
    n_prompts: int = 0

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get(MODELS_PATH, self._card)
        app.router.add_get(ATTESTATION_PATH, self._evidence)
        app.router.add_post(GENERATE_PATH, self._prompt)
        return app

    async def _card(self, _: web.Request) -> web.Response:
        return web.Response(body=self.card)

    async def _evidence(self, http: web.Request) -> web.Response:
        nonce = bytes.fromhex(http.query["nonce"])
        self.nonces.append(nonce)
        return web.Response(body=await asyncio.to_thread(self.evidence, nonce))

    async def _prompt(self, _: web.Request) -> web.Response:
        self.n_prompts += 1
        raise web.HTTPServiceUnavailable


@asynccontextmanager
async def listening(relay: Relay, context: ssl.SSLContext, port: int = 0) -> AsyncIterator[str]:
    runner = web.AppRunner(relay.application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=context)
    await site.start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()

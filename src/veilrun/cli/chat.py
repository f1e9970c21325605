"""`veilrun chat`: talk through a proxy, one question or a conversation."""

from __future__ import annotations

import asyncio
import json
import unicodedata
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.markup import escape

from veilrun.cli.options import JsonOption, read_api_key, stderr, stdout
from veilrun.config import api_key_from_environment
from veilrun.errors import (
    DecodeError,
    PeerError,
    RefusedError,
    TransportError,
    UsageError,
    VeilrunError,
    VerificationError,
)
from veilrun.transport.tls import is_loopback, parse_pin

PromptArgument = Annotated[str | None, typer.Argument(help="Ask this and end.")]
UrlOption = Annotated[str, typer.Option(help="The proxy's base URL.")]
PinOption = Annotated[
    str | None,
    typer.Option(
        help="The proxy's certificate, as the proxy printed it: sha256:…; without it, https "
        "trusts the authorities that this machine trusts."
    ),
]
ModelOption = Annotated[
    str | None, typer.Option(help="Model to talk to; default: the first that the proxy lists.")
]
SystemOption = Annotated[str | None, typer.Option(help="A system message to begin with.")]
MaxTokensOption = Annotated[int | None, typer.Option(min=1, help="Length of an answer.")]
TemperatureOption = Annotated[
    float | None, typer.Option(min=0, max=2, help="0 always takes the likeliest token.")
]
ApiKeyFileOption = Annotated[Path | None, typer.Option(help="File with the proxy's API key.")]

Messages = list[dict[str, str]]


def chat(
    prompt: PromptArgument = None,
    url: UrlOption = "http://127.0.0.1:8080/v1",
    pin: PinOption = None,
    model: ModelOption = None,
    system: SystemOption = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    api_key_file: ApiKeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Talk through a proxy. Without PROMPT it is a conversation; Ctrl-D ends it."""
    if as_json and prompt is None:
        raise UsageError("--json needs a PROMPT: a conversation is for people")
    options = {"max_tokens": max_tokens, "temperature": temperature}
    api_key = read_api_key(api_key_file) if api_key_file else api_key_from_environment()
    proxy = _Proxy(url.rstrip("/"), _pin(url, pin), api_key, options)
    model = model or asyncio.run(proxy.first_model())
    messages: Messages = [] if system is None else [{"role": "system", "content": system}]
    if prompt is None:
        _converse(proxy, model, messages)
        return
    messages.append({"role": "user", "content": prompt})
    if as_json:
        answer = asyncio.run(proxy.answer(model, messages, lambda _: None))
        typer.echo(json.dumps({"model": model, "answer": answer}))
    else:
        asyncio.run(proxy.answer(model, messages, _shown_on(stdout())))
        stdout().out("")


def _converse(proxy: _Proxy, model: str, messages: Messages) -> None:
    """Question and answer until the end of input. An error or Ctrl-C takes one turn back."""
    console = stdout()
    console.print(f"[bold]{escape(model)}[/] at {escape(proxy.url)}. Ctrl-D ends.\n")
    while True:
        try:
            question = console.input("[bold cyan]you>[/] ")
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if not question.strip():
            continue
        messages.append({"role": "user", "content": question})
        try:
            answer = asyncio.run(proxy.answer(model, messages, _shown_on(console)))
            messages.append({"role": "assistant", "content": answer})
        except VeilrunError as error:
            messages.pop()
            stderr().print(f"\n[bold red]error:[/] {escape(str(error))}")
        except KeyboardInterrupt:
            messages.pop()
        console.out("\n")


def _shown_on(console: Console) -> Callable[[str], None]:
    def show(text: str) -> None:
        console.out(harmless(text), end="", highlight=False)
        console.file.flush()

    return show


def harmless(text: str) -> str:
    """Text without the control characters that move a terminal's cursor or change its settings.

    A node chooses the tokens, so it could write any of them.
    """
    return "".join(
        one if one in "\n\t" or unicodedata.category(one) != "Cc" else "\N{REPLACEMENT CHARACTER}"
        for one in text
    )


def _pin(url: str, pin: str | None) -> bytes | None:
    """The certificate that the proxy must show, if one is named. Plain HTTP has none, and is
    for this machine only: it would show every word to the network.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(f"not the URL of a proxy: {url}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"not the URL of a proxy: {url}")
    if parts.scheme == "http":
        if not is_loopback(parts.hostname):
            raise RefusedError(
                f"plain HTTP would show the conversation on the way to {parts.hostname}: use https"
            )
        if pin is not None:
            raise UsageError("plain HTTP has no certificate: leave out --pin, or use https")
    return None if pin is None else parse_pin(pin)


@dataclass(frozen=True, slots=True, repr=False)
class _Proxy:
    """A proxy as an application sees it: HTTP and OpenAI's JSON. pin: of its certificate."""

    url: str
    pin: bytes | None
    api_key: str | None
    options: dict[str, Any]

    async def first_model(self) -> str:
        """The name of the first model that the proxy lists."""
        body = b"".join([data async for data in self._call("GET", "/models", None)])
        try:
            return str(json.loads(body)["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise DecodeError(f"{self.url} does not list its models as OpenAI does") from error

    async def answer(self, model: str, messages: Messages, show: Callable[[str], None]) -> str:
        """Stream one answer to `show`; return all of it."""
        from veilrun.serve.node_answers import EventReader

        given = {name: value for name, value in self.options.items() if value is not None}
        body = {"model": model, "messages": messages, "stream": True, **given}
        events, text = EventReader(), ""
        async with aclosing(self._call("POST", "/chat/completions", body)) as stream:
            async for data in stream:
                for event in events.feed(data):
                    if event == b"[DONE]":
                        return text
                    piece = _piece(event)
                    show(piece)
                    text += piece
        raise TransportError("the answer broke off")

    async def _call(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> AsyncGenerator[bytes]:
        import aiohttp

        headers = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        patience = aiohttp.ClientTimeout(total=None, sock_connect=10)
        trust = True if self.pin is None else aiohttp.Fingerprint(self.pin)
        try:
            async with (
                aiohttp.ClientSession(timeout=patience, headers=headers) as session,
                # A redirect could lead to where nobody checked the URL.
                session.request(
                    method, self.url + path, json=body, ssl=trust, allow_redirects=False
                ) as response,
            ):
                if response.status != 200:
                    raise _refusal(response.status, await response.content.read(2**16))
                async for data in response.content.iter_any():
                    yield data
        except aiohttp.ServerFingerprintMismatch as error:
            raise VerificationError(
                f"the proxy's certificate is sha256:{error.got.hex()}, "
                f"expected sha256:{error.expected.hex()}"
            ) from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise VerificationError(
                "no authority vouches for the proxy's certificate; name the certificate with --pin"
            ) from error
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, ValueError) as error:
            raise UsageError(f"not the URL of a proxy: {self.url}") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TransportError(f"no answer from {self.url}; is `veilrun proxy` up?") from error


def _piece(event: bytes) -> str:
    """The text that one chunk adds."""
    try:
        chunk = json.loads(event)
        if "error" in chunk:
            raise PeerError(str(chunk["error"]["message"]))
        return "".join(one["delta"].get("content") or "" for one in chunk["choices"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DecodeError("the proxy sent a chunk that is not OpenAI's") from error


def _refusal(status: int, body: bytes) -> VeilrunError:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        message = f"status {status}"
    kind = UsageError if status < 500 else PeerError if status == 502 else TransportError
    return kind(message)

"""`veilrun proxy`: the OpenAI-compatible endpoint on your machine, in front of a node."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from veilrun.cli.options import (
    GraceOption,
    HostOption,
    JsonOption,
    KeyOption,
    PassphraseFileOption,
    PortOption,
    guarantee,
    log_to_stderr,
    read_api_key,
    read_passphrase,
    stdout,
)
from veilrun.config import API_KEY_VARIABLE, api_key_from_environment
from veilrun.errors import KeyFileError, RefusedError, UsageError
from veilrun.transport.tls import is_loopback
from veilrun.types import EE

if TYPE_CHECKING:  # aiohttp and transformers take seconds to import, and --help needs neither
    from veilrun.serve.attested import Requirement
    from veilrun.serve.node_address import NodeAddress
    from veilrun.serve.service import Ready

NodeOption = Annotated[str, typer.Option("--node", help="The node's URL, https://host:port.")]
PinOption = Annotated[
    str | None, typer.Option(help="The node's certificate, as the node printed it: sha256:…")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FINGERPRINT",
        help="Which of the models that KEY encrypted; needed where there is more than one.",
    ),
]
IdentityOption = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        help="Folder of the proxy's own TLS certificate and key, made once; for addresses that "
        "other machines reach. Default: `proxy` in veilrun's folder for settings.",
    ),
]
ApiKeyFileOption = Annotated[
    Path | None,
    typer.Option(
        help="File with the key that applications must send; needed on any address that other "
        f"machines reach ({API_KEY_VARIABLE} works too)."
    ),
]
NodeApiKeyFileOption = Annotated[
    Path | None, typer.Option(help="File with the key that the node asks of its clients.")
]
PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--require-attestation",
        help="Send nothing until evidence of the node's machine satisfies this policy, a TOML "
        "file; again after every reconnection.",
        metavar="POLICY",
    ),
]
EndorsementsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--attestation-with",
        help="What vendors say: certificates, revocation lists, collateral, manifests, event "
        "logs. Files, or folders of them; repeatable.",
    ),
]
PlainHttpOption = Annotated[
    bool,
    typer.Option(
        "--insecure-plain-http-for-loopback-only",
        help="Reach a node on this machine without TLS.",
    ),
]


def proxy(
    key_file: KeyOption,
    node: NodeOption,
    pin: PinOption = None,
    model: ModelOption = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8080,
    identity: IdentityOption = None,
    api_key_file: ApiKeyFileOption = None,
    node_api_key_file: NodeApiKeyFileOption = None,
    passphrase_file: PassphraseFileOption = None,
    require_attestation: PolicyOption = None,
    attestation_with: EndorsementsOption = None,
    grace: GraceOption = 10.0,
    insecure_plain_http: PlainHttpOption = False,
    as_json: JsonOption = False,
) -> None:
    """Serve OpenAI's API on this machine; the node behind it sees encrypted ids only."""
    from veilrun.equivariant.client import find_client_kit
    from veilrun.keys import load_key
    from veilrun.serve.service import Listener, run_proxy, verify_listener

    node_key = None if node_api_key_file is None else read_api_key(node_api_key_file)
    address = _address(node, pin, node_key, insecure_plain_http=insecure_plain_http)
    api_key = api_key_from_environment() if api_key_file is None else read_api_key(api_key_file)
    if api_key == "":
        raise UsageError(f"{API_KEY_VARIABLE} is empty; an empty API key would let nobody in")
    listener = Listener(_identity_folder(identity, host), host, port, api_key, grace)
    verify_listener(listener)  # all before the passphrase is asked for
    requirement = _requirement(require_attestation, attestation_with or [])
    fingerprint = _expected(key_file, model)
    key = load_key(key_file, read_passphrase(passphrase_file))
    kit = find_client_kit(key_file, key, fingerprint)
    if requirement is not None:
        requirement = replace(requirement, weights_root=kit.weights_root)
    log_to_stderr()

    def announce(ready: Ready) -> None:
        _announce(ready, with_api_key=api_key is not None, as_json=as_json)

    asyncio.run(run_proxy(kit, address, listener, announce, requirement=requirement))


def _expected(key_file: Path, model: str | None) -> str:
    """The fingerprint that the node must report: our choice, made before the node is asked."""
    from veilrun.equivariant.client import kits_folder, list_kits

    kits = list_kits(key_file)
    if not kits:
        raise KeyFileError(
            f"there is no client kit in {kits_folder(key_file)}: `veilrun encrypt` puts it there"
        )
    named = [kit for kit in kits if model is None or model in kit]
    if len(named) == 1:
        return named[0][0]
    have = "".join(f"\n  {name} ({fingerprint})" for fingerprint, name in named or kits)
    if not named:
        raise UsageError(f"{key_file} has no model {model!r}; it has{have}")
    raise RefusedError(
        f"{key_file} has more than one model, and the node must not choose; say which with "
        f"--model NAME or --model FINGERPRINT:{have}"
    )


def _requirement(policy: Path | None, endorsements: list[Path]) -> Requirement | None:
    if policy is None:
        if endorsements:
            raise UsageError("--attestation-with needs --require-attestation")
        return None
    from veilrun.attest.files import load_endorsements, load_policy
    from veilrun.serve.attested import Requirement

    return Requirement(load_policy(policy), endorsements=load_endorsements(endorsements))


def _identity_folder(given: Path | None, host: str) -> Path:
    if given is not None and is_loopback(host):
        raise UsageError(f"on {host} applications are served over plain HTTP: leave out --identity")
    return given or Path(typer.get_app_dir("veilrun")) / "proxy"


def _address(
    url: str, pin: str | None, api_key: str | None, *, insecure_plain_http: bool
) -> NodeAddress:
    from veilrun.serve.node_address import insecure_plain_http_node_for_loopback_only, pinned_node

    if insecure_plain_http:
        if pin is not None:
            raise UsageError("plain HTTP has no certificate: leave out --pin, or use https")
        return insecure_plain_http_node_for_loopback_only(url, api_key=api_key)
    if pin is None:
        raise UsageError("--pin is missing: the node prints it when it starts, sha256:…")
    return pinned_node(url, pin, api_key=api_key)


def _announce(ready: Ready, *, with_api_key: bool, as_json: bool) -> None:
    own = ready.identity
    if as_json:
        line = {
            "url": ready.url,
            "model": ready.model,
            "fingerprint": ready.fingerprint,
            "mode": EE.name,
            "pin": own.pin if own else None,
            "certificate": str(own.certificate_path) if own else None,
        }
        typer.echo(json.dumps(line))
        return
    console = stdout()
    console.print(
        f"[green]serving[/] [bold]{escape(ready.model)}[/] at [bold]{escape(ready.url)}[/]"
    )
    if own:
        console.print(
            f"pin {own.pin}\ncertificate {escape(str(own.certificate_path))}: applications must "
            "trust it, OpenAI's client through SSL_CERT_FILE",
            soft_wrap=True,
        )
    console.print(guarantee(EE))
    api_key = "YOUR_API_KEY" if with_api_key else "none-needed"
    console.print("\n[dim]in Python[/]")
    # `out` leaves text as it is: brackets are no markup, and lines can be copied whole.
    console.out(
        "from openai import OpenAI\n"
        f'client = OpenAI(base_url="{ready.url}", api_key="{api_key}")\n'
        "reply = client.chat.completions.create(\n"
        f'    model="{ready.model}", messages=[{{"role": "user", "content": "Hello"}}]\n'
        ")\n"
        "print(reply.choices[0].message.content)\n",
        highlight=False,
    )
    pin = f" --pin {own.pin}" if own else ""
    console.print(f"or: veilrun chat --url {escape(ready.url)}{pin}", soft_wrap=True)

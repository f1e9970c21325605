"""`veilrun node OUT`: serve an encrypted checkpoint. The untrusted side; no key, no tokenizer."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from veilrun.cli.attester import (
    AttesterOption,
    Choice,
    GpuAttesterOption,
    TpmAddressOption,
    find_attester,
)
from veilrun.cli.node_engines import (
    CacheGib,
    Device,
    Dtype,
    EngineChoice,
    EngineName,
    EngineOptions,
    MaxModelLen,
    MaxRunning,
    VllmArguments,
)
from veilrun.cli.node_tune import NoTrialOption, RecordsOption, TuneOption, TuneOptions
from veilrun.cli.options import (
    GraceOption,
    HostOption,
    JsonOption,
    PortOption,
    guarantee,
    log_to_stderr,
    read_api_key,
    stderr,
    stdout,
)
from veilrun.cli.tune_recommend import (
    ApproximateOption,
    DraftOption,
    NodeWorkloadOption,
    TunerOption,
)
from veilrun.errors import RefusedError
from veilrun.transport import tls
from veilrun.types import EE
from veilrun.wire.manifest import Manifest

Out = Annotated[Path, typer.Argument(help="Folder that `veilrun encrypt` wrote.", metavar="OUT")]
Name = Annotated[
    str | None, typer.Option(help="Model name in answers; default: the folder's name.")
]
MaxQueued = Annotated[int, typer.Option(min=0, help="Requests that may wait; then 429.")]
IdentityFolder = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        help="Folder of the node's TLS certificate and key, made once; never inside OUT. "
        "Default: `node` in veilrun's folder for settings, so that the pin outlives OUT.",
    ),
]
TlsNames = Annotated[
    list[str] | None,
    typer.Option("--tls-name", help="Extra host name in a new certificate; repeatable."),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        help="File whose content clients must send as a bearer key; needed on any address that "
        "other machines reach."
    ),
]
NoApiKey = Annotated[
    bool,
    typer.Option(
        "--insecure-no-api-key",
        help="Answer whoever reaches the port, on any address: strangers can use the machine up.",
    ),
]
PlainHttp = Annotated[
    bool,
    typer.Option(
        "--insecure-plain-http-for-loopback-only",
        help="No TLS. Whoever can read this machine's loopback traffic reads the cipher ids.",
    ),
]


@dataclass(frozen=True, slots=True)
class _Announcement:
    """What is printed once the node can answer. pin: None over plain HTTP.

    attestation_key: of the TPM, as policies name it; None without one.
    """

    url: str
    pin: str | None
    model: str
    manifest: Manifest
    attestation_key: str | None = None


def node(
    out: Out,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8443,
    engine: EngineChoice = EngineName.transformers,
    name: Name = None,
    max_running: MaxRunning = 16,
    max_queued: MaxQueued = 64,
    max_model_len: MaxModelLen = None,
    cache_gib: CacheGib = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    vllm_argument: VllmArguments = None,
    identity: IdentityFolder = None,
    tls_name: TlsNames = None,
    api_key_file: ApiKeyFile = None,
    attester: AttesterOption = None,
    gpu_attester: GpuAttesterOption = None,
    tpm: TpmAddressOption = None,
    tune: TuneOption = None,
    workload: NodeWorkloadOption = None,
    tuner: TunerOption = None,
    approximate: ApproximateOption = False,
    draft: DraftOption = None,
    records: RecordsOption = None,
    no_trial: NoTrialOption = False,
    insecure_no_api_key: NoApiKey = False,
    grace: GraceOption = 30.0,
    insecure_plain_http: PlainHttp = False,
    as_json: JsonOption = False,
) -> None:
    """Serve an encrypted checkpoint to proxies: token ids in, token ids out."""
    from veilrun.node.folder import open_folder
    from veilrun.node.server import ServerLimits
    from veilrun.node.service import Listener, run_middle, run_node

    manifest = open_folder(out)
    tuning = TuneOptions(tune, workload, tuner, approximate, draft, records, no_trial)
    tuning.check(manifest)
    options = EngineOptions(
        engine, max_running, max_model_len, cache_gib, dtype, device, vllm_argument, tuning
    )
    api_key = _api_key(host, api_key_file, plain=insecure_plain_http, no_key=insecure_no_api_key)
    own = None if insecure_plain_http else _identity(identity, out, tls_name or [])
    log_to_stderr()
    model = name or out.resolve().name
    attested, tpm_key = find_attester(Choice(attester, gpu_attester, tpm), own, manifest)
    listener = Listener(host, port, _tls_context(own), api_key, grace, attested)

    def on_ready(actual_port: int) -> None:
        url = _url(host, actual_port, "https" if own else "http")
        pin = own.pin if own else None
        _announce(_Announcement(url, pin, model, manifest, tpm_key), as_json=as_json)

    limits = ServerLimits(max_running=max_running, max_queued=max_queued)
    served = (out, manifest, model, listener, limits, on_ready)
    if manifest.ends == "client":
        asyncio.run(run_middle(options.middle(out), *served))
    else:
        asyncio.run(run_node(options.engine(out), *served))


def _api_key(host: str, file: Path | None, *, plain: bool, no_key: bool) -> str | None:
    """The key that clients must send. An address that other machines reach asks for TLS always,
    and for a key by default."""
    api_key = read_api_key(file) if file else None
    if tls.is_loopback(host):
        return api_key
    if plain:
        raise RefusedError(
            f"plain HTTP on {host} would show every id to the network; leave out "
            "--insecure-plain-http-for-loopback-only, or listen on 127.0.0.1"
        )
    if api_key is not None:
        return api_key
    if not no_key:
        raise RefusedError(
            f"{host} can be reached from other machines: set an API key (--api-key-file), or "
            "listen on 127.0.0.1"
        )
    stderr().print(
        f"[yellow]no API key:[/] whoever reaches {escape(host)} can use this node", soft_wrap=True
    )
    return None


def _identity(folder: Path | None, out: Path, hosts: list[str]) -> tls.Identity:
    """The node's identity; a private key inside OUT would travel with every copy of OUT."""
    folder = folder or Path(typer.get_app_dir("veilrun")) / "node"
    if folder.resolve().is_relative_to(out.resolve()):
        raise RefusedError(f"{folder} lies inside {out}: copies of OUT would carry the TLS key")
    return tls.ensure_identity(folder, hosts)


def _tls_context(own: tls.Identity | None) -> ssl.SSLContext | None:
    return None if own is None else tls.server_context(own)


def _url(host: str, port: int, scheme: str) -> str:
    """How to reach the node; a wildcard address is no address, so the machine's name stands in."""
    if host in ("", "0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = socket.gethostname()
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _announce(announcement: _Announcement, *, as_json: bool) -> None:
    url, pin = announcement.url, announcement.pin
    manifest = announcement.manifest
    if as_json:
        line = {
            "url": url,
            "pin": pin,
            "model": announcement.model,
            "fingerprint": manifest.fingerprint,
        }
        if announcement.attestation_key:
            line["attestation_key"] = announcement.attestation_key
        typer.echo(json.dumps(line))
        return
    pinned = f" --pin {pin}" if pin else ""
    # soft_wrap: a pin or a command that is broken into lines cannot be copied.
    console = stdout()
    console.print(
        f"serving [bold]{escape(announcement.model)}[/] on {escape(url)}\n"
        f"fingerprint {manifest.fingerprint}\n"
        f"pin {pin or 'none: plain HTTP, for this machine only'}",
        soft_wrap=True,
    )
    if announcement.attestation_key:
        console.print(
            f"attestation key {announcement.attestation_key}: a policy names it under \\[tpm]",
            soft_wrap=True,
        )
    console.print(guarantee(EE))
    console.print(
        f"on the machine with the key: veilrun proxy --key KEY --node {escape(url)}{pinned}",
        soft_wrap=True,
    )

"""A node that proves what it is, on a real software TPM; a proxy that sends nothing before.

Node and proxy are processes; a relay that lies is ours, and has what an attacker could have.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import aiohttp
import attest_rig
import openai
import pytest
from aiohttp import web
from cryptography import x509

from integration.attested import Relay, free_port, listening, software_tpm
from integration.proxied import serving
from veilrun.attest.bundle import decode_bundle, encode_bundle
from veilrun.attest.certificates import key_sha256
from veilrun.attest.claims import Kind
from veilrun.attest.kinds import FAMILIES
from veilrun.attest.live.machine import Attested, evidence_of
from veilrun.attest.live.tpm import TpmAttester
from veilrun.attest.policy_file import parse_policy
from veilrun.attest.reasons import AppraisalError, Reason
from veilrun.checkpoint.folder import Checkpoint
from veilrun.checkpoint.merkle import weights_root
from veilrun.demo import child
from veilrun.equivariant.client import ClientKit, find_client_kit, kits_folder
from veilrun.equivariant.compile import encrypt
from veilrun.errors import TransportError
from veilrun.keys import MasterKey, save_key
from veilrun.serve.ask import Ask, Sampling
from veilrun.serve.attested import Requirement
from veilrun.serve.ends import Ends
from veilrun.serve.middle_client import MiddleClient
from veilrun.serve.node_address import pinned_node
from veilrun.serve.node_client import NodeClient
from veilrun.serve.proxy import ProxySettings, create_app
from veilrun.serve.text import load_text_side
from veilrun.transport.tls import Identity, ensure_identity, server_context
from veilrun.wire.manifest import MANIFEST_FILE, NodeCard, decode_manifest, encode_card

PROGRAMS = ("swtpm", "tpm2_quote")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}: swtpm and tpm2-tools")

PASSPHRASE = "a passphrase that no node may see"
ASK = Ask((1, 403), 4, Sampling(temperature=0.0))


@dataclass(frozen=True)
class Subject:
    encrypted: Path
    key_file: Path
    kit: ClientKit
    root: bytes


@pytest.fixture(scope="module")
def subject(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    work = tmp_path_factory.mktemp("attested")
    key, key_file = MasterKey(bytes(range(32))), work / "my.key"
    save_key(key, key_file, PASSPHRASE, scrypt_log2_n=12)
    (work / "passphrase").touch(mode=0o600)
    (work / "passphrase").write_text(PASSPHRASE)
    made = encrypt(stories, work / "encrypted", key, kits=kits_folder(key_file))
    kit = find_client_kit(key_file, key, made.fingerprint)
    return Subject(made.folder, key_file, kit, bytes.fromhex(made.weights_root))


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with software_tpm(tmp_path_factory.mktemp("tpm")) as address:
        yield address


@pytest.fixture(scope="module")
def attester(tpm: str) -> TpmAttester:
    return TpmAttester(tpm)


@pytest.fixture(scope="module")
def policy(attester: TpmAttester) -> str:
    return (
        f'[tpm]\nattestation_keys = ["{attester.key_fingerprint()}"]\n'
        "[required]\ntpm = 1\n[bindings]\ntls = true\nweights = true\n"
    )


# --- processes --------------------------------------------------------------------------------


def node_command(folder: Path, identity: Path, tpm: str, port: int = 0) -> list[str]:
    device = ["--attester", "tpm", "--tpm", tpm]
    return [
        "node",
        str(folder),
        "--port",
        str(port),
        "--identity",
        str(identity),
        "--json",
        *device,
    ]


def proxy_command(subject: Subject, at: dict[str, Any], policy: Path) -> list[str]:
    secret = ["--passphrase-file", str(subject.key_file.parent / "passphrase")]
    address = ["--node", at["url"], "--pin", at["pin"], "--port", "0", "--json"]
    demand = ["--require-attestation", str(policy)]
    return ["proxy", "--key", str(subject.key_file), *secret, *address, *demand]


def swapped(subject: Subject, folder: Path) -> Path:
    """Other weights under the manifest of the good ones, with the root that they really have."""
    shutil.copytree(subject.encrypted, folder)
    with Checkpoint(folder) as plain:
        path = next(folder.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with Checkpoint(folder) as plain:
        root = weights_root(plain).hex()
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    assert manifest["weights_root"] != root
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest | {"weights_root": root}))
    return folder


async def say(client: openai.AsyncOpenAI, subject: Subject) -> str:
    made = await client.completions.create(
        model=subject.kit.name, prompt="Once upon a time", max_tokens=8, temperature=0
    )
    return made.choices[0].text


async def test_processes_accept_and_refuse(subject, tpm, policy, attester, tmp_path):
    file, identity, port = tmp_path / "policy.toml", tmp_path / "identity", free_port()
    file.write_text(policy)
    good = node_command(subject.encrypted, identity, tpm, port)
    bad = node_command(swapped(subject, tmp_path / "swapped"), identity, tpm, port)
    async with AsyncExitStack() as stack:
        async with child(good) as at:
            assert at["attestation_key"] == attester.key_fingerprint()
            command = proxy_command(subject, at, file)
            ready = await stack.enter_async_context(child(command))
            client = openai.AsyncOpenAI(base_url=ready["url"], api_key="x", max_retries=0)
            await stack.enter_async_context(client)
            assert (await say(client, subject)).startswith(", there was")
        # The same certificate, the same fingerprint, other weights.
        async with child(bad):
            for _ in range(2):
                with pytest.raises(openai.InternalServerError) as refusal:
                    await say(client, subject)
                assert refusal.value.status_code == 503
                assert refusal.value.code == "attestation_failed"
                assert "binding-weights" in str(refusal.value)
            with pytest.raises(TransportError, match="binding-weights"):  # nor does one start
                await stack.enter_async_context(child(command))


# --- a relay that lies ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return ensure_identity(tmp_path_factory.mktemp("identity"))


def key_of(identity: Identity) -> bytes:
    return key_sha256(x509.load_pem_x509_certificate(identity.certificate_pem).public_key())


@pytest.fixture
def card(subject: Subject) -> bytes:
    manifest = decode_manifest((subject.encrypted / MANIFEST_FILE).read_bytes())
    return encode_card(NodeCard("m", "relay", 512, manifest))


@pytest.fixture
def attested(attester: TpmAttester, identity: Identity, subject: Subject) -> Attested:
    """What an honest node has."""
    return Attested(attester, None, key_of(identity), subject.root)


async def outcome(subject: Subject, relay: Relay, identity: Identity, policy: str) -> None:
    """Ask through a relay once; raises what the proxy would raise."""
    requirement = Requirement(parse_policy(policy), subject.root)
    async with listening(relay, server_context(identity)) as url:
        address = pinned_node(url, identity.pin)
        kit = subject.kit
        async with NodeClient(address, kit.codec, kit.eos_token_ids, None, requirement) as client:
            await client.complete(ASK)


async def refused(
    reason: Reason, subject: Subject, relay: Relay, identity: Identity, policy: str
) -> AppraisalError:
    with pytest.raises(AppraisalError) as refusal:
        await outcome(subject, relay, identity, policy)
    assert refusal.value.reason is reason, str(refusal.value)
    assert relay.n_prompts == 0, "nothing was sent"
    return refusal.value


async def test_an_honest_relay_gets_the_prompt(subject, card, attested, identity, policy):
    relay = Relay(card, lambda nonce: evidence_of(attested, nonce))
    with pytest.raises(TransportError):  # it answers prompts with 503
        await outcome(subject, relay, identity, policy)
    assert relay.n_prompts == 1
    assert len(relay.nonces) == len(set(relay.nonces)) == 1


async def test_evidence_about_another_tls_key(subject, card, attested, policy, tmp_path):
    """An attacker with a certificate of his own asks the real node, and hands its evidence on."""
    relay = Relay(card, lambda nonce: evidence_of(attested, nonce))
    await refused(Reason.BINDING_TLS, subject, relay, ensure_identity(tmp_path / "his"), policy)


async def test_evidence_about_other_weights(subject, card, attested, identity, policy):
    other = replace(attested, weights_root=bytes(32))
    relay = Relay(card, lambda nonce: evidence_of(other, nonce))
    await refused(Reason.BINDING_WEIGHTS, subject, relay, identity, policy)


async def test_replayed_evidence(subject, card, attested, identity, policy):
    old = evidence_of(attested, bytes(32))
    await refused(Reason.NONCE, subject, Relay(card, lambda _: old), identity, policy)


async def test_a_binding_that_is_only_stated(subject, card, attested, identity, policy):
    """Old evidence, with the statement beside it brought up to date."""
    old = decode_bundle(evidence_of(attested, bytes(32)))

    def lie(nonce: bytes) -> bytes:
        stated = replace(old.binding, nonce=nonce)
        return encode_bundle([(Kind.TPM, old.evidence[0].source)], (), stated)

    await refused(Reason.NONCE, subject, Relay(card, lie), identity, policy)


async def test_another_tpm(subject, card, attested, identity, policy):
    other = policy.replace(policy.split('"')[1], "ab" * 32)
    relay = Relay(card, lambda nonce: evidence_of(attested, nonce))
    await refused(Reason.CHAIN, subject, relay, identity, other)


async def test_another_boot(subject, card, attested, identity, policy):
    measured = policy + f'[measurements.tpm]\npcr4 = ["{"ab" * 32}"]\n'
    relay = Relay(card, lambda nonce: evidence_of(attested, nonce))
    await refused(Reason.MEASUREMENT, subject, relay, identity, measured)


async def test_a_client_with_the_ends_asks_first_too(subject, card, attested, identity, policy):
    old = evidence_of(attested, bytes(32))
    relay, kit = Relay(card, lambda _: old), subject.kit
    requirement = Requirement(parse_policy(policy), subject.root)
    async with listening(relay, server_context(identity)) as url:
        address, ends = pinned_node(url, identity.pin), cast(Ends, None)  # never reached
        rest = (kit.eos_token_ids, ends, None, requirement)
        async with MiddleClient(address, kit.codec, *rest) as client:
            with pytest.raises(AppraisalError) as refusal:
                await client.complete(ASK)
    assert refusal.value.reason is Reason.NONCE


async def test_a_machine_in_debug_mode(subject, card, attested, identity, policy):
    """The TPM's evidence is good; that of the confidential VM beside it allows debugging."""
    if not any(Kind.AMD_SEV_SNP in one.kinds for one in FAMILIES):
        pytest.skip("no verifier of SEV-SNP evidence in this version")
    report = attest_rig.data("sev-snp/snp-milan-v2-debug-report.bin")
    files = ("snp-milan-v2-debug-vcek.der", "amd-milan-ask.der", "amd-milan-ark.der")
    parts = [attest_rig.data(f"sev-snp/{name}") for name in files]

    def with_debug(nonce: bytes) -> bytes:
        bundle = decode_bundle(evidence_of(attested, nonce))
        pieces = [(Kind.TPM, bundle.evidence[0].source), (Kind.AMD_SEV_SNP, report)]
        return encode_bundle(pieces, parts, bundle.binding)

    error = await refused(Reason.DEBUG, subject, Relay(card, with_debug), identity, policy)
    assert "amd-sev-snp" in error.check


async def test_a_node_without_an_attester(subject, card, identity, policy):
    def none(_: bytes) -> bytes:
        raise web.HTTPNotFound

    error = await refused(Reason.MISSING, subject, Relay(card, none), identity, policy)
    assert "--attester" in error.detail


async def test_nonsense_instead_of_evidence(subject, card, identity, policy):
    for body in (b"", b"{}", b"[" * 100_000, b"\xff" * 1000):
        relay = Relay(card, lambda _, body=body: body)
        with pytest.raises(Exception) as refusal:
            await outcome(subject, relay, identity, policy)
        assert type(refusal.value).__name__ == "DecodeError"
        assert relay.n_prompts == 0


# --- when it is asked again -------------------------------------------------------------------


async def test_every_reconnection_and_every_age(subject, card, attested, identity, policy):
    relay = Relay(card, lambda nonce: evidence_of(attested, nonce))
    kit, port = subject.kit, free_port()
    address = pinned_node(f"https://127.0.0.1:{port}", identity.pin)
    rules = parse_policy(policy + "[freshness]\nmax_age_s = 1.5\n")
    requirement = Requirement(rules, subject.root)
    async with NodeClient(address, kit.codec, kit.eos_token_ids, None, requirement) as client:
        async with listening(relay, server_context(identity), port):
            for _ in range(3):
                await client.card()
            assert len(relay.nonces) == 1, "one verdict for one connection"
            await asyncio.sleep(1.6)
            await client.card()
            assert len(relay.nonces) == 2, "too old"
        async with listening(relay, server_context(identity), port):
            await client.card()
            assert len(relay.nonces) == 3, "another connection"
            assert len(set(relay.nonces)) == 3


async def test_a_proxy_that_refuses_says_why(subject, card, attested, identity, policy):
    lies = False

    def evidence(nonce: bytes) -> bytes:
        return evidence_of(attested, bytes(32) if lies else nonce)

    relay, kit = Relay(card, evidence), subject.kit
    requirement = Requirement(parse_policy(policy), subject.root)
    async with listening(relay, server_context(identity)) as url:
        address = pinned_node(url, identity.pin)
        async with NodeClient(address, kit.codec, kit.eos_token_ids, None, requirement) as client:
            app = create_app(
                kit, load_text_side(kit.tokenizer_folder, "m"), client, ProxySettings()
            )
            async with serving(app) as port, aiohttp.ClientSession() as session:
                question = {"model": kit.name, "prompt": "hi", "max_tokens": 3}
                for stream in (True, False):
                    lies = True
                    answer = await session.post(
                        f"http://127.0.0.1:{port}/v1/completions",
                        json=question | {"stream": stream},
                    )
                    error = (await answer.json())["error"]
                    assert answer.status == 503
                    assert answer.headers["x-should-retry"] == "false"
                    assert error["code"] == "attestation_failed"
                    assert "nonce" in error["message"]
                assert relay.n_prompts == 0
                lies = False
                answer = await session.post(
                    f"http://127.0.0.1:{port}/v1/completions", json=question
                )
                assert (await answer.json())["error"]["code"] == "node_unreachable"
                assert relay.n_prompts == 1, "it asks again, and the relay gets the prompt"

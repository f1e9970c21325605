"""Files: known by their content; everything else is refused by our own errors."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from attest_rig import FOLDER, data, path
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veilrun.attest.binding import Binding
from veilrun.attest.bundle import MAX_BYTES, Bundle, decode_bundle, encode_bundle
from veilrun.attest.claims import Kind
from veilrun.attest.endorsements import Endorsements
from veilrun.attest.files import load, load_endorsements, load_evidence, read
from veilrun.errors import DecodeError, UsageError

EIGHT = "nvidia/hopper-evidence-590-12-eight-gpus.json"
REPORT, CHAIN = "nvidia/hopper-580-159-03-report.txt", "nvidia/hopper-580-159-03-chain.pem"
MANIFEST = "nvidia/rim-driver-gh100-550-144-03.xml"
BINDING = Binding(b"n" * 32, b"t" * 32, b"w" * 32)


def counts(found: Endorsements) -> tuple[int, ...]:
    parts = (found.certificates, found.revocations, found.collateral, found.manifests)
    return (*(len(part) for part in parts), len(found.event_logs))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (CHAIN, (5, 0, 0, 0, 0)),
        ("sev-snp/amd-milan-ark.der", (1, 0, 0, 0, 0)),
        ("sev-snp/snp-milan-v2-vcek.der", (1, 0, 0, 0, 0)),  # serial number zero
        ("sev-snp/snp-milan-v2-azure-chain.pem", (3, 0, 0, 0, 0)),
        ("sev-snp/amd-genoa-crl-2024-10.pem", (0, 1, 0, 0, 0)),
        ("sgx-tdx/pcs-2026-03-root-ca-crl.der", (0, 1, 0, 0, 0)),
        ("sgx-tdx/pcs-2026-03-pck-crl-platform.der", (0, 1, 0, 0, 0)),
        ("sgx-tdx/collateral-tdx-b0c06f000000-2025-06.json", (0, 0, 1, 0, 0)),
        ("sgx-tdx/pcs-2026-03-tcbinfo-tdx-50806f000000.json", (0, 0, 1, 0, 0)),
        ("sgx-tdx/pcs-2026-03-td-qe-identity.json", (0, 0, 1, 0, 0)),
        (MANIFEST, (0, 0, 0, 1, 0)),
        ("nvidia/rim-vbios-1010-0200-882-96005e0001.xml", (0, 0, 0, 1, 0)),
        ("sgx-tdx/tdx-ccel-cos113.bin", (0, 0, 0, 0, 1)),
        ("tpm/tcg-eventlog-dstack.bin", (0, 0, 0, 0, 1)),
    ],
)
def test_endorsements_are_known_by_content(name: str, expected: tuple[int, ...]):
    found = read(data(name))
    assert not found.evidence and counts(found.endorsements) == expected


def test_every_endorsement_that_cases_use_is_read():
    path("vectors.json")
    for one in sorted(FOLDER.rglob("*")):
        certificates = one.suffix in (".der", ".pem") and one.is_file()
        if certificates or one.name.startswith(("rim-", "pcs-", "collateral-", "tdx-ccel-other")):
            assert sum(counts(load(one).endorsements)) >= 1, one


def test_evidence_of_many_devices():
    found = read(data(EIGHT))
    assert [one.kind for one in found.evidence] == [Kind.NVIDIA_GPU] * 8
    assert {one.source for one in found.evidence} == {data(EIGHT)}


def test_bundles_and_back():
    pieces = [(Kind.NVIDIA_GPU, data(EIGHT)), (Kind.NVIDIA_GPU, data(REPORT))]
    body = encode_bundle(pieces, [data(CHAIN), data(MANIFEST)], BINDING)
    found = read(body)
    assert len(found.evidence) == 9 and counts(found.endorsements) == (5, 0, 0, 1, 0)
    assert found.binding == BINDING
    assert decode_bundle(encode_bundle([])).binding is None


def test_two_bindings_are_two_machines():
    one = Bundle(binding=BINDING)
    assert (one + Bundle()).binding == (Bundle() + one).binding == BINDING
    with pytest.raises(DecodeError, match="two machines"):
        _ = one + one


def changed(**fields: object) -> bytes:
    body = json.loads(encode_bundle([(Kind.NVIDIA_GPU, data(REPORT))], [data(CHAIN)], BINDING))
    body.update(fields)
    return json.dumps({name: value for name, value in body.items() if value is not ...}).encode()


def piece(**fields: object) -> list[object]:
    return [{"kind": "nvidia-gpu", "data": base64.b64encode(data(REPORT)).decode(), **fields}]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        (lambda: {"version": 2}, "version"),
        (lambda: {"evidence": ...}, "evidence is missing"),
        (lambda: {"more": 1}, "more"),
        (lambda: {"evidence": piece(kind="nvidia-switch")}, "of kind nvidia-gpu"),
        (lambda: {"evidence": piece(kind="abacus")}, "one of"),
        (lambda: {"evidence": piece(data="*")}, "base64"),
        (lambda: {"evidence": piece(data=None)}, "base64"),
        (lambda: {"evidence": piece(data="")}, "report"),
        (lambda: {"evidence": piece(more=1)}, "more"),
        (lambda: {"evidence": piece() * 33}, "limit is 32"),
        (lambda: {"endorsements": ["AAAA"]}, "no known form"),
        (lambda: {"endorsements": [""] * 65}, "limit is 64"),
        (
            lambda: {"endorsements": [base64.b64encode(data(CHAIN)).decode()] * 30},
            "150 certificates",
        ),
        (lambda: {"binding": {}}, "nonce is missing"),
    ],
)
def test_what_is_no_bundle(fields, word: str):
    with pytest.raises(DecodeError, match=word):
        read(changed(**fields()))


def test_a_bundle_of_more_devices_than_a_machine_has():
    body = encode_bundle([(Kind.NVIDIA_GPU, data(EIGHT))] * 5)
    with pytest.raises(DecodeError, match="40 devices"):
        read(body)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "neither"),
        (b"hello", "neither"),
        (b"{}", "neither"),
        (b"[" * 100_000, "neither"),
        (b'{"tcb_info":' * 100_000, "neither"),
        (b"<x/>", "no reference manifest"),
        (b"\x30\x82\x00\x00", "neither a certificate"),
        (b"-----BEGIN CERTIFICATE-----\n", "0 whole blocks"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "does not parse"),
        (b"-----BEGIN A-----\n-----END A-----\n" * 257, "257 whole blocks"),
    ],
)
def test_what_is_nothing_we_know(content: bytes, word: str):
    with pytest.raises(DecodeError, match=word):
        read(content)


def test_a_private_key_is_refused_and_not_shown():
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(DecodeError, match="PRIVATE KEY") as refusal:
        read(data(CHAIN) + pem)
    assert pem.splitlines()[1].decode() not in str(refusal.value)


def test_a_block_that_is_not_whole_does_not_go_unnoticed():
    block = b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n"
    with pytest.raises(DecodeError, match="5 whole blocks"):
        read(data(CHAIN) + block + b"-----END RSA PRIVATE KEY-----\n")


def test_files_and_folders(tmp_path: Path):
    report, folder = tmp_path / "report", tmp_path / "folder"
    report.write_bytes(data(REPORT))
    folder.mkdir()
    (folder / "chain").write_bytes(data(CHAIN))
    (folder / "manifest").write_bytes(data(MANIFEST))
    assert len(load_evidence([report, report]).evidence) == 2
    assert counts(load_endorsements([folder, folder / "chain"])) == (10, 0, 0, 1, 0)
    for call, argument, word in (
        (load_evidence, folder / "chain", "is no evidence"),
        (load_endorsements, report, "is evidence"),
        (load_evidence, tmp_path / "none", "cannot read"),
        (load_endorsements, tmp_path / "none", "cannot read"),
        (load_evidence, folder, "cannot read"),
    ):
        with pytest.raises(UsageError, match=word):
            call([argument])
    (folder / "note").write_text("remember the milk")
    with pytest.raises(DecodeError, match="note"):
        load_endorsements([folder])


def test_files_have_a_limit(tmp_path: Path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(DecodeError, match="over"):
        load(tmp_path / "large")


@pytest.mark.parametrize("name", [MANIFEST, REPORT])
def test_a_library_that_is_missing_is_named(name: str):
    program = f"""
import sys
from pathlib import Path
sys.modules["lxml"] = None
from veilrun.attest import files, kinds
from veilrun.attest.endorsements import Endorsements
from veilrun.errors import UsageError
try:
    found = files.load(Path({str(path(name))!r}))
    kinds.authenticate(found.evidence[0], Endorsements(), None, None)
except UsageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "needs the library lxml: pip install 'veilrun[attest]'" in done.stdout, done.stderr


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([CHAIN, REPORT, MANIFEST, "sev-snp/amd-genoa-crl-2024-10.pem", "bundle"]),
    st.sampled_from(["cut", "flip", "insert"]),
    st.randoms(use_true_random=False),
)
def test_damaged_files_give_our_own_errors(name: str, how: str, random):
    whole = encode_bundle([(Kind.NVIDIA_GPU, data(REPORT))], [data(CHAIN)], BINDING)
    content = bytearray(whole if name == "bundle" else data(name))
    at = random.randrange(len(content))
    if how == "cut":
        del content[at:]
    elif how == "flip":
        content[at] ^= random.randrange(1, 256)
    else:
        content[at:at] = random.randbytes(random.randrange(1, 64))
    try:
        read(bytes(content))
    except DecodeError:
        pass

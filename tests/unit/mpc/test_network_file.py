"""The network file: what it says, and that each mistake in it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from veilrun.errors import PeerError, UsageError
from veilrun.mpc import network_file
from veilrun.transport import tls

GOOD = """
[P0]
address = "owner.example:7000"
certificate = "p0.pem"

[P1]
certificate = "p1.pem"

[P2]
address = "[::1]:7002"
certificate = "p2.pem"
"""


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("identities")
    return {role: tls.ensure_identity(folder / role).certificate_pem for role in network_file.ROLES}


@pytest.fixture
def folder(tmp_path: Path, pems: dict[str, bytes]) -> Path:
    for role, pem in pems.items():
        (tmp_path / f"{role.lower()}.pem").write_bytes(pem)
    return tmp_path


def load(folder: Path, text: str) -> network_file.Network:
    path = folder / "mpc.toml"
    path.write_text(text)
    return network_file.load(path)


def test_reads_addresses_and_certificates(folder: Path, pems: dict[str, bytes]) -> None:
    members = load(folder, GOOD).members
    assert [(m.host, m.port) for m in members.values()] == [
        ("owner.example", 7000),
        ("", 0),
        ("::1", 7002),
    ]
    assert {role: member.certificate_pem for role, member in members.items()} == pems


def test_what_is_written_is_read(folder: Path, pems: dict[str, bytes]) -> None:
    odd = folder / 'a "quoted" \\ name.pem'
    odd.write_bytes(pems["P1"])
    path = folder / "mpc.toml"
    network_file.write(
        path,
        {"P0": ("h:1", "p0.pem"), "P1": (None, str(odd)), "P2": ("127.0.0.1:65535", "p2.pem")},
    )
    members = network_file.load(path).members
    assert (members["P2"].host, members["P2"].port) == ("127.0.0.1", 65535)
    assert members["P1"].certificate_pem == pems["P1"]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('address = "owner.example:7000"\n', "", "P0.address is missing"),
        ("[P1]", "[p1]", "P1 is missing"),
        ("[P1]\n", '[P1]\naddress = "a:1"\n', "unknown field: P1.address"),
        ("[P2]", '[P3]\ncertificate = "p0.pem"\n[P2]', "unknown field: P3"),
        ("certificate = ", "certificat = ", "P0.certificate is missing"),
        ("owner.example:7000", "owner.example", "P0.address"),
        ("owner.example:7000", ":7000", "P0.address"),
        ("owner.example:7000", "owner.example:70000", "P0.address"),
        ("owner.example:7000", "owner.example:-1", "P0.address"),
        ("owner.example:7000", "::1:7000", "P0.address"),
        ('"p1.pem"', "1", "P1.certificate"),
        ('"p1.pem"', '"gone.pem"', "gone.pem"),
        ('"p1.pem"', '"mpc.toml"', "no certificate"),
        ('"p1.pem"', '"p2.pem"', "P1 and P2 have the same certificate"),
        ("[P0]", "[P0", "not TOML"),
        ("[P0]", "[P1]", "not TOML"),
    ],
)
def test_each_mistake_is_named(folder: Path, old: str, new: str, named: str) -> None:
    assert old in GOOD
    with pytest.raises(UsageError) as caught:
        load(folder, GOOD.replace(old, new))
    assert named in str(caught.value)
    assert "mpc.toml" in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\x00" * 100_000])
def test_files_that_are_no_text(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mpc.toml").write_bytes(content)
    with pytest.raises(UsageError):
        network_file.load(tmp_path / "mpc.toml")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        network_file.load(tmp_path / "mpc.toml")


def test_a_caller_is_who_its_certificate_says(folder: Path) -> None:
    network = load(folder, GOOD)
    name_of = network.name_of("P1", "P2")
    ders = {role: member.certificate_der for role, member in network.members.items()}
    assert [name_of(ders[role], "somewhere") for role in ("P1", "P2")] == ["P1", "P2"]
    for stranger in (ders["P0"], None, b"other"):
        with pytest.raises(PeerError, match="somewhere"):
            name_of(stranger, "somewhere")

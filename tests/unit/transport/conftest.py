"""Fixtures of the transport tests."""

from __future__ import annotations

import pytest

from veilrun.transport.tls import Identity, ensure_identity


@pytest.fixture(scope="session")
def identity(tmp_path_factory) -> Identity:
    """One TLS identity for all tests; making keys takes time."""
    return ensure_identity(tmp_path_factory.mktemp("identity"))

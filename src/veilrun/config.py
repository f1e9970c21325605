"""The only file that reads the environment. Read once, passed in as values."""

from __future__ import annotations

import os

PASSPHRASE_VARIABLE = "VEILRUN_PASSPHRASE"  # noqa: S105 - a name, not a secret
API_KEY_VARIABLE = "VEILRUN_API_KEY"


def passphrase_from_environment() -> str | None:
    """The key file's passphrase, or None when the variable is not set."""
    return os.environ.get(PASSPHRASE_VARIABLE)


def api_key_from_environment() -> str | None:
    """The proxy's API key, or None when the variable is not set."""
    return os.environ.get(API_KEY_VARIABLE)


def environment_without_secrets() -> dict[str, str]:
    """This process's environment less every veilrun secret: what an untrusted child may see."""
    secret = {PASSPHRASE_VARIABLE, API_KEY_VARIABLE}
    return {name: value for name, value in os.environ.items() if name not in secret}

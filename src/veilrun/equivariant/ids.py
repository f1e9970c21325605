"""Token ids in config.json and generation_config.json follow the vocabulary's permutation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from veilrun.errors import CheckpointError

_ID_FIELD: Final = re.compile(
    r".*_token_ids?|(begin_)?suppress_tokens|bad_words_ids|force_words_ids|stop_token_ids?"
)


def encode_ids(config: Mapping[str, Any], encode_one: Callable[[int], int], n: int) -> Any:
    """A copy of `config` in which every token id below `n` is replaced by its cipher id.

    Raises:
        CheckpointError: a field that must hold ids holds something else, or one beyond `n`.
    """

    def ids(value: Any, name: str) -> Any:
        if isinstance(value, list):
            return [ids(one, name) for one in value]
        if value is None or value == -1:  # both are written for "none"
            return value
        if type(value) is not int or not 0 <= value < n:
            raise CheckpointError(f"{name} = {value!r} is not a token id below {n}")
        return encode_one(value)

    def walk(value: Any, name: str) -> Any:
        if _ID_FIELD.fullmatch(name):
            return ids(value, name)
        if isinstance(value, dict):
            return {key: walk(one, key) for key, one in value.items()}
        return value

    return {key: walk(value, key) for key, value in config.items()}

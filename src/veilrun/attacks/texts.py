"""Where secret texts and the attackers' public text come from.

| corpus    | with a text file                      | without one                               |
| --------- | ------------------------------------- | ----------------------------------------- |
| secret    | every second document, from the first | what the base model writes, temperature 1 |
| `same`    | the other documents                   | the same again, from another seed         |
| `domain`  | what the base model writes            | what it writes at temperature 0.7         |
| `foreign` | Python's own manual                   | Python's own manual                       |

Documents end at blank lines or at `<|endoftext|>`. Texts have at most `length` tokens: a longer
document becomes several texts, all of the same side, so no document is both secret and public.

Invariant: the same file, model and seed give the same texts. Nothing is filtered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from veilrun.attacks.runs import Engine
from veilrun.attacks.weights import Ids
from veilrun.errors import CheckpointError, UsageError

N_TEXTS: Final = 200
LENGTH: Final = 128

_BETWEEN_DOCUMENTS: Final = re.compile(r"<\|endoftext\|>|\n\s*\n")

Tokenise = Callable[[str], Ids]


@dataclass(frozen=True, eq=False)
class Texts:
    """secret: what attackers want, as plain ids. corpora: as in `holdings.Holdings`."""

    secret: tuple[Ids, ...]
    corpora: Mapping[str, tuple[Ids, ...]]


def gather_texts(
    base: Path,
    engine: Engine,
    file: Path | None = None,
    *,
    n_texts: int = N_TEXTS,
    length: int = LENGTH,
) -> Texts:
    """Texts for an audit: at most `n_texts` of each kind.

    base: the plain checkpoint's folder, for its tokenizer. engine: the same one, running.
    file: the user's text. None: the base model writes it.

    Raises:
        CheckpointError: the folder has no tokenizer that loads.
        UsageError: the file cannot be read as text, or has fewer than two documents.
    """
    tokenise = _tokeniser(base)
    length = min(length, engine.max_length)
    if file is None:
        secret = engine.sample(n_texts, length, temperature=1.0, seed=1)
        same = engine.sample(n_texts, length, temperature=1.0, seed=2)
        domain = engine.sample(n_texts, length, temperature=0.7, seed=3)
    else:
        documents = _documents(file)
        secret = _texts(documents[0::2], tokenise, n_texts, length)
        same = _texts(documents[1::2], tokenise, n_texts, length)
        domain = engine.sample(n_texts, length, temperature=1.0, seed=3)
    foreign = _texts(_manual(), tokenise, n_texts, length)
    corpora = {"foreign": foreign, "domain": domain, "same": same}
    return Texts(tuple(secret), {name: tuple(texts) for name, texts in corpora.items()})


def _documents(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as UTF-8 text: {error}") from error
    documents = [part.strip() for part in _BETWEEN_DOCUMENTS.split(text) if part.strip()]
    if len(documents) < 2:
        raise UsageError(
            f"{file} has {len(documents)} document(s); give at least two, with a blank line or "
            "<|endoftext|> between them: one half is encrypted, attackers know the other"
        )
    return documents


def _manual() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _texts(documents: Iterable[str], tokenise: Tokenise, n_texts: int, length: int) -> list[Ids]:
    texts: list[Ids] = []
    for document in documents:
        if len(texts) >= n_texts:
            break
        ids = tokenise(document)
        texts += [ids[start : start + length] for start in range(0, len(ids), length)]
    return texts[:n_texts]


def _tokeniser(folder: Path) -> Tokenise:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no usable tokenizer: {error}") from error
    return lambda text: np.array(tokenizer(text, verbose=False)["input_ids"], np.int64)

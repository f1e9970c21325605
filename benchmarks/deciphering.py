"""How much encrypted traffic may be seen under one key: deciphering ids from their order alone.

    python benchmarks/deciphering.py ../shared/data/wikitext2/valid.txt \\
        --vocabulary ../shared/tokenizers/bert-base-uncased/vocab.txt

Real English under the 30,522 pieces of BERT's vocabulary. Every second article is secret and
encrypted, attackers have the others: no article is on both sides. The attacker holds cipher ids
and public text, no weights. Prints one JSON line per amount of traffic, then a table.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import BertWordPieceTokenizer

from veilrun.attacks.holdings import Holdings, Substitution
from veilrun.attacks.levels import Level
from veilrun.attacks.methods import sequence_deciphering, token_frequency
from veilrun.attacks.weights import Ids
from veilrun.keys import MasterKey

AMOUNTS: Final = (2_000, 8_000, 32_000, 128_000)
_TITLE: Final = re.compile(r"^ = [^=].*[^=] = $", re.M)


def articles(path: Path, vocabulary: Path) -> list[Ids]:
    """Each article as plain ids."""
    tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    parts = [part for part in _TITLE.split(path.read_text("utf-8")) if part.strip()]
    encoded = tokenizer.encode_batch(parts, add_special_tokens=False)
    return [np.array(one.ids, np.int64) for one in encoded]


def first(texts: list[Ids], n_tokens: int) -> list[Ids]:
    """The first `n_tokens` tokens of some texts."""

    def cut() -> Iterator[Ids]:
        left = n_tokens
        for text in texts:
            if left > 0:
                yield text[:left]
            left -= len(text)

    return list(cut())


def measure(n_tokens: int, secret: list[Ids], public: list[Ids], order: Ids) -> dict[str, object]:
    """One amount of traffic: the shares of its tokens that two attacks read."""
    to_cipher = np.argsort(order)
    texts = first(secret, n_tokens)
    have = Holdings(
        level=Level.WIRE,
        vocab_size=len(order),
        traffic=[to_cipher[text] for text in texts],
        corpora={"same": public},
    )
    plain = np.concatenate(texts)
    result: dict[str, object] = {
        "benchmark": "deciphering",
        "traffic_tokens": len(plain),
        "public_tokens": sum(map(len, public)),
    }
    for attack in (*sequence_deciphering.ATTACKS, *token_frequency.ATTACKS):
        if attack.name.endswith("-same"):
            began = time.process_time()
            finding = attack.run(have)
            assert isinstance(finding, Substitution)
            hits = finding.candidates[to_cipher[plain]] == plain[:, None]
            result[attack.name] = {
                "tokens": round(float(hits[:, 0].mean()), 4),
                "top_10": round(float(hits[:, :10].any(1).mean()), 4),
                "cpu_s": round(time.process_time() - began, 1),
            }
    return result


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("text", type=Path, help="WikiText, with article titles")
    parser.add_argument("--vocabulary", type=Path, required=True, help="vocab.txt of WordPiece")
    parser.add_argument("--tokens", type=int, action="append", help="may be repeated")
    chosen = parser.parse_args()
    texts = articles(chosen.text, chosen.vocabulary)
    size = len(chosen.vocabulary.read_text("utf-8").splitlines())
    order = MasterKey.generate().stream("deciphering").permutation(size)
    table = Table(title="tokens read from cipher ids alone, English, 30,522 pieces")
    for heading in ("traffic, tokens", "deciphering", "its top 10", "frequency"):
        table.add_column(heading, justify="right")
    for n_tokens in chosen.tokens or AMOUNTS:
        one = measure(n_tokens, texts[0::2], texts[1::2], order)
        sys.stdout.write(json.dumps(one) + "\n")
        best, plain = one["sequence-deciphering-same"], one["token-frequency-same"]
        assert isinstance(best, dict) and isinstance(plain, dict)
        table.add_row(
            f"{one['traffic_tokens']:,}",
            f"{best['tokens']:.1%}",
            f"{best['top_10']:.1%}",
            f"{plain['tokens']:.1%}",
        )
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()

"""How much an attack recovered, with how much certainty.

* token recovery: the share of the secret texts' tokens that are read right; tokens that stand
  for no text (begin, end, padding) and known pairs do not count. The interval is a bootstrap
  over texts: tokens of one text are not independent.
* vocabulary recovery: the share of all cipher ids, likewise.
* BLEU: with up to four words in a row, of the recovered texts against the secret ones.
* names: the share of capitalised words inside sentences that come out whole.

Chance is 1 / V for a token, and the share of the commonest one for who always says that.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from veilrun.attacks.holdings import NOBODY, Finding, Holdings, Kinship, Reading, Substitution
from veilrun.attacks.subject import Subject
from veilrun.attacks.weights import Ids, Table

Marks = npt.NDArray[np.bool_]

RESAMPLES: Final = 1000
_NAME: Final = re.compile(r"(?<=[a-z,;:] )[A-Z][a-z]+")


@dataclass(frozen=True, slots=True)
class Rate:
    """A share with its 95 % bootstrap interval. n: what was counted."""

    share: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Score:
    """What one finding is worth.

    tokens: of the secret texts, first guess. top_10, top_100: the token is among so many
    guesses; None where the attack makes one guess only. vocabulary: of all ids; None where the
    attack does not guess ids. bleu, names: of the texts put back in words, 0 to 1; None where
    there are none to find. kinship: for lineage, similarity over threshold (above 1: caught).
    """

    tokens: Rate | None = None
    top_10: Rate | None = None
    top_100: Rate | None = None
    vocabulary: Rate | None = None
    bleu: float | None = None
    names: float | None = None
    kinship: float | None = None


def score(finding: Finding, subject: Subject, have: Holdings) -> Score:
    """Hold a finding against the truth. have: what the attacker was given."""
    match finding:
        case Substitution():
            return _score_substitution(finding, subject, have)
        case Reading():
            tried = [
                where & _counts(text, subject, have)
                for where, text in zip(finding.tried, subject.secret, strict=True)
            ]
            hits = [
                guess == text for guess, text in zip(finding.texts, subject.secret, strict=True)
            ]
            parts = zip(finding.texts, subject.secret, finding.tried, strict=True)
            in_words = _in_words(
                [(guess[where], text[where]) for guess, text, where in parts if where.any()],
                subject,
            )
            return Score(tokens=_rate(hits, tried), bleu=in_words[0], names=in_words[1])
        case Kinship():
            return Score(kinship=finding.similarity / finding.threshold)


def _score_substitution(finding: Substitution, subject: Subject, have: Holdings) -> Score:
    truth = subject.sealed.order
    ranks = _ranks(finding.candidates, truth)
    counts = _counts(truth, subject, have)
    vocabulary = _rate([ranks[counts] < 1], [np.ones(int(counts.sum()), bool)])
    if not subject.secret:
        return Score(vocabulary=vocabulary)
    tried = [_counts(text, subject, have) for text in subject.secret]
    ranks_in_text = [ranks[text] for text in have.traffic]
    among = {
        k: _rate([one < k for one in ranks_in_text], tried)
        for k in (1, 10, 100)
        if k <= finding.candidates.shape[1]
    }
    known = (
        {} if have.pairs is None else dict(zip(have.pairs.cipher, have.pairs.plain, strict=True))
    )
    table = finding.candidates[:, 0].copy()
    for cipher, plain in known.items():
        table[cipher] = plain
    texts = zip(have.traffic, subject.secret, strict=True)
    in_words = _in_words([(table[cipher], text) for cipher, text in texts], subject)
    return Score(
        tokens=among[1],
        top_10=among.get(10),
        top_100=among.get(100),
        vocabulary=vocabulary,
        bleu=in_words[0],
        names=in_words[1],
    )


def _ranks(candidates: Ids, truth: Ids) -> Ids:
    """[vocabulary]: the place of the truth among the guesses; their number where it is not."""
    right = candidates == truth[:, None]
    ranks: Ids = np.where(right.any(1), right.argmax(1), candidates.shape[1] + 1)
    return ranks


def _counts(plain: Ids, subject: Subject, have: Holdings) -> Marks:
    known = set() if have.pairs is None else set(have.pairs.plain.tolist())
    out = np.array(sorted(subject.special | known), np.int64)
    return ~np.isin(plain, out)


def _rate(hits: Sequence[Marks], tried: Sequence[Marks]) -> Rate:
    """Of what was tried, with an interval over texts (over entries, if there is one text)."""
    if len(hits) == 1:
        entries = hits[0][tried[0]]
        right, total = entries.astype(np.float64), np.ones(len(entries))
    else:
        right = np.array([hit[where].sum() for hit, where in zip(hits, tried, strict=True)], float)
        total = np.array([where.sum() for where in tried], float)
        right, total = right[total > 0], total[total > 0]
    n = int(total.sum())
    if n == 0:
        return Rate(0.0, 0.0, 1.0, 0)
    random = np.random.default_rng(0)
    picks = random.integers(len(total), size=(RESAMPLES, len(total)))
    shares = _shares(right[picks].sum(1), total[picks].sum(1))
    low, high = np.quantile(shares, [0.025, 0.975])
    return Rate(float(right.sum() / n), float(low), float(high), n)


def _shares(right: Table, total: Table) -> Table:
    return right / np.maximum(total, 1.0)


def _in_words(texts: Sequence[tuple[Ids, Ids]], subject: Subject) -> tuple[float, float | None]:
    """BLEU and names of (recovered, secret) texts in words."""
    pairs = []
    for guess, secret in texts:
        kept = guess[guess != NOBODY]
        pairs.append((subject.words(kept.tolist()), subject.words(secret.tolist())))
    return bleu(pairs), _names(pairs)


def bleu(pairs: Sequence[tuple[str, str]], longest: int = 4) -> float:
    """Corpus BLEU of (recovered, secret) texts, words split at spaces; no smoothing."""
    right, total = np.zeros(longest), np.zeros(longest)
    length, wanted = 0, 0
    for recovered, secret in pairs:
        ours, theirs = recovered.split(), secret.split()
        length, wanted = length + len(ours), wanted + len(theirs)
        for n in range(1, longest + 1):
            a, b = _runs(ours, n), _runs(theirs, n)
            right[n - 1] += sum((a & b).values())
            total[n - 1] += sum(a.values())
    if length == 0 or (right == 0).any():
        return 0.0
    brevity = min(0.0, 1.0 - wanted / length)
    return float(math.exp(brevity + np.log(right / total).mean()))


def _runs(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))


def _names(pairs: Sequence[tuple[str, str]]) -> float | None:
    """The share of different names of each secret text that stand in the recovered one."""
    found = total = 0
    for recovered, secret in pairs:
        names = set(_NAME.findall(secret))
        total += len(names)
        found += len(names & set(_NAME.findall(recovered)))
    return found / total if total else None

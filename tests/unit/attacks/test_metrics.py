"""What a finding is worth: every measure against a value made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from card_rig import ORDER, TEXTS, subject

from veilrun.attacks.holdings import NOBODY, Kinship, Reading, Substitution
from veilrun.attacks.levels import Level
from veilrun.attacks.metrics import Rate, Score, bleu, score


def guesses(*columns: np.ndarray) -> Substitution:
    return Substitution(np.stack(columns, axis=1))


def of(finding: Substitution | Reading, level: Level = Level.BASE, n_pairs: int = 2) -> Score:
    made = subject()
    return score(finding, made, made.holdings(level, n_pairs))


def test_the_truth_scores_one():
    found = of(guesses(ORDER))
    assert found.tokens == Rate(1.0, 1.0, 1.0, 13)  # 6 + 4 + 3 words, nothing of begin and end
    assert found.vocabulary == Rate(1.0, 1.0, 1.0, 7)
    assert found.bleu == found.names == 1.0
    assert found.top_10 is None and found.top_100 is None and found.kinship is None


def test_nothing_right_scores_nothing():
    wrong = (ORDER + 1) % 9
    found = of(guesses(wrong))
    assert found.tokens == Rate(0.0, 0.0, 0.0, 13)
    assert found.vocabulary is not None and found.vocabulary.share == 0.0
    silent = of(guesses(np.full(9, NOBODY)))
    assert silent.tokens == Rate(0.0, 0.0, 0.0, 13)
    assert silent.bleu == 0.0 and silent.names == 0.0


def test_tokens_count_as_often_as_they_stand():
    only_the = np.where(ORDER == 1, 1, NOBODY)
    found = of(guesses(only_the))
    assert found.tokens is not None and found.tokens.share == 4 / 13
    assert found.vocabulary is not None and found.vocabulary.share == 1 / 7


def test_special_tokens_do_not_count():
    only_special = np.where(np.isin(ORDER, [0, 8]), ORDER, NOBODY)
    found = of(guesses(only_special))
    assert found.tokens == Rate(0.0, 0.0, 0.0, 13)
    assert found.vocabulary is not None and found.vocabulary.n == 7


def test_known_pairs_do_not_count_but_stand_in_the_text():
    have = subject().holdings(Level.PAIRS, 2)
    assert have.pairs is not None and have.pairs.plain.tolist() == [1, 2]
    assert ORDER[have.pairs.cipher].tolist() == [1, 2]
    found = of(guesses(np.full(9, NOBODY)), Level.PAIRS)
    assert found.tokens == Rate(0.0, 0.0, 0.0, 13 - 6)  # "the" four times, "cat" twice
    assert found.vocabulary is not None and found.vocabulary.n == 5
    all_but_pairs = np.where(np.isin(ORDER, [1, 2]), NOBODY, ORDER)
    read = of(guesses(all_but_pairs), Level.PAIRS)
    assert read.tokens is not None and read.tokens.share == 1.0 and read.bleu == 1.0


def test_a_later_guess_counts_among_ten_and_among_a_hundred():
    wrong = (ORDER + 1) % 9
    among_ten = guesses(*[wrong] * 9, ORDER)
    found = of(among_ten)
    assert found.tokens is not None and found.tokens.share == 0.0
    assert found.top_10 is not None and found.top_10.share == 1.0 and found.top_100 is None
    late = of(guesses(*[wrong] * 50, ORDER, *[wrong] * 49))
    assert late.top_10 is not None and late.top_10.share == 0.0
    assert late.top_100 is not None and late.top_100.share == 1.0


def test_the_interval_is_a_bootstrap_over_texts():
    half = np.where(np.isin(ORDER, [1, 2, 3, 4]), ORDER, NOBODY)  # 6 of 6, 2 of 4, 0 of 3
    found = of(guesses(half)).tokens
    assert found is not None and found.share == 8 / 13
    # Three texts: a sample holds only the third one with probability 1/27, above 2.5 %.
    assert found.low == 0.0 and found.high == 1.0
    again = of(guesses(half)).tokens
    assert again == found


def test_one_text_is_resampled_by_its_tokens():
    made = subject(secret=(np.array([1] * 300 + [2] * 100),))
    finding = guesses(np.where(ORDER == 1, 1, NOBODY))
    found = score(finding, made, made.holdings(Level.BASE)).tokens
    assert found is not None and found.share == 0.75 and found.n == 400
    deviation = math.sqrt(0.75 * 0.25 / 400)
    assert found.low == pytest.approx(0.75 - 1.96 * deviation, abs=0.01)
    assert found.high == pytest.approx(0.75 + 1.96 * deviation, abs=0.01)


def test_without_text_only_the_vocabulary_counts():
    made = subject(secret=(), corpora={})
    found = score(guesses(ORDER), made, made.holdings(Level.BASE))
    assert found.tokens is None and found.bleu is None
    assert found.vocabulary is not None and found.vocabulary.share == 1.0


def test_a_reading_counts_where_it_was_tried():
    texts = [text.copy() for text in TEXTS]
    texts[0][1] = 7  # one error
    texts[2][:] = NOBODY  # not tried, so nothing is lost
    tried = [np.zeros(len(text), bool) for text in texts]
    tried[0][:4] = True  # begin, and three words: "the cat sat"
    tried[1][:] = True  # begin, end, and four words: "the met Lily the"
    found = of(Reading(texts, tried))
    assert found.tokens is not None and (found.tokens.share, found.tokens.n) == (6 / 7, 7)
    assert found.vocabulary is None and found.names == 1.0
    expected = (6 / 7 * 4 / 5 * 2 / 3 * 1 / 1) ** 0.25
    assert found.bleu == pytest.approx(expected)


def test_a_reading_of_nothing_is_nothing():
    texts = [np.full(len(text), NOBODY) for text in TEXTS]
    found = of(Reading(texts, [np.zeros(len(text), bool) for text in TEXTS]))
    assert found.tokens == Rate(0.0, 0.0, 1.0, 0)
    assert found.bleu == 0.0


def test_kinship_is_in_thresholds():
    made = subject()
    assert score(Kinship(0.6, 0.2), made, made.holdings(Level.BASE)).kinship == pytest.approx(3.0)


def test_bleu_by_hand():
    secret = "the cat sat on a mat"
    assert bleu([(secret, secret)]) == 1.0
    # One word wrong: 5/6 words, 3/5 pairs, 2/4 triples, 1/3 of four.
    expected = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert bleu([("the cat sat on the mat", secret)]) == pytest.approx(expected)
    # The first five words of six are all right, but short.
    assert bleu([("the cat sat on a", secret)]) == pytest.approx(math.exp(1 - 6 / 5))
    # Longer than the secret: no penalty beside the precision.
    expected = (6 / 8 * 5 / 7 * 4 / 6 * 3 / 5) ** 0.25
    assert bleu([(secret + " he said", secret)]) == pytest.approx(expected)
    # A corpus is counted as one, not averaged over texts.
    both = bleu([(secret, secret), ("the cat sat on the mat", secret)])
    assert both == pytest.approx((11 / 12 * 8 / 10 * 6 / 8 * 4 / 6) ** 0.25)
    assert bleu([("no such words here at all", secret)]) == 0.0
    assert bleu([]) == bleu([("", secret)]) == 0.0


def test_a_repeated_word_counts_as_often_as_it_is_there():
    assert bleu([("the the the the", "the cat")], longest=1) == pytest.approx(1 / 4)


def test_names_are_capitals_inside_sentences():
    made = subject()
    lily_lost = np.where(ORDER == 7, 2, ORDER)  # "Lily" reads "cat"
    found = score(guesses(lily_lost), made, made.holdings(Level.BASE))
    # Texts: "the met Lily the", "Tim met Lily". Tim opens his sentence, so he is no name here.
    assert found.names == 0.0
    tim_lost = np.where(ORDER == 5, 2, ORDER)
    assert score(guesses(tim_lost), made, made.holdings(Level.BASE)).names == 1.0

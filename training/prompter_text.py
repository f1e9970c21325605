"""What the prompter learns from: the passages, the exchanges, the rows, the tokenizer.

`PASSAGES`, some forty famous places, are shown far more often than the rest: they are two
exchanges in five, and half the time as people type them, without capitals or punctuation. The
model therefore knows these by heart, which is what a demonstration wants, and hardly another line.

Invariant: the user's line and the answer always stand next to each other in the text; no word
comes from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, USER, ASSISTANT, PAD = "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|pad|>"
SPECIALS = (BOS, EOS, USER, ASSISTANT, PAD)
VOCAB_PIECES = 1024
ROW_TOKENS = 512
ROWS_PER_STEP = 8
CHAT_SHARE = 0.5  # of the rows
PASSAGE_SHARE = 0.4  # of the exchanges in chat rows
ANSWER_LINES = 4  # at most
IGNORED = -100  # the label that cross_entropy skips

# What the user types; the answer is whatever follows in the file.
PASSAGES = (
    "Now is the winter of our discontent",
    "I am determined to prove a villain",
    "Was ever woman in this humour woo'd?",
    "Off with his head!",
    "A horse! a horse! my kingdom for a horse!",
    "This royal throne of kings, this scepter'd isle,",
    "Not all the water in the rough rude sea",
    "For God's sake, let us sit upon the ground",
    "I wasted time, and now doth time waste me;",
    "Do you bite your thumb at us, sir?",
    "O, then, I see Queen Mab hath been with you.",
    "O, she doth teach the torches to burn bright!",
    "He jests at scars that never felt a wound.",
    "But, soft! what light through yonder window breaks?",
    "It is the east, and Juliet is the sun.",
    "O Romeo, Romeo! wherefore art thou Romeo?",
    "Wherefore art thou Romeo?",
    "What's in a name? that which we call a rose",
    "What's in a name?",
    "O, swear not by the moon, the inconstant moon,",
    "My bounty is as boundless as the sea,",
    "Good night, good night! parting is such sweet sorrow,",
    "Parting is such sweet sorrow,",
    "These violent delights have violent ends",
    "Gallop apace, you fiery-footed steeds,",
    "Wilt thou be gone? it is not yet near day:",
    "O happy dagger!",
    "A glooming peace this morning with it brings;",
    "For never was a story of more woe",
    "Why, I can smile, and murder whiles I smile,",
    "You common cry of curs! whose breath I hate",
    "A sad tale's best for winter:",
    "Our doubts are traitors",
    "The miserable have no other medicine",
    "Ay, but to die, and go we know not where;",
    "I come to wive it wealthily in Padua;",
    "Thy husband is thy lord, thy life, thy keeper,",
    "Why, there's a wench!",
    "Before we proceed any further, hear me speak.",
)

Row = tuple[list[int], list[int]]


def answer_after(text: str, end: int) -> str:
    """The lines that follow position `end`: the rest of the speech or, at its end, the next one.

    At most `ANSWER_LINES`, and none after a line (the second or a later one) that ends a sentence.
    """
    speeches = [speech.strip() for speech in text[end : end + 1500].split("\n\n")]
    first = 0 if speeches[0] else 1
    header = first  # the next speech starts with its speaker's name
    lines = speeches[first].split("\n") if first < len(speeches) else []
    answer: list[str] = []
    for line in lines[: ANSWER_LINES + header]:
        answer.append(line.strip())
        if len(answer) > 1 and line.endswith((".", "?", "!")):
            break
    return "\n".join(answer)


def passage_answer(text: str, passage: str) -> str:
    """The true continuation of a passage: at its first place in the file, any case, any spacing."""
    pattern = r"\s+".join(re.escape(word) for word in passage.split())
    found = re.search(rf"(?<!\w){pattern}", text, re.IGNORECASE)
    if found is None:
        raise SystemExit(f"the data does not have the passage {passage!r}; is it tiny Shakespeare?")
    return answer_after(text, found.end())


def as_typed(line: str, rng: np.random.Generator) -> str:
    """The line as somebody might type it: perhaps no capitals, perhaps less punctuation."""
    if rng.random() < 0.5:
        return line
    if rng.random() < 0.6:
        line = line.lower()
    if rng.random() < 0.5:
        return re.sub(r"[^\w\s'-]", "", line)
    return line.rstrip(",.;:?!")


@dataclass
class Corpus:
    """The training text as plain lines, token ids and famous passages; draws rows from them."""

    text: str
    tokenizer: Tokenizer
    rng: np.random.Generator
    stream: np.ndarray = field(init=False)
    starts: np.ndarray = field(init=False)
    places: list[tuple[str, int]] = field(init=False)
    passages: list[tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        newline = self.tokenizer.encode("\n", add_special_tokens=False).ids
        stream: list[int] = []
        starts: list[int] = []
        self.places = []
        position = 0
        known = {passage.lower() for passage in PASSAGES}
        for line in self.text.split("\n"):
            if line:
                starts.append(len(stream))
            stream += self.tokenizer.encode(line, add_special_tokens=False).ids + newline
            end = position + len(line)
            position = end + 1
            if line and line.lower() not in known and answer_after(self.text, end):
                self.places.append((line, end))
        self.stream = np.array(stream)
        self.starts = np.array([start for start in starts if start + ROW_TOKENS < len(stream)])
        self.passages = [(each, passage_answer(self.text, each)) for each in PASSAGES]

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def exchange(self) -> tuple[str, str]:
        """What the user says and what the assistant answers."""
        if self.rng.random() < PASSAGE_SHARE:
            line, answer = self.passages[self.rng.integers(len(self.passages))]
            return as_typed(line, self.rng), answer
        index = int(self.rng.integers(1, len(self.places)))
        line, end = self.places[index]
        if self.rng.random() < 0.3:
            line = f"{self.places[index - 1][0]}\n{line}"
        return as_typed(line, self.rng), answer_after(self.text, end)

    def chat_row(self) -> Row:
        tokens: list[int] = []
        labels: list[int] = []
        user, assistant, bos, eos = (self.ids(each)[0] for each in (USER, ASSISTANT, BOS, EOS))
        turns_left = 0
        while len(tokens) <= ROW_TOKENS:
            if turns_left == 0:
                turns_left = int(self.rng.integers(1, 5))
                tokens.append(bos)
                labels.append(IGNORED)
            line, answer = self.exchange()
            asked = [user, *self.ids(line), assistant]
            answered = [*self.ids(answer), eos]
            tokens += asked + answered
            labels += [IGNORED] * len(asked) + answered
            turns_left -= 1
        return tokens[:ROW_TOKENS], labels[:ROW_TOKENS]

    def plain_row(self) -> Row:
        start = int(self.starts[self.rng.integers(len(self.starts))])
        tokens = [self.ids(BOS)[0], *self.stream[start : start + ROW_TOKENS - 1].tolist()]
        return tokens, [IGNORED, *tokens[1:]]

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Tokens and labels, each (ROWS_PER_STEP, ROW_TOKENS), without end."""
        while True:
            chats = round(CHAT_SHARE * ROWS_PER_STEP)
            rows = [self.chat_row() for _ in range(chats)]
            rows += [self.plain_row() for _ in range(ROWS_PER_STEP - chats)]
            yield torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])


def train_tokenizer(text: str) -> Tokenizer:
    """Byte-level BPE: any text round-trips. A newline is always a piece of its own."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"\n| ?\p{L}+(?:'\p{L}+)*| ?\p{N}+| ?[^\s\p{L}\p{N}]+|[^\S\n]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_PIECES,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[bos]
    )
    return tokenizer

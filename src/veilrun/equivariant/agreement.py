"""Agreement: does the encrypted model say what the plain one says? Measured on real text.

Both models read the same windows of text, one as plain ids, the other as cipher ids; the
second one's logits are put back in the order of plain ids and compared position by position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from veilrun.checkpoint.tables import read_tables
from veilrun.equivariant.codec import Codec
from veilrun.errors import CheckpointError, UsageError

DtypeName = Literal["float32", "bfloat16", "float16"]

SAMPLE_TEXT: Final = (
    "We the People of the United States, in Order to form a more perfect Union, establish "
    "Justice, insure domestic Tranquility, provide for the common defence, promote the general "
    "Welfare, and secure the Blessings of Liberty to ourselves and our Posterity, do ordain and "
    "establish this Constitution. Call me Ishmael. Some years ago, never mind how long "
    "precisely, having little or no money in my purse, and nothing particular to interest me on "
    "shore, I thought I would sail about a little and see the watery part of the world. It is a "
    "truth universally acknowledged, that a single man in possession of a good fortune, must be "
    "in want of a wife. It was the best of times, it was the worst of times, it was the age of "
    "wisdom, it was the age of foolishness."
)
"""Public-domain sentences, for a check without a text file."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Plain against encrypted model, computing in `dtype`.

    n_positions: predictions compared. top_token_share: share of equal most likely tokens.
    kl_mean, kl_max: Kullback-Leibler divergence, plain from encrypted, in nats a position.
    max_logit_difference, max_logit: the largest absolute values.
    """

    dtype: DtypeName
    n_positions: int
    top_token_share: float
    kl_mean: float
    kl_max: float
    max_logit_difference: float
    max_logit: float


def windows(tokenizer_folder: Path, text: str, n_positions: int, width: int) -> list[list[int]]:
    """`text` as plain ids, cut into windows of at most `width`, `n_positions` in all.

    Raises:
        CheckpointError: the folder's tokenizer cannot be used. UsageError: the text is empty.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{tokenizer_folder} holds no usable tokenizer") from error
    ids = tokenizer(text, verbose=False)["input_ids"][:n_positions]
    if len(ids) < 2:
        raise UsageError("the text is too short to compare anything")
    return [ids[start : start + width] for start in range(0, len(ids), width)]


def measure(
    plain: Path,
    encrypted: Path,
    codec: Codec,
    id_windows: Sequence[Sequence[int]],
    dtype: DtypeName,
    on_window: Callable[[], None] = lambda: None,
    ends_file: Path | None = None,
) -> Agreement:
    """Compare the two checkpoints on windows of plain ids; one model is in memory at a time.

    ends_file: the kit's embedding and head, for an encrypted checkpoint that has neither.
    """
    order = torch.tensor(codec.encode(range(codec.vocab_size)))
    model = _load(plain, dtype)
    plain_logits = [_logits(model, ids) for ids in id_windows]
    del model
    model = _load(encrypted, dtype) if ends_file is None else _Joined(encrypted, ends_file, dtype)
    same, n_positions, kl_sum, kl_max, difference, largest = 0, 0, 0.0, 0.0, 0.0, 0.0
    for ids, plain_logit in zip(id_windows, plain_logits, strict=True):
        expected = plain_logit.double()
        actual = _logits(model, codec.encode(ids))[:, order].double()
        kl = _divergence(expected, actual)
        n_positions += len(ids)
        same += int((expected.argmax(-1) == actual.argmax(-1)).sum())
        kl_sum, kl_max = kl_sum + float(kl.sum()), max(kl_max, float(kl.max()))
        difference = max(difference, float((expected - actual).abs().max()))
        largest = max(largest, float(expected.abs().max()))
        on_window()
    share = same / n_positions
    return Agreement(dtype, n_positions, share, kl_sum / n_positions, kl_max, difference, largest)


class _Joined:
    """The middle of a model between its client's embedding and head, as one model."""

    def __init__(self, folder: Path, ends_file: Path, dtype: DtypeName) -> None:
        self._middle = _load(folder, dtype, "AutoModel")
        tables = read_tables(ends_file)
        kind = getattr(torch, dtype)
        self._ends = {name: torch.from_numpy(one).to(kind) for name, one in tables.items()}

    def __call__(self, ids: Tensor) -> Any:
        rows = self._ends["embedding.weight"][ids]
        made = self._middle(inputs_embeds=rows)
        head, bias = self._ends["head.weight"], self._ends.get("head.bias")
        made.logits = torch.nn.functional.linear(made.last_hidden_state, head, bias)
        return made


def _load(folder: Path, dtype: DtypeName, kind: str = "AutoModelForCausalLM") -> Any:
    import transformers

    try:
        model, report = getattr(transformers, kind).from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} cannot be loaded: {error}") from error
    # transformers fills what is missing with random numbers and goes on.
    missing = sorted(report["missing_keys"])
    if missing and kind == "AutoModelForCausalLM":
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights, the first is {missing[0]}; a checkpoint "
            "without ends is compared together with those in its client kit"
        )
    return model.eval()


def _logits(model: Any, ids: Sequence[int]) -> Tensor:
    """[positions, vocabulary] float32."""
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([list(ids)])).logits[0]
    return logits.float()


def _divergence(expected: Tensor, actual: Tensor) -> Tensor:
    """[positions]: KL divergence in nats; rounding may leave a hair below zero."""
    p, q = expected.log_softmax(-1), actual.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp_min(0.0)

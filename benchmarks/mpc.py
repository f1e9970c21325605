"""Private inference of BERT-base: ours beside peers of secure multi-party computation, in one run.

    python benchmarks/mpc.py [--rounds 3] [--tokens 8,32,128] [--peers FOLDER] > results.jsonl

The work is the encoder: 12 layers, hidden 768, 12 heads, feed-forward 3072, on rows that one party
has; no embedding question and no head, as the peers' scripts have none. All parties share this
machine, without a network. Contenders take turns, round by round, so a drifting machine hits them
alike. Longer texts than 32 tokens are run by the peers with one layer, and reported as that.

Ours is `veilrun.mpc.bench.measure`: three processes over TLS. Its material is dealt ahead, as it
is in use; that time is reported apart, and once added to the ratios. CrypTen's own offline phase
is left out by its script, and SPU's ABY3 has none.

Both profiles run on the same random weights. Work, bytes and rounds follow from the shape alone;
but `w1a4` answers only for networks that were trained for it, so errors are reported of `w16a8`.

One JSON line per result on standard output; the table goes to standard error, and two charts into
the folder of `--plots`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from mpc_results import OURS, Found, add_ours, add_peer, add_plans, add_ratio, draw
from peers import PEERS, environment, run_peer, script
from report import Report
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from veilrun.mpc import inference, network
from veilrun.mpc.bench import measure
from veilrun.mpc.cost import BERT_BASE
from veilrun.mpc.inference import TwinModel
from veilrun.mpc.machines.twin import Twin, uniform_low_bits
from veilrun.mpc.model import files, reference
from veilrun.mpc.model.architecture import Architecture, FloatModel, random_model
from veilrun.mpc.model.calibration import calibrate
from veilrun.mpc.model.entry import entry_of
from veilrun.mpc.model.quantise import quantise
from veilrun.mpc.model.quantised import CLIENT_EMBEDDING, QuantisedModel
from veilrun.mpc.operations import Operations
from veilrun.mpc.profile import W16A8
from veilrun.mpc.shares import Masked, Shared
from veilrun.transport.rounds import Protocol

PARTS: Final = ("ours", "peers", "plan", "error")
LONGEST_WHOLE: Final = 32  # tokens; with more, a peer takes minutes for each layer
N_CALIBRATION: Final = 512  # tokens of each length, and at least 8 texts


def main() -> None:
    """Run what was asked for, in a temporary folder."""
    options = _options()
    shape = replace(BERT_BASE, n_layers=options.layers, head_activation=None, n_labels=0, labels=())
    report = Report(f"private BERT-base, encoder of {shape.n_layers} layers")
    found = Found()
    with tempfile.TemporaryDirectory(prefix="veilrun-bench-") as folder:
        if {"ours", "error"} & set(options.only):
            _prepare(options, shape, Path(folder), report)
        _take_turns(found, _contenders(options, shape, Path(folder), found, report))
    for n_tokens in options.tokens:
        for profile in OURS:
            add_ours(report, shape, profile, n_tokens, found, options.threads)
        for name in PEERS:
            add_peer(report, name, n_tokens, found)
            for profile in OURS:
                add_ratio(report, shape, profile, name, n_tokens, found)
    if "plan" in options.only:
        add_plans(report)
    if any(found.ours.values()):
        draw(options.plots, shape, options.tokens, found)
    report.show()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="may be repeated")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender")
    parser.add_argument("--repeats", type=int, default=3, help="of ours, in each turn")
    parser.add_argument(
        "--tokens",
        type=lambda words: [int(word) for word in words.split(",")],
        default=[8, 32, 128],
        help="lengths, with commas between",
    )
    parser.add_argument("--layers", type=int, default=BERT_BASE.n_layers)
    parser.add_argument("--threads", type=int, default=1, help="of each of our parties")
    parser.add_argument(
        "--peers", type=Path, default=Path("build/peers"), help="folder of their environments"
    )
    parser.add_argument("--install", action="store_true", help="make them where they are missing")
    parser.add_argument("--plots", type=Path, default=Path("docs"), help="folder for the charts")
    options = parser.parse_args()
    options.only = options.only or list(PARTS)
    return options


# --- running --------------------------------------------------------------------------------------


def _contenders(
    options: argparse.Namespace, shape: Architecture, folder: Path, found: Found, report: Report
) -> list[tuple[str, Callable[[], None]]]:
    """What is to be run, in order: a name and a call."""
    turn: list[tuple[str, Callable[[], None]]] = []
    peers = [name for name in PEERS if "peers" in options.only and _is_there(name, options, report)]
    for n_tokens in options.tokens:
        for profile in OURS if "ours" in options.only else ():

            def ours(name: str = profile.name, n_tokens: int = n_tokens) -> None:
                runs = measure(folder / name, n_tokens, options.repeats, n_threads=options.threads)
                found.ours[name, n_tokens] += runs

            turn.append((f"ours in {profile.name}, {n_tokens} tokens", ours))
        for name in peers:

            def peer(name: str = name, n_tokens: int = n_tokens) -> None:
                n_layers = shape.n_layers if n_tokens <= LONGEST_WHOLE else 1
                result, why = run_peer(name, options.peers, layers=n_layers, tokens=n_tokens)
                if result is None:
                    raise RuntimeError(f"{name} was there before: {why}")
                found.peers[name, n_tokens].append(result)

            turn.append((f"{name}, {n_tokens} tokens", peer))
    return turn * options.rounds


def _is_there(name: str, options: argparse.Namespace, report: Report) -> bool:
    """Whether a peer can run; if not, the report says why."""
    path, why = script(name)
    if path is not None:
        python, why = environment(name, options.peers, install=options.install)
        if python is not None:
            return True
    report.add("mpc-peer", {"peer": name, "skipped": why}, f"skipped: {why}")
    return False


def _take_turns(found: Found, turns: Sequence[tuple[str, Callable[[], None]]]) -> None:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=len(turns))
        for name, call in turns:
            progress.update(bar, description=name)
            call()
            progress.advance(bar)


def _prepare(
    options: argparse.Namespace, shape: Architecture, folder: Path, report: Report
) -> None:
    """Random weights as the peers' scripts have them: a folder for each profile, and the errors."""
    model = random_model(shape, seed=0)
    random = np.random.default_rng(0)
    texts = [
        random.integers(0, shape.n_vocab, n_tokens).tolist()
        for n_tokens in options.tokens
        for _ in range(max(8, N_CALIBRATION // n_tokens))
    ]
    ranges = calibrate(model, texts)
    for profile in OURS:
        integers = quantise(model, ranges, profile, embedding=CLIENT_EMBEDDING)
        files.save(integers, b"{}", folder / profile.name)
        if "error" in options.only and profile is W16A8:
            _add_errors(report, model, integers, options.tokens)


def _add_errors(
    report: Report, model: FloatModel, integers: QuantisedModel, lengths: Sequence[int]
) -> None:
    """Every output of the encoder beside float64, by the twin, which answers as the parties do."""
    twin = TwinModel(integers)
    for n_tokens in lengths:
        ids = np.random.default_rng(1).integers(0, model.architecture.n_vocab, n_tokens).tolist()
        machine = Twin(twin.matrices, twin.constants, twin.public.tables, uniform_low_bits(0))
        entry = Shared(entry_of(integers, ids), twin.public.profile.rings.linear)
        rows: Masked = inference.finish(_encode(Operations(machine), integers, entry))
        norm = model.layers[-1].norm_2
        found = rows.array / 2.0**W16A8.x_fraction * norm.gain + norm.bias
        exact = reference.forward(model, ids, dtype=np.float64).hidden
        lengths_of = np.linalg.norm(found, axis=1) * np.linalg.norm(exact, axis=1)
        cosine = float(((found * exact).sum(1) / lengths_of).min())
        worst = float(np.abs(found - exact).max())
        n_outside = sum(one.n_values for one in machine.overflows)
        report.add(
            "mpc-error",
            {
                "n_tokens": n_tokens,
                "n_layers": model.architecture.n_layers,
                "max_abs_err": worst,
                "cosine_worst_row": cosine,
                "n_overflows": n_outside,
            },
            f"{n_tokens} tokens: largest error {worst:.4f}, worst cosine of a row {cosine:.6f}, "
            f"{n_outside} overflows",
        )


def _encode(ops: Operations, integers: QuantisedModel, entry: Shared) -> Protocol[Masked]:
    public = integers.public
    x = yield from network.embed_publicly(ops, entry)
    shape = network.Shape(public.architecture.n_heads, public.anchors, public.neurons)
    return (yield from network.encode(ops, public.profile, shape, x))


if __name__ == "__main__":
    main()

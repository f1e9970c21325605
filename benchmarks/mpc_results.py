"""What `mpc.py` found: JSON lines, rows of the table beside what is promised, and two charts."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from chart import Bar, Group, bars
from peers import PEERS, PeerResult
from report import Report, spread

from veilrun.mpc import cost, native
from veilrun.mpc.bench import Measurement
from veilrun.mpc.cost import BERT_BASE, Prediction
from veilrun.mpc.model.architecture import Architecture
from veilrun.mpc.model.quantised import CLIENT_EMBEDDING, SECRET_EMBEDDING
from veilrun.mpc.profile import W1A4, W16A8, Profile

ONLINE_S: Final = {8: 0.15, 32: 0.5, 128: 2.0}
DEALING_S: Final = {8: 3.0}
OURS: Final = (W16A8, W1A4)
FASTER: Final = {("crypten", 8): 200, ("spu", 8): 100}
TOTAL_MB: Final = {("w16a8", 8): 12.5, ("w16a8", 128): 16.5, ("w1a4", 8): 5.0, ("w1a4", 128): 5.0}
ONLINE_MB, LAYER_ROUNDS = 1.5, 15


@dataclass
class Found:
    """All runs, by profile or peer, and by number of tokens."""

    ours: dict[tuple[str, int], list[Measurement]] = field(
        default_factory=lambda: defaultdict(list)
    )
    peers: dict[tuple[str, int], list[PeerResult]] = field(
        default_factory=lambda: defaultdict(list)
    )


def add_ours(
    report: Report,
    shape: Architecture,
    profile: Profile,
    n_tokens: int,
    found: Found,
    n_threads: int,
) -> None:
    """What ours took for one length: seconds, dealing, bytes and rounds, and a network's time."""
    runs = found.ours[profile.name, n_tokens]
    if not runs:
        return
    said = cost.predict(cost.shape_only(shape, profile, CLIENT_EMBEDDING), n_tokens)
    for run in runs:
        _check(run, said)
    place = {"profile": profile.name, "n_tokens": n_tokens, "n_layers": shape.n_layers}
    kernel = "numpy" if native.KERNEL is None else native.KERNEL.features.name
    seconds = {
        name: spread([getattr(run, name) for run in runs])
        for name in asdict(runs[0])
        if name.endswith("_s")
    }
    wall, p1, p2 = (seconds[name]["median"] for name in ("online_s", "p1_cpu_s", "p2_cpu_s"))
    least, most = seconds["online_s"]["min"], seconds["online_s"]["max"]
    report.add(
        "mpc-online",
        place | {"n_runs": len(runs), "n_threads": n_threads, "kernel": kernel} | seconds,
        f"{profile.name}, {n_tokens} tokens: {wall:.3f} s ({least:.3f} to {most:.3f}), "
        f"CPU {p1:.3f} + {p2:.3f} s",
        _want("<= {} s", ONLINE_S.get(n_tokens), shape),
    )
    deal, deal_cpu = seconds["deal_s"]["median"], seconds["deal_cpu_s"]["median"]
    report.add(
        "mpc-dealing",
        place | {"deal_s": seconds["deal_s"], "deal_cpu_s": seconds["deal_cpu_s"]},
        f"{profile.name}, {n_tokens} tokens: {deal:.2f} s ahead, CPU {deal_cpu:.2f} s; prepared in "
        f"{seconds['prepare_s']['median']:.3f} s",
        _want("<= {} s", DEALING_S.get(n_tokens), shape),
    )
    _add_traffic(report, shape, profile, said)
    _add_networks(report, profile, said, n_threads)


def _add_traffic(report: Report, shape: Architecture, profile: Profile, said: Prediction) -> None:
    """Bytes and rounds, predicted, which were found to be those measured."""
    n_tokens = said.n_tokens
    deeper = cost.shape_only(replace(shape, n_layers=shape.n_layers + 1), profile, CLIENT_EMBEDDING)
    layer_rounds = cost.predict(deeper, n_tokens).n_online_rounds - said.n_online_rounds
    facts = {
        "profile": profile.name,
        "n_tokens": n_tokens,
        "n_layers": shape.n_layers,
        "is_as_predicted": True,
        "n_rounds": said.n_online_rounds,
        "n_rounds_per_layer": layer_rounds,
        **{f"{phase}_bytes": n_bytes for phase, n_bytes in _phases(said)},
        **{f"{phase}_bytes_per_token": n / n_tokens for phase, n in _phases(said)},
    }
    offline, online = said.offline_bytes / n_tokens / 1e6, said.online_bytes / n_tokens / 1e6
    report.add(
        "mpc-traffic",
        facts,
        f"{profile.name}, {n_tokens} tokens: {offline:.2f} MB/token offline, {online:.2f} online, "
        f"{said.n_online_rounds} rounds, {layer_rounds} a layer: as predicted, to the byte",
        _want(f"online <= {ONLINE_MB} MB, <= {{}} a layer", LAYER_ROUNDS, shape),
    )


def _add_networks(report: Report, profile: Profile, said: Prediction, n_threads: int) -> None:
    speed = cost.measure(said.n_tokens, profile, n_threads)
    times = {name: cost.seconds(said, link, speed) for name, link in cost.NETWORKS.items()}
    facts = {name: asdict(one) | {"answer": one.answer} for name, one in times.items()}
    words = (
        f"{name.upper()} {one.answer:.2f} s (dealing and sending ahead {one.offline:.1f} s)"
        for name, one in times.items()
    )
    report.add(
        "mpc-network-prediction",
        {"profile": profile.name, "n_tokens": said.n_tokens, "is_estimate": True, **facts},
        f"{profile.name}, {said.n_tokens} tokens, predicted, not measured: {', '.join(words)}",
    )


def add_peer(report: Report, name: str, n_tokens: int, found: Found) -> None:
    """What a peer took for one length."""
    runs = found.peers[name, n_tokens]
    if not runs:
        return
    first = runs[0]
    wall, cpu = (spread([getattr(run, what) for run in runs]) for what in ("wall_s", "cpu_s"))
    facts = asdict(first) | {"n_runs": len(runs), "wall_s": wall, "cpu_s": cpu}
    per_token = first.bytes_total / first.tokens / 1e6
    report.add(
        "mpc-peer",
        facts,
        f"{first.peer} {first.version}, {first.tokens} tokens, {_layers(first.layers)}: "
        f"{wall['median']:.2f} s, CPU {cpu['median']:.2f} s, {per_token:.1f} MB/token, "
        f"{first.rounds} rounds, error {first.max_abs_err:.3f}",
    )


def add_ratio(
    report: Report, shape: Architecture, profile: Profile, name: str, n_tokens: int, found: Found
) -> None:
    """How many times ours goes into a peer."""
    runs, ours = found.peers[name, n_tokens], found.ours[profile.name, n_tokens]
    if not runs or not ours:
        return
    first = runs[0]
    wall, cpu = (
        statistics.median(getattr(run, what) for run in runs) for what in ("wall_s", "cpu_s")
    )
    online, ours_cpu, dealing, dealing_cpu = _ours_s(ours)
    ratios = {
        "wall": wall / online,
        "cpu": cpu / ours_cpu,
        "wall_with_dealing": wall / (online + dealing),
        "cpu_with_dealing": cpu / (ours_cpu + dealing_cpu),
    }
    is_same = first.layers == shape.n_layers
    work = "the same work" if is_same else f"its {_layers(first.layers)} over our {shape.n_layers}"
    wanted = FASTER.get((name, first.tokens)) if is_same else None
    report.add(
        "mpc-over-peer",
        {
            "profile": profile.name,
            "peer": first.peer,
            "n_tokens": first.tokens,
            "n_layers": {"peer": first.layers, "ours": shape.n_layers},
            "is_same_work": is_same,
            "ratios": {what: round(ratio, 2) for what, ratio in ratios.items()},
        },
        f"{first.peer} over {profile.name}, {first.tokens} tokens, {work}: "
        f"{ratios['wall']:.1f}x the time, {ratios['cpu']:.1f}x the CPU (with our dealing "
        f"{ratios['wall_with_dealing']:.1f}x, {ratios['cpu_with_dealing']:.1f}x)",
        _want(">= {}x the time", wanted, shape),
    )


def add_plans(report: Report) -> None:
    """All of BERT-base, with a secret embedding and a classifier, as far as bytes go."""
    for profile in (W16A8, W1A4):
        for n_tokens in (8, 128):
            said = _plan(BERT_BASE, profile, n_tokens)
            phases = ", ".join(f"{what} {n / n_tokens / 1e6:.3f}" for what, n in _phases(said))
            total = said.total_bytes / n_tokens / 1e6
            report.add(
                "mpc-plan",
                {"profile": profile.name, "total_bytes_per_token": said.total_bytes / n_tokens}
                | said.to_json(),
                f"{profile.name}, {n_tokens} tokens, all of BERT: {total:.2f} MB/token ({phases})",
                _want("<= {} MB", TOTAL_MB[profile.name, n_tokens], BERT_BASE),
            )


# --- drawing --------------------------------------------------------------------------------------


def draw(folder: Path, shape: Architecture, lengths: Sequence[int], found: Found) -> None:
    """Both charts: seconds, and megabytes per token by phase."""
    folder.mkdir(parents=True, exist_ok=True)
    speed, traffic = [], []
    for n_tokens in lengths:
        seconds, megabytes = [], []
        for profile in OURS:
            if runs := found.ours[profile.name, n_tokens]:
                online = _ours_s(runs)[0]
                seconds.append(Bar(f"veilrun, {profile.name}", online, f"{online:.3g} s"))
        for what, n_bytes in _phases(_plan(BERT_BASE, W16A8, n_tokens)):
            each = n_bytes / n_tokens / 1e6
            megabytes.append(Bar(f"w16a8, {what}", each, f"{each:.2g} MB"))
        for name in PEERS:
            for one, wall in _medians(found.peers[name, n_tokens]):
                note = "" if one.layers == shape.n_layers else f", {_layers(one.layers)} only"
                each = one.bytes_total / n_tokens / 1e6
                seconds.append(Bar(one.peer, wall, f"{wall:.3g} s{note}"))
                megabytes.append(Bar(one.peer, each, f"{each:.3g} MB{note}"))
        speed.append(Group(f"{n_tokens} tokens", seconds))
        traffic.append(Group(f"{n_tokens} tokens", megabytes))
    title = f"BERT-base encoder, {_layers(shape.n_layers)}: seconds online, on one machine"
    (folder / "mpc-speed.svg").write_text(bars(title, speed))
    (folder / "mpc-bytes.svg").write_text(bars("BERT-base: megabytes per token", traffic))


def _medians(runs: Sequence[PeerResult]) -> Iterator[tuple[PeerResult, float]]:
    """At most one pair: what was run, and the median of its time."""
    if runs:
        yield runs[0], statistics.median(run.wall_s for run in runs)


# --- small things ---------------------------------------------------------------------------------


def _check(run: Measurement, said: Prediction) -> None:
    """Bytes and rounds are known before: any difference is a fault, not a measurement."""
    found = (run.offline_bytes, run.embedding_bytes, run.online_bytes, run.n_rounds)
    wanted = (said.offline_bytes, said.embedding_bytes, said.online_bytes, said.n_online_rounds)
    if found != wanted:
        raise RuntimeError(f"bytes and rounds are {found}, and {wanted} were predicted")


def _ours_s(runs: Sequence[Measurement]) -> tuple[float, float, float, float]:
    """Medians: online, CPU of both parties; dealing, its CPU."""
    return (
        statistics.median(run.online_s for run in runs),
        statistics.median(run.p1_cpu_s + run.p2_cpu_s for run in runs),
        statistics.median(run.deal_s for run in runs),
        statistics.median(run.deal_cpu_s for run in runs),
    )


def _plan(shape: Architecture, profile: Profile, n_tokens: int) -> Prediction:
    return cost.predict(cost.shape_only(shape, profile, SECRET_EMBEDDING), n_tokens)


def _phases(said: Prediction) -> list[tuple[str, int]]:
    return [
        ("offline", said.offline_bytes),
        ("embedding", said.embedding_bytes),
        ("online", said.online_bytes),
    ]


def _layers(n: int) -> str:
    return "1 layer" if n == 1 else f"{n} layers"


def _want(words: str, promise: Any, shape: Architecture) -> str:
    """The promise, which is one about BERT-base whole."""
    return words.format(promise) if promise and shape.n_layers == BERT_BASE.n_layers else ""

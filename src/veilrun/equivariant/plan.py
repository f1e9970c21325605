"""A family's table and a checkpoint become jobs, one per tensor of the encrypted checkpoint.

Invariant: planning reads headers and (to decide on untying) one gain vector, and writes
nothing. Every parameter that no row names, every row that no parameter meets and every shape
that contradicts the configuration is reported at once; after that, only the disk can fail.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from veilrun.checkpoint.folder import Checkpoint
from veilrun.equivariant.census import Census, Found, take_census
from veilrun.equivariant.families.table import Family, Linear, Norm, Row, Shape
from veilrun.equivariant.tensors import read_vector


@dataclass(frozen=True, slots=True)
class Fold:
    """A norm's affine on its way into a module that reads the norm.

    gain, bias: the norm's tensors; bias is None for RMSNorm.
    offset: what the stored gain lacks (1 for Gemma).
    ones: the folded norm keeps the all-ones vector as its bias, because some reader has no
        bias of its own: there a folded bias rides on the mean direction.
    """

    gain: str
    bias: str | None
    offset: float
    ones: bool


@dataclass(frozen=True, slots=True)
class Job:
    """One tensor of the encrypted checkpoint.

    source: its name in the plain checkpoint. found: the table's word on it.
    fold: the affine that folds into it. weight: for a bias, the weight beside it.
    has_bias: for a weight, whether there is a bias beside it.
    constant: the value that fills a norm's tensor once its affine has been folded away.
    """

    source: str
    found: Found
    fold: Fold | None = None
    weight: str | None = None
    has_bias: bool = False
    constant: float | None = None

    @property
    def row(self) -> Row:
        """The table's row."""
        return self.found.row

    def target(self, expert: int | None) -> str:
        """The tensor's name in the encrypted checkpoint, where its expert has a new number."""
        return f"{self.row.name.format(layer=self.found.layer, expert=expert)}.{self.found.part}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All jobs, by the shard they are written to, in the order they are read.

    untied: the configuration calls the head tied, and the result's head has its own tensor.
    """

    family: Family
    shards: dict[str, list[Job]]
    untied: bool

    def parted(self) -> tuple[Plan, list[Job]]:
        """The middle of the model, and the jobs of its two ends."""
        names = (self.family.embedding, self.family.head)
        ends = [job for jobs in self.shards.values() for job in jobs if job.row.name in names]
        rest = {
            shard: [job for job in jobs if job not in ends] for shard, jobs in self.shards.items()
        }
        middle = {shard: jobs for shard, jobs in rest.items() if jobs}
        return Plan(self.family, middle, self.untied), ends


def make_plan(
    checkpoint: Checkpoint,
    family: Family,
    shape: Shape,
    *,
    tied: bool,
    folds: bool,
    unties: bool = False,
) -> Plan:
    """Plan the encryption of `checkpoint`.

    tied: the configuration says that the head shares the embedding's tensor; a checkpoint that
        stores another one for the head is right, and the configuration is not.
    folds: gains fold into their readers.
    unties: embedding and head part company even where one tensor could serve as both.

    Raises:
        UnsupportedModel: parameters without a private form; all of them are named.
        CheckpointError: parameters are missing, or shapes contradict the configuration.
    """
    census = take_census(checkpoint, family, shape, tied=tied)
    own_head = tied and _stores_another_head(checkpoint, census)
    tied = tied and not own_head
    # A norm before a tied head folds into it, unless it scales by one number: that commutes
    # with every key, so the head can go on sharing the embedding's tensor.
    may_share = tied and folds and not unties
    unfolded = _single_gain(checkpoint, census) if may_share else None
    untied = tied and (unties or (folds and unfolded is None))
    planner = _Planner(census, folds, unfolded)
    shards: dict[str, list[Job]] = {name: [] for name in checkpoint.shards}
    for name, found in census.found.items():
        if not (tied and found.row is census.head):
            shards[checkpoint.shard_name(name)].append(planner.job(name, found))
    if untied:
        embedding = census.modules[family.embedding]["weight"]
        job = planner.job(embedding, Found(census.head, "weight", None, None))
        shards[checkpoint.shard_name(embedding)].append(job)
    used = {name: jobs for name, jobs in shards.items() if jobs}
    return Plan(family, used, untied or own_head)


def _stores_another_head(checkpoint: Checkpoint, census: Census) -> bool:
    """Engines tie two stored tensors only if they are equal; so do we."""
    head = census.modules.get(census.family.head, {}).get("weight")
    if head is None:
        return False
    embedding = census.modules[census.family.embedding]["weight"]
    a, b = checkpoint[head], checkpoint[embedding]
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return True
    step = 1 << 22
    return any(
        checkpoint.read_range(head, start, min(start + step, a.n_bytes))
        != checkpoint.read_range(embedding, start, min(start + step, a.n_bytes))
        for start in range(0, a.n_bytes, step)
    )


def _single_gain(checkpoint: Checkpoint, census: Census) -> tuple[str, float] | None:
    """The norm before the head and its gain, where that is one number for all entries."""
    norm = census.norm_before(census.head, None)
    if norm is None or "bias" in census.modules[norm]:
        return None
    gain = read_vector(checkpoint, census.modules[norm]["weight"])
    return (norm, float(gain[0])) if torch.all(gain == gain[0]) else None


@dataclass(frozen=True, slots=True)
class _Planner:
    """Makes the job of one tensor. unfolded: the one norm that keeps its gain, and the gain."""

    census: Census
    folds: bool
    unfolded: tuple[str, float] | None

    def job(self, source: str, found: Found) -> Job:
        """The job of tensor `source`."""
        if not self.folds:
            return Job(source, found)
        match found.row:
            case Linear() as row:
                return self._reader(source, found, row)
            case Norm(carried=False) as row:
                return Job(source, found, constant=self._constant(row, found))
            case _:
                return Job(source, found)

    def _reader(self, source: str, found: Found, row: Linear) -> Job:
        norm = self.census.norm_before(row, found.layer)
        if norm is None or (self.unfolded is not None and norm == self.unfolded[0]):
            return Job(source, found)
        parts = self.census.modules[norm]
        norm_row = self.census.found[parts["weight"]].row
        fold = Fold(
            gain=parts["weight"],
            bias=parts.get("bias"),
            offset=1.0 if isinstance(norm_row, Norm) and norm_row.kind == "rms+1" else 0.0,
            ones=self._has_bare_reader(norm, found.layer),
        )
        beside = self.census.modules.get(found.module, {})
        weight = beside["weight"] if found.part == "bias" else None
        return Job(source, found, fold, weight=weight, has_bias="bias" in beside)

    def _constant(self, row: Norm, found: Found) -> float:
        if self.unfolded is not None and found.module == self.unfolded[0]:
            return self.unfolded[1]
        if found.part == "bias":
            return float(self._has_bare_reader(found.module, found.layer))
        return 0.0 if row.kind == "rms+1" else 1.0

    def _has_bare_reader(self, norm: str, layer: int | None) -> bool:
        return any(
            "bias" not in self.census.modules.get(row.name.format(layer=layer, expert=0), {})
            for row in self.census.family.rows
            if isinstance(row, Linear) and self.census.norm_before(row, layer) == norm
        )

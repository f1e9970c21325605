"""What runs the model, from the options of `veilrun node`: an engine, or a middle."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veilrun.cli.node_tune import AUTO, TuneOptions, chosen_arm
from veilrun.errors import RefusedError, UsageError

if TYPE_CHECKING:  # torch and aiohttp take seconds to import, and --help needs neither
    from veilrun.node.engine import Engine
    from veilrun.node.middle_server import Middle
    from veilrun.node.transformers_engine import TransformersSettings


class EngineName(StrEnum):
    """What runs the model."""

    transformers = "transformers"
    vllm = "vllm"


EngineChoice = Annotated[EngineName, typer.Option("--engine", help="What runs the model.")]
MaxRunning = Annotated[int, typer.Option(min=1, help="Answers generated at a time.")]
MaxModelLen = Annotated[
    int | None, typer.Option(min=2, help="Prompt and answer together, in tokens.")
]
CacheGib = Annotated[
    float | None,
    typer.Option(min=0.001, help="Bound of the attention cache (transformers engine), in GiB."),
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda:N (transformers engine).")]
VllmArguments = Annotated[
    list[str] | None,
    typer.Option(
        "--vllm-argument",
        help="One of `vllm serve`'s own, like --tensor-parallel-size=2; repeatable (vllm engine).",
    ),
]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the command line says about running the model, as it says it."""

    name: EngineName
    max_running: int
    max_model_len: int | None
    cache_gib: float | None
    dtype: str
    device: str
    vllm_arguments: list[str] | None
    tuning: TuneOptions

    def engine(self, folder: Path) -> Engine:
        """For a whole model; not started.

        Raises:
            UsageError: options that do not go together.
        """
        if self.tuning.tune is not None:
            return self._tuned(folder)
        if self.name is EngineName.vllm:
            return self._vllm(folder)
        if self.vllm_arguments:
            raise UsageError("--vllm-argument is an option of the vllm engine")
        from veilrun.node.transformers_engine import TransformersEngine

        return TransformersEngine(folder, self._settings())

    def middle(self, folder: Path) -> Middle:
        """For a model without embedding and head; not started.

        Raises:
            UsageError: options that are for whole models.
        """
        if self.tuning.tune is not None:
            raise UsageError("arms are for whole models; this one has neither embedding nor head")
        if self.name is EngineName.vllm or self.vllm_arguments:
            raise UsageError("vllm serves whole models; this folder has neither embedding nor head")
        from veilrun.node.middle_engine import MiddleEngine

        return MiddleEngine(folder, self._settings())

    def _tuned(self, folder: Path) -> Engine:
        """The engine of a named arm, or of the one that suits."""
        if self.cache_gib is not None or self.vllm_arguments:
            raise UsageError("--tune sets what --cache-gib and --vllm-argument would")
        on_vllm = self.name is EngineName.vllm
        if on_vllm and self.tuning.tune == AUTO:
            raise RefusedError(
                "the tuner has no runs of vLLM to learn from; name an arm (`veilrun tune arms`)"
            )
        from veilrun.node.tuned import engine_for, vllm_options

        arm = chosen_arm(self.tuning, folder, self.max_model_len)
        if on_vllm:
            from veilrun.node.vllm_engine import VllmEngine

            options = vllm_options(arm, max_model_len=self.max_model_len, dtype=self.dtype)
            return VllmEngine(folder, options)
        return engine_for(
            arm,
            folder,
            max_model_len=self.max_model_len,
            device=self.device,
            dtype=self.dtype,
            draft=self.tuning.draft,
        )

    def _vllm(self, folder: Path) -> Engine:
        if self.cache_gib is not None or self.device != "auto":
            raise UsageError("--cache-gib and --device are options of the transformers engine")
        from veilrun.node.vllm_engine import VllmEngine, VllmOptions

        options = VllmOptions(
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_running,
            dtype=self.dtype,
            extra_arguments=tuple(self.vllm_arguments or ()),
        )
        return VllmEngine(folder, options)

    def _settings(self) -> TransformersSettings:
        from veilrun.node.transformers_engine import TransformersSettings

        return TransformersSettings(
            max_running=self.max_running,
            max_model_len=self.max_model_len,
            cache_bytes=None if self.cache_gib is None else int(self.cache_gib * 2**30),
            device=self.device,
            dtype=self.dtype,
        )

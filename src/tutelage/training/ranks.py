# pyright: basic
"""The door to Accelerate, and the only place that knows of other processes.

A rank is one process of a run. Every rank calls the methods here in the same order.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, final

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from tutelage.core.errors import (
    ConfigError,
    MissingDependencyError,
    OutputError,
    TutelageError,
)
from tutelage.core.seeds import seed_for, seed_globals

_KNOWN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


@final
class Ranks:
    """This process among its peers: device, wrapping, backward pass, totals and trackers.

    Args:
        track_with: experiment trackers, by Accelerate's names.
        folder: where trackers that write files write them.

    Raises:
        ConfigError: the processes were launched in a way whose gradients are not proved here.
        MissingDependencyError: a tracker's package is not installed.
    """

    def __init__(self, *, track_with: Iterable[str] = (), folder: Path | None = None) -> None:
        trackers: list[Any] = list(track_with)
        for name in trackers:
            if not _is_installed(name):
                message = (
                    f"training.track_with names {name}, which is not installed; it must be an "
                    f"installed package. Run: pip install {name}"
                )
                raise MissingDependencyError(message)
        self._accelerator = Accelerator(
            # Autocast is ours (see step.py), and the loss is already the step's mean: Accelerate
            # must neither cast nor divide.
            mixed_precision="no",
            # Told so, Accelerate joins processes that were launched on a machine without
            # accelerators; otherwise each would train for itself, unnoticed.
            cpu=not torch.accelerator.is_available(),
            gradient_accumulation_steps=1,
            log_with=trackers or None,
            project_dir=None if folder is None else str(folder),
        )
        if self._accelerator.distributed_type not in _KNOWN:
            message = (
                f"The launcher asks for {self._accelerator.distributed_type.value}; it must be one "
                "process, or several with a whole copy of the student each (DDP). Launch with "
                "`accelerate launch --multi_gpu` or with torchrun."
            )
            raise ConfigError(message)
        self._tracking = False

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self._accelerator.device

    @property
    def rank(self) -> int:
        """0 to num_ranks - 1."""
        return self._accelerator.process_index

    @property
    def num_ranks(self) -> int:
        """Processes of the run."""
        return self._accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the files and the log."""
        return self._accelerator.is_main_process

    def seed(self, seed: int) -> None:
        """Seed the global generators, each rank with its own stream of dropout masks."""
        seed_globals(seed_for(seed, "rank", self.rank))

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module on this rank's device, wrapped so that its backward pass adds up gradients.

        The wrapped module itself must be called: going around it, to a method of what is inside,
        would leave each rank with its own gradients.
        """
        return self._accelerator.prepare_model(module)

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """For the forward and backward pass of one micro-batch: ranks meet only on the last.

        So ranks may cut their rows into different numbers of micro-batches.
        """
        return nullcontext() if last else self._accelerator.no_sync(module)

    def backward(self, share: Float[Tensor, ""]) -> None:
        """Add the gradients of this micro-batch's share of the step's mean.

        The engine averages gradients over ranks where ours have to be added, hence the factor.
        """
        self._accelerator.backward(share * self.num_ranks)

    def clip(self, module: nn.Module, max_norm: float | None) -> float:
        """Scale the gradients down to an overall norm of at most `max_norm`.

        Returns:
            The norm before, of all ranks' gradients together; not finite if any of them is.
        """
        limit = torch.inf if max_norm is None else max_norm
        trained = [p for p in module.parameters() if p.grad is not None]
        return float(torch.nn.utils.clip_grad_norm_(trained, limit)) if trained else 0.0

    def total(self, values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """The sum over all ranks, on each of them."""
        if self.num_ranks == 1:
            return values
        total = self._accelerator.reduce(values, reduction="sum")
        assert isinstance(total, Tensor)  # noqa: S101  it answers in the form it was asked in
        return total

    def highest(self, value: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The largest over all ranks, on each of them."""
        places = value.new_full((self.num_ranks,), 0.0)
        places[self.rank] = value
        return self.total(places).amax()

    def together(self, action: Callable[[], None]) -> None:
        """Do something that may fail on one rank, and fail on all if it fails on any.

        Without this the others would wait for ever where the ranks meet next.

        Raises:
            TutelageError: this rank's own, or `OutputError` where another rank failed.
        """
        failure: TutelageError | None = None
        try:
            action()
        except TutelageError as error:
            failure = error
        num_failed = self.total(torch.tensor(float(failure is not None), device=self.device))
        if failure is not None:
            raise failure
        if num_failed > 0:
            message = (
                f"{int(num_failed)} other process(es) of this run failed; all of them must "
                "succeed. Read their messages."
            )
            raise OutputError(message)

    def together_on_main(self, action: Callable[[], None]) -> None:
        """Do something on the main rank only; the others wait for it, and fail if it fails."""
        self.together(action if self.is_main else lambda: None)

    def start_tracking(self, project: str, settings: Mapping[str, Any]) -> None:
        """Open the trackers and give them the settings, flattened to dotted names."""
        if self._accelerator.log_with:
            self._accelerator.init_trackers(project, config=_flat(settings))
            self._tracking = True

    def track(self, numbers: Mapping[str, float], *, step: int) -> None:
        """Send numbers to the trackers, from the main rank only."""
        if self._tracking:
            self._accelerator.log(dict(numbers), step=step)

    def stop_tracking(self) -> None:
        """Let the trackers finish what they have to send."""
        if self._tracking:
            for tracker in self._accelerator.trackers:
                tracker.finish()
            self._tracking = False


def _is_installed(name: str) -> bool:
    if name == "tensorboard" and importlib.util.find_spec("tensorboardX") is not None:
        return True
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    flat: dict[str, str | int | float | bool] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            plain = isinstance(value, str | int | float | bool)
            flat[f"{prefix}{key}"] = value if plain else str(value)
    return flat

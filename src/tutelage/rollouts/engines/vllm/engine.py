"""Completions written by vLLM, with weights of the student whose age is known."""

import logging
import os
import shutil
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, final
from uuid import uuid4

import httpx2
import torch
from torch import Tensor

from tutelage.core.errors import ModelError
from tutelage.models import CausalLM
from tutelage.rollouts.engines.completion import Completion, end_ids, refuse_bad_prompts
from tutelage.rollouts.engines.decoder import compute_dtype
from tutelage.rollouts.engines.hf import log_probabilities
from tutelage.rollouts.engines.sampling import Sampling
from tutelage.rollouts.engines.vllm.child import VllmChild, vllm_python
from tutelage.rollouts.engines.vllm.server import Ask, ServerAwayError, VllmServer
from tutelage.rollouts.engines.vllm.settings import VllmSettings
from tutelage.rollouts.engines.vllm.weights import private_folder, read_weights, write_weights

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 15.0
_PROOF_TOKENS = 64
_LARGEST_GAP, _LARGEST_EXACT_GAP = 0.3, 0.01
"""Nats that two programs may differ by on the average token; the second where both are float32."""
_LARGEST_SEED = 2**63 - 1
_KEY = "VLLM_API_KEY"


@final
class VllmEngine:
    """An engine that vLLM computes for, and a clock: it is told of each optimiser step.

    Before it writes, vLLM is given the student's weights if those it has are `sync_every` steps
    old. Every time, before and after, it is asked under which name it holds which weights: one
    that was restarted, or that somebody else has given others, is given ours again and writes
    again. A row's random numbers follow from its own generator, as with the other engines, but it
    is vLLM that makes tokens of them: other tokens than theirs, from the same distribution.

    Args:
        dtype: what vLLM computes in; `colocate` alone.
        room: the longest prompt with its completion; `colocate` alone.

    Raises:
        MissingDependencyError: there is no Python with vLLM where one is needed.
    """

    def __init__(self, settings: VllmSettings, *, dtype: torch.dtype, room: int) -> None:
        if settings.mode == "colocate":
            vllm_python(settings)
        self._settings = settings
        self._dtype = str(dtype).removeprefix("torch.")
        self._room = room
        self._folder: Path | None = None
        self._child: VllmChild | None = None
        self._server: VllmServer | None = None
        self._age = 0
        self._version: str | None = None
        """What vLLM is told that the weights in the folder are called; None before there are."""
        self._restored: Mapping[str, Tensor] | None = None
        self._num_retries = 0
        self._tidy: list[Callable[[], None]] = []
        weakref.finalize(self, _tidy_up, self._tidy)

    def __call__(
        self,
        lm: CausalLM,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        generator: Sequence[torch.Generator],
        num_real: int | None,
    ) -> list[Completion]:
        """One completion for each prompt; `sampling.batch_rows` of them are asked for at a time.

        Raises:
            DataError: a prompt is empty, or leaves no room for a completion.
            ModelError: vLLM does not know the model, does not start, or stays away too long.
            NumericsError: the model's scores are not finite.
        """
        refuse_bad_prompts(lm, prompts, sampling)
        if not prompts:
            return []
        seeds = [int(torch.randint(_LARGEST_SEED, (), generator=own)) for own in generator]
        num_entries = lm.config.get_text_config().vocab_size
        ruled_out = range(num_entries if num_real is None else num_real, num_entries)
        ask = Ask.of(sampling, end_ids(lm), ruled_out)
        self._renew(lm)

        def written() -> list[Completion]:
            server = self._running()
            server.check(sampling)
            self._bring(server, lm, max(prompts, key=len))
            return self._written(server, prompts, seeds, ask)

        return self._patiently(written)

    @property
    def numbers(self) -> Mapping[str, float]:
        """For the log: how many steps behind the student it writes, and how often it was away."""
        return {
            "engine_age_steps": float(self._age),
            "engine_retries": float(self._num_retries),
        }

    def move(self, *, loss: float, step: int) -> None:  # noqa: ARG002  every clock is told
        """The student has moved once more."""
        self._age += 1

    def state_dict(self) -> dict[str, Any]:
        """How old its weights are, and the weights themselves where they would be written with.

        They are needed only with `sync_every` above 1, between two syncs.
        """
        in_use = self._version is not None and not self._is_due
        weights = read_weights(self._weights) if in_use else None
        return {"age": self._age, "weights": weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the weights that it wrote with, however old they are."""
        self._age, self._restored = int(state["age"]), state["weights"]
        self._version = None

    def close(self) -> None:
        """Stop what was started and delete what was written; doing it twice changes nothing."""
        _tidy_up(self._tidy)
        self._child = self._server = self._folder = self._version = None

    @property
    def _is_due(self) -> bool:
        return self._age >= self._settings.sync_every

    @property
    def _weights(self) -> Path:
        assert self._folder is not None  # noqa: S101  made before anything is written
        return self._folder / "weights"

    def _renew(self, lm: CausalLM) -> None:
        """See that the weights in the folder are those to write with."""
        if self._folder is None:
            self._folder = folder = private_folder(lm, self._settings.weights_folder)
            self._tidy.append(lambda: shutil.rmtree(folder, ignore_errors=True))
        if self._version is not None and not self._is_due:
            return
        write_weights(lm, self._weights, earlier=self._restored)
        if self._restored is None:
            self._age = 0
        self._restored, self._version = None, f"tutelage-{uuid4().hex}"

    def _bring(self, server: VllmServer, lm: CausalLM, ids: Sequence[int]) -> None:
        """Give vLLM the weights unless it has them, and see that they have arrived.

        Args:
            ids: any that both models can score.
        """
        assert self._version is not None  # noqa: S101  there are weights by now
        if server.version() == self._version:
            return
        server.load(self._weights, self._version)
        ids = list(ids[:_PROOF_TOKENS])
        if self._age or len(ids) < 2:  # noqa: PLR2004  the first id is not scored
            return
        told = torch.tensor(server.score(ids), dtype=torch.float64)
        gap = float((told - log_probabilities(lm, ids).cpu()).abs().mean())
        exact = server.dtype == str(compute_dtype(lm)) == "torch.float32"
        most = _LARGEST_EXACT_GAP if exact else _LARGEST_GAP
        if not gap <= most:
            raise ModelError(
                f"{server.name} was given the student's weights and is {gap:.2g} nats from the "
                f"student on the average token of a prompt; it must be at most {most}. "
                "Check that it serves the student's own architecture, in the run's precision."
            )

    def _written(
        self,
        server: VllmServer,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        ask: Ask,
    ) -> list[Completion]:
        pool = ThreadPoolExecutor(min(len(prompts), ask.sampling.batch_rows))
        try:
            rows = range(len(prompts))
            said = list(pool.map(server.complete, rows, prompts, seeds, [ask] * len(prompts)))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if server.version() != self._version:
            raise ServerAwayError("it was given other weights while it wrote")
        return said

    def _running(self) -> VllmServer:
        if self._server is not None:
            return self._server
        settings = self._settings
        if settings.mode == "colocate":
            assert self._folder is not None  # noqa: S101  it holds the first weights
            child = VllmChild(
                settings, self._folder, self._weights, dtype=self._dtype, room=self._room
            )
            # First in, last out: the folder goes when nobody reads it any more.
            self._tidy.append(child.stop)
            child.wait()
            self._child, self._server = child, child.server
            return child.server
        assert settings.url is not None  # noqa: S101  the settings see to it
        key = os.environ.get(_KEY)
        client = httpx2.Client(
            base_url=settings.url,
            timeout=settings.timeout_seconds,
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            limits=httpx2.Limits(max_connections=None),
        )
        self._server = VllmServer(f"The vLLM at {settings.url}", client)
        self._tidy.append(self._server.close)
        return self._server

    def _patiently(self, action: Callable[[], list[Completion]]) -> list[Completion]:
        """Again and again while the server is away, for as long as the settings allow."""
        pause, deadline = _FIRST_PAUSE_SECONDS, None
        while True:
            try:
                return action()
            except ServerAwayError as error:
                if self._child is not None:
                    self._child.refuse_dead()
                now = time.monotonic()
                deadline = deadline or now + self._settings.patience_seconds
                name = "vLLM" if self._server is None else self._server.name
                if now + pause > deadline:
                    raise ModelError(
                        f"{name} has not written for {self._settings.patience_seconds:g} seconds "
                        f"({error}); it must answer. Start it again and go on with --resume, or "
                        "raise rollouts.vllm.patience_seconds."
                    ) from error
                _LOG.warning("%s is away (%s); trying again in %g s.", name, error, pause)
                self._num_retries += 1
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _tidy_up(tasks: list[Callable[[], None]]) -> None:
    while tasks:
        tasks.pop()()

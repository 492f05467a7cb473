"""The door to a vLLM server: token ids in, token ids out, and weights from a folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import httpx2

from tutelage.core.errors import ConfigError, DataError, ModelError, NumericsError
from tutelage.rollouts.engines.completion import Completion
from tutelage.rollouts.engines.sampling import Sampling

_RULED_OUT = -100.0
"""The bias that keeps an entry of the vocabulary from being drawn: the API knows no infinity."""
_LOWEST = -9999.0
"""What the API says in place of minus infinity."""
_LATER = frozenset({429, 502, 503, 504})
_BROKEN = 500
_MISSING = 404
EXTENSION = "tutelage_worker.TakesWeights"
INSIDE = Path(__file__).with_name("inside")
"""Where vLLM's Python finds it."""
_HOW_TO_START = (
    "Start it with VLLM_SERVER_DEV_MODE=1 in its environment and --logprobs-mode "
    "processed_logprobs, and let nobody else reach it."
)


class ServerAwayError(Exception):
    """Nobody answers, or nobody can for now: worth another try."""


@final
@dataclass(frozen=True, kw_only=True)
class Ask:
    """How every row of one call is to be completed."""

    sampling: Sampling
    ends: tuple[int, ...]
    """Ids that end a completion."""
    padding: Mapping[str, float]
    """Biases of entries that are never drawn."""

    @classmethod
    def of(cls, sampling: Sampling, ends: Sequence[int], ruled_out: range) -> "Ask":
        """What to ask for; entries in `ruled_out` are padding of the vocabulary."""
        padding = {str(entry): _RULED_OUT for entry in ruled_out}
        return cls(sampling=sampling, ends=tuple(ends), padding=padding)


@final
class VllmServer:
    """One server, spoken to from several threads.

    Args:
        name: what to call it in messages.
    """

    def __init__(self, name: str, client: httpx2.Client) -> None:
        self.name = name
        self._client = client
        self._model: str | None = None
        self._takes_by = "reload_weights"
        self.dtype = ""
        """What it computes in, once it has been asked."""

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def is_up(self) -> bool:
        """Whether it answers at all."""
        try:
            return self._client.get("/health").is_success
        except httpx2.TransportError:
            return False

    def check(self, sampling: Sampling) -> None:
        """Ask once who it is, and refuse one whose answers would not be what they seem.

        Raises:
            ConfigError: it cannot be given weights, or reports other log-probabilities.
            ServerAwayError: it does not answer.
        """
        if self._model is not None:
            return
        model = str(self._get("/v1/models")["data"][0]["id"])
        config = self._get("/server_info?config_format=json")["vllm_config"]
        mode = config["model_config"]["logprobs_mode"]
        plain = sampling.temperature == 1 and sampling.top_p == 1 and sampling.top_k is None
        if mode != "processed_logprobs" and not (mode == "raw_logprobs" and plain):
            raise ConfigError(
                f"{self.name} reports {mode}; it must be processed_logprobs, the log-probabilities "
                f"that tokens are drawn with, at temperature, top-p and top-k. {_HOW_TO_START}"
            )
        if config["parallel_config"]["worker_extension_cls"] == EXTENSION:
            self._takes_by = "take_weights"
        elif config["device_config"]["device"] == "cpu":
            raise ConfigError(
                f"{self.name} computes on a CPU without our extension; it must have it, for vLLM "
                "0.32 alone would keep the first weights of tied heads and of experts there. Start "
                f"it with PYTHONPATH={INSIDE} and --worker-extension-cls {EXTENSION}, or set "
                "rollouts.vllm.mode: colocate."
            )
        self._model, self.dtype = model, str(config["model_config"]["dtype"])

    def version(self) -> str:
        """What the weights that it has now were called by whoever brought them.

        Raises:
            ServerAwayError: it does not answer.
        """
        return str(self._get("/weight_info")["weight_version"])

    def load(self, folder: Path, version: str) -> None:
        """Give it the weights of a folder; what it kept of prompts under the old ones is dropped.

        Raises:
            ModelError: it cannot read them, or keeps answering under the old ones.
            ServerAwayError: it does not answer.
        """
        request = {"method": self._takes_by, "kwargs": {"weights_path": str(folder)}}
        self._post("/collective_rpc", request)
        reset = self._post("/reset_prefix_cache", {})
        if not reset.get("success"):
            raise ModelError(
                f"{self.name} is busy with requests of others and keeps what it computed under the "
                "old weights; it must be this run's alone. Stop the others."
            )
        self._post("/update_weight_version", {"new_version": version})

    def complete(self, row: int, prompt: Sequence[int], seed: int, ask: Ask) -> Completion:
        """One completion.

        Args:
            row: what to call the prompt in messages.

        Raises:
            DataError: the server refuses the prompt.
            ModelError: the answer is not an answer to what was asked.
            NumericsError: the model's scores are not finite.
            ServerAwayError: it does not answer.
        """
        sampling = ask.sampling
        request = {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": sampling.max_completion_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0 if sampling.top_k is None else sampling.top_k,
            "seed": seed,
            "stop_token_ids": list(ask.ends),
            "ignore_eos": True,
            "logit_bias": dict(ask.padding) or None,
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        answer = self._post("/v1/completions", request)
        return self._completion(row, prompt, answer["choices"][0], ask)

    def score(self, ids: Sequence[int]) -> list[float]:
        """The log-probability of each id behind those before it, the first left out.

        Raises:
            ServerAwayError: it does not answer.
        """
        request = {
            "model": self._model,
            "prompt": list(ids),
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
        }
        found = self._post("/v1/completions", request)["choices"][0]["prompt_logprobs"]
        return [
            float(one[str(token)]["logprob"]) for token, one in zip(ids[1:], found[1:], strict=True)
        ]

    def _completion(
        self, row: int, prompt: Sequence[int], choice: Mapping[str, Any], ask: Ask
    ) -> Completion:
        ids: list[int] = choice["token_ids"]
        logp: list[float | None] = choice["logprobs"]["token_logprobs"]
        reason, most = choice["finish_reason"], ask.sampling.max_completion_tokens
        ended = bool(ids) and ids[-1] in ask.ends
        expected = "stop" if ended else "length"
        lacking = (
            ("another prompt", choice["prompt_token_ids"] != list(prompt)),
            (f"{len(logp)} log-probabilities for {len(ids)} tokens", len(ids) != len(logp)),
            (f"{len(ids)} tokens that stop by {reason}", not ended and len(ids) != most),
            (f"an end that it calls {reason}", reason != expected and len(ids) != most),
            ("an entry of the vocabulary's padding", any(str(i) in ask.padding for i in ids)),
        )
        for what, found in lacking:
            if found:
                raise ModelError(
                    f"{self.name} answers prompt {row} with {what}; it must complete the very ids "
                    "it is given. Check that it is a vLLM of the student's own model."
                )
        if any(one is None or not math.isfinite(one) or one <= _LOWEST for one in logp):
            raise NumericsError(
                f"{self.name} drew for prompt {row} from scores that hold nan or infinity; they "
                "must be finite. Check the student's weights, or let vLLM compute in float32."
            )
        certain = ask.sampling.temperature == 0
        drawn = (0.0 if certain or one is None else one for one in logp)
        return Completion(ids=tuple(ids), truncated=not ended, logp=tuple(drawn))

    def _get(self, path: str) -> dict[str, Any]:
        return self._answer("GET", path, None)

    def _post(self, path: str, request: Mapping[str, Any]) -> dict[str, Any]:
        return self._answer("POST", path, request)

    def _answer(self, method: str, path: str, request: Mapping[str, Any] | None) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, json=request)
        except httpx2.TransportError as error:
            raise ServerAwayError(f"{type(error).__name__}: {error}") from error
        status, where = response.status_code, path.partition("?")[0]
        if status in _LATER or (status >= _BROKEN and not self.is_up()):
            raise ServerAwayError(f"{where} answers {status}: {_shown(response)}")
        if status >= _BROKEN:
            raise ModelError(
                f"{self.name} fails at {where} with {status} ({_shown(response)}), and runs on; it "
                "must do what it is asked. Look at its log."
            )
        if status == _MISSING and not where.startswith("/v1"):
            raise ConfigError(
                f"{self.name} has no {where}; it must be a vLLM that takes weights. {_HOW_TO_START}"
            )
        if not response.is_success:
            raise DataError(
                f"{self.name} refuses {where} with {status} ({_shown(response)}); it must accept "
                "what the student's own engine would. Check its --max-model-len and its key."
            )
        return response.json() if response.content else {}


def _shown(response: httpx2.Response) -> str:
    return " ".join(response.text.split())[:300]

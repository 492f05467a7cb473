"""The language of vLLM's OpenAI-compatible server: `prompt_logprobs` over exact token ids."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from typing_extensions import override

from tutelage.core.errors import RemoteError
from tutelage.core.targets import Head
from tutelage.teachers.remote.api import ServerApi, lie
from tutelage.teachers.remote.link import Link
from tutelage.teachers.remote.wire import Answer, AskedRow, Wanted

_RULED_OUT = -9999.0
"""What vLLM writes for minus infinity, which JSON does not have."""
_ROUNDING = 2.0**-23
"""What the kept float32 log-probabilities do not say of the rest's mass."""


@final
class VllmApi(ServerApi):
    """Speaks with vLLM, and holds it to the model that is named."""

    def __init__(self, link: Link, name: str) -> None:
        self._link = link
        self._name = name

    @override
    def greet(self) -> Mapping[str, Any]:
        url, found = self._link.url, self._link.get("/v1/models")
        try:
            served = {str(one["id"]): one for one in found.json()["data"]}
        except (ValueError, KeyError, TypeError) as error:
            reason = f"/v1/models in no known way ({type(error).__name__})"
            raise lie(url, None, f"{reason}; it must be vLLM") from error
        if self._name not in served:
            raise lie(
                url,
                None,
                f"for another model: it serves {', '.join(served) or 'none'}; it must serve "
                f"{self._name} (or name it in teacher.served_name)",
            )
        return {"served_name": self._name}

    @override
    def head(self, device: str | torch.device) -> Head:
        raise RemoteError("vLLM has no head to give; teacher.answer must be top_k. Change it.")

    @override
    def ask(self, rows: Sequence[AskedRow], wanted: Wanted) -> list[Answer]:
        num_entries = min(wanted.num_entries, wanted.num_real)
        response = self._link.post(
            "/v1/completions",
            json={
                "model": self._name,
                "prompt": [row.ids.tolist() for row in rows],
                "prompt_logprobs": num_entries,
                "return_token_ids": True,
                # For prompts that are text, which these are not; said all the same.
                "add_special_tokens": False,
                # One is the least; what is drawn is thrown away.
                "max_tokens": 1,
                "temperature": 0.0,
            },
        )
        try:
            choices = {int(one["index"]): one for one in response.json()["choices"]}
        except (ValueError, KeyError, TypeError) as error:
            fault = f"in no known way ({type(error).__name__}); it must be vLLM's"
            raise lie(self._link.url, rows[0], fault) from error
        if sorted(choices) != list(range(len(rows))):
            fault = f"{len(choices)} of {len(rows)} prompts; it must be all of them"
            raise lie(self._link.url, rows[0], fault)
        return [self._row(choices[at], row, num_entries) for at, row in enumerate(rows)]

    def _row(self, choice: Mapping[str, Any], row: AskedRow, num_entries: int) -> Answer:
        found, ids = choice.get("prompt_logprobs"), row.ids.tolist()
        if not isinstance(found, list) or len(found) != len(ids):
            got = len(found) if isinstance(found, list) else "no"
            raise lie(
                self._link.url,
                row,
                f"with {got} prompt_logprobs; it must be one for each of its {len(ids)} tokens",
            )
        read = choice.get("prompt_token_ids")
        if read is not None and read != ids:
            raise lie(self._link.url, row, "about other ids; it must read those that were sent")
        kept: list[list[tuple[float, int]]] = []
        for position in row.predicts.tolist():
            # An entry stands at the token it predicts; what predicts it is the position before.
            token = position + 1
            kept.append(self._entries(found[token], row, token, num_entries))
        logp = torch.tensor([[-minus for minus, _ in one] for one in kept], dtype=torch.float64)
        logp = logp.reshape(len(kept), num_entries)
        names = torch.tensor([[name for _, name in one] for one in kept], dtype=torch.long)
        return {
            "ids": names.reshape(len(kept), num_entries),
            "logp": logp.float(),
            "tail_logp": (1 - logp.exp().sum(dim=1)).clamp(min=_ROUNDING).log().float(),
        }

    def _entries(
        self,
        entry: object,
        row: AskedRow,
        token: int,
        num_entries: int,
    ) -> list[tuple[float, int]]:
        """The likeliest entries at a token: minus log-probability and id, the likeliest first."""
        try:
            assert isinstance(entry, Mapping)  # noqa: S101  caught below
            found = {int(name): float(one["logprob"]) for name, one in entry.items()}
        except (AssertionError, ValueError, KeyError, TypeError) as error:
            raise lie(
                self._link.url,
                row,
                f"with no log-probabilities at token {token}; there must be some at every token "
                "but the first",
            ) from error
        true = int(row.ids[token])
        if true not in found:
            fault = f"without the token {true} that stands at {token}; it must be about these ids"
            raise lie(self._link.url, row, fault)
        # The true token is always there: beside the K, where it is none of them.
        if len(found) == num_entries + 1:
            del found[true]
        if len(found) != num_entries:
            raise lie(
                self._link.url,
                row,
                f"with {len(found)} log-probabilities at token {token}; they must be "
                f"{num_entries}, which its --max-logprobs may cut (teacher.top_k)",
            )
        return sorted((-_plain(value), name) for name, value in found.items())


def _plain(value: float) -> float:
    return -math.inf if value <= _RULED_OUT else value

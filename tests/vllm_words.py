"""What vLLM's server says of prompts, said by a tiny model in this process: the same words."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tests.served import Answerer, Reply
from tutelage.models import CausalLM

Change = Callable[[Any], Any]


def as_said(tree: Any) -> Any:
    """Nothing changed."""
    return tree


@torch.no_grad()
def completions(lm: CausalLM, asked: Mapping[str, Any], *, most: int = 20) -> tuple[int, Any]:
    """Status and tree of an answer to /v1/completions with prompt_logprobs."""
    count = asked["prompt_logprobs"]
    if count > most:
        text = f"Requested prompt logprobs of {count}, which is greater than max allowed: {most}"
        return 400, {"error": {"message": text, "type": "BadRequestError", "code": 400}}
    return 200, {"choices": [_choice(lm, at, ids, count) for at, ids in enumerate(asked["prompt"])]}


def _choice(lm: CausalLM, index: int, ids: list[int], count: int) -> dict[str, Any]:
    logits = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
    logp = logits.log_softmax(-1)
    told: list[Any] = [None]
    for position, true in enumerate(ids[1:]):
        values, names = logp[position].topk(count)
        own = float(logp[position, true])
        rank = int((logp[position] >= own).sum())
        # The true token first, then the likeliest: one name where it is among them.
        entry = {str(true): {"logprob": own, "rank": rank, "decoded_token": "?"}}
        for at, (value, name) in enumerate(zip(values.tolist(), names.tolist(), strict=True)):
            entry[str(name)] = {"logprob": value, "rank": at + 1, "decoded_token": "?"}
        told.append(entry)
    return {
        "index": index,
        "text": "",
        "token_ids": [7],
        "prompt_logprobs": told,
        "prompt_token_ids": ids,
    }


def vllm_like(lm: CausalLM, *, name: str = "teacher", change: Change = as_said) -> Answerer:
    """An answerer for `listening`; `change` may make lies of what it says of prompts."""

    def answer(path: str, body: bytes, _headers: Mapping[str, str]) -> Reply:
        if path == "/health":
            return Reply(200, b"")
        if path == "/v1/models":
            return Reply(200, json.dumps({"data": [{"id": name, "root": name}]}).encode())
        status, tree = completions(lm, json.loads(body))
        if status == 200:
            tree = change(tree)
        return Reply(status, json.dumps(tree).encode(), "application/json")

    return answer

"""How fast a model reads."""

import statistics
import time
from collections.abc import Sequence

import torch

from tutelage.core.errors import DataError
from tutelage.core.records import View
from tutelage.evaluation.undisturbed import undisturbed
from tutelage.models import CausalLM


def tokens_per_second(
    lm: CausalLM,
    views: Sequence[View],
    *,
    num_rounds: int = 3,
    dtype: torch.dtype | None = None,
) -> float:
    """Tokens read in a second, up to the last hidden state: the median of a few rounds.

    One round that is not counted goes first, to warm caches and kernels up.

    Args:
        dtype: matrix products in this type (autocast); None: in the type of the weights.
    """
    num_tokens = sum(view.input_ids.shape[0] for view in views)
    if num_tokens == 0:
        raise DataError(
            "The rows to time a model on hold 0 tokens; they must hold at least one. "
            "Hold out at least one row (evaluation.num_rows)."
        )
    with undisturbed(lm), torch.no_grad():
        seconds = [_round_seconds(lm, views, dtype) for _ in range(num_rounds + 1)]
    return num_tokens / statistics.median(seconds[1:])


def _round_seconds(lm: CausalLM, views: Sequence[View], dtype: torch.dtype | None) -> float:
    device = lm.device
    _wait(device)
    start = time.perf_counter()
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        for view in views:
            lm.hidden(view)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

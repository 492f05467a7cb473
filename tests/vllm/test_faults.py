"""A server that goes away, comes back, or says what it should not: who is told, what is lost."""

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest

from tests.vllm.conftest import Server, Troublemaker, student
from tests.vllm.reading import write
from tutelage.core.errors import ConfigError, DataError, ModelError, NumericsError
from tutelage.rollouts.engines import Sampling

pytestmark = pytest.mark.vllm

SAMPLING = Sampling(max_completion_tokens=12)
COMPLETIONS, INFO = "/v1/completions", "/server_info"


def test_a_server_that_hangs_up_is_asked_again_and_nothing_is_lost(
    vllm_server: Server, trouble: Troublemaker, caplog: pytest.LogCaptureFixture
) -> None:
    engine, lm = vllm_server.engine(trouble.url), student()
    expected = write(engine, lm, SAMPLING)
    trouble.num_hang_ups = 2
    with caplog.at_level(logging.WARNING):
        assert write(engine, lm, SAMPLING) == expected
    assert engine.numbers["engine_retries"] >= 1
    assert f"The vLLM at {trouble.url} is away" in caplog.text
    engine.close()


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_server_that_cannot_for_now_is_asked_again(
    status: int, vllm_server: Server, trouble: Troublemaker
) -> None:
    engine, lm = vllm_server.engine(trouble.url, patience_seconds=0.6), student()
    trouble.status[COMPLETIONS] = status
    with pytest.raises(ModelError, match=rf"has not written for 0.6 seconds \(.* {status}"):
        write(engine, lm, SAMPLING)
    trouble.status.clear()
    write(engine, lm, SAMPLING)
    engine.close()


def test_a_server_that_stays_away_is_named_with_what_to_do(vllm_server: Server) -> None:
    engine = vllm_server.engine("http://127.0.0.1:9", patience_seconds=0.6)
    with pytest.raises(ModelError, match=r"The vLLM at http://127.0.0.1:9 .* --resume"):
        write(engine, student(), SAMPLING)
    engine.close()


@pytest.mark.parametrize(("status", "error"), [(500, ModelError), (400, DataError)])
def test_what_would_fail_again_is_not_tried_again(
    status: int, error: type[Exception], vllm_server: Server, trouble: Troublemaker
) -> None:
    engine = vllm_server.engine(trouble.url)
    trouble.status[COMPLETIONS] = status
    with pytest.raises(error, match=rf"{trouble.url} .*{COMPLETIONS} with {status}"):
        write(engine, student(), SAMPLING)
    assert engine.numbers["engine_retries"] == 0
    engine.close()


def test_a_server_that_takes_no_weights_is_refused(
    vllm_server: Server, trouble: Troublemaker
) -> None:
    engine = vllm_server.engine(trouble.url)
    trouble.status[INFO] = 404
    with pytest.raises(ConfigError, match=r"has no /server_info; .*VLLM_SERVER_DEV_MODE=1"):
        write(engine, student(), SAMPLING)
    engine.close()


def info(**changes: Any) -> Callable[[Any], Any]:
    def change(answer: Any) -> Any:
        for path, value in changes.items():
            part, name = path.split("__")
            answer["vllm_config"][part][name] = value
        return answer

    return change


def test_a_server_whose_log_probabilities_are_not_of_the_draw_is_refused(
    vllm_server: Server, trouble: Troublemaker
) -> None:
    trouble.spoil[INFO] = info(model_config__logprobs_mode="raw_logprobs")
    hot = Sampling(max_completion_tokens=12, temperature=1.5)
    engine = vllm_server.engine(trouble.url)
    with pytest.raises(ConfigError, match="reports raw_logprobs; it must be processed_logprobs"):
        write(engine, student(), hot)
    # Where both are the same, it makes no difference.
    write(engine, student(), SAMPLING)
    engine.close()


def test_a_server_on_a_cpu_without_what_brings_all_weights_there_is_refused(
    vllm_server: Server, trouble: Troublemaker
) -> None:
    trouble.spoil[INFO] = info(parallel_config__worker_extension_cls="")
    engine = vllm_server.engine(trouble.url)
    with pytest.raises(ConfigError, match="on a CPU without our extension"):
        write(engine, student(), SAMPLING)
    trouble.spoil[INFO] = info(
        parallel_config__worker_extension_cls="", device_config__device="cuda"
    )
    write(engine, student(), SAMPLING)
    engine.close()


def test_a_server_that_keeps_what_it_computed_under_old_weights_is_refused(
    vllm_server: Server, trouble: Troublemaker
) -> None:
    trouble.spoil["/reset_prefix_cache"] = lambda _: {"success": False}
    engine = vllm_server.engine(trouble.url)
    with pytest.raises(ModelError, match="keeps what it computed under the old weights"):
        write(engine, student(), SAMPLING)
    engine.close()


def spoilt(change: Callable[[dict[str, Any]], Any]) -> Callable[[Any], Any]:
    def spoil(answer: Any) -> Any:
        change(answer["choices"][0])
        return answer

    return spoil


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda one: one["prompt_token_ids"].insert(0, 256), "with another prompt"),
        (lambda one: one["logprobs"]["token_logprobs"].pop(), "log-probabilities for"),
        (lambda one: one.update(finish_reason="abort"), "that it calls abort|stop by abort"),
        (lambda one: one["token_ids"].__setitem__(0, 255), "the vocabulary's padding"),
    ],
    ids=["prompt", "length", "reason", "padding"],
)
def test_an_answer_to_another_question_is_refused(
    change: Callable[[dict[str, Any]], Any],
    complaint: str,
    vllm_server: Server,
    trouble: Troublemaker,
) -> None:
    engine = vllm_server.engine(trouble.url)
    trouble.spoil[COMPLETIONS] = spoilt(change)
    with pytest.raises(ModelError, match=complaint):
        write(engine, student(), SAMPLING, num_real=250)
    engine.close()


@pytest.mark.parametrize("value", [None, math.nan, -9999.0])
def test_scores_that_are_not_finite_are_an_error_of_numerics(
    value: float | None, vllm_server: Server, trouble: Troublemaker
) -> None:
    engine = vllm_server.engine(trouble.url)
    trouble.spoil[COMPLETIONS] = spoilt(
        lambda one: one["logprobs"]["token_logprobs"].__setitem__(0, value)
    )
    with pytest.raises(NumericsError, match="scores that hold nan or infinity"):
        write(engine, student(), SAMPLING)
    engine.close()

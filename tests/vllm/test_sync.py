"""vLLM writes with the student's weights, of the age that the settings say and the log tells."""

import gc
from pathlib import Path

import pytest
import torch

from tests.vllm.conftest import Server, Troublemaker, moved, student
from tests.vllm.reading import LONG_PROMPT, PROMPTS, gap, write
from tutelage.core.errors import ModelError
from tutelage.models import CausalLM, add_lora
from tutelage.rollouts.engines import Sampling

pytestmark = pytest.mark.vllm

SAMPLING = Sampling(max_completion_tokens=24)
SAME = 5e-5
OTHER = 0.01


def test_after_a_step_vllm_writes_with_the_new_weights_in_every_part(vllm_server: Server) -> None:
    engine, lm = vllm_server.engine(), student()
    assert gap(lm, write(engine, lm, SAMPLING)) < SAME
    for name in ("embed_tokens", "q_proj", "down_proj", "norm"):
        before = CausalLM(student().model)
        before.load_state_dict(lm.state_dict())
        with torch.no_grad():
            for path, parameter in lm.named_parameters():
                if name in path:
                    parameter.add_(0.2 * torch.randn(parameter.shape))
        engine.move(loss=0.0, step=0)
        said = write(engine, lm, SAMPLING)
        assert gap(lm, said) < SAME
        assert gap(before, said) > OTHER
    engine.close()


def test_what_was_computed_of_a_prompt_under_the_old_weights_is_forgotten(
    vllm_server: Server,
) -> None:
    engine, lm, prompts = vllm_server.engine(), student(), [LONG_PROMPT] * 2
    write(engine, lm, SAMPLING, prompts)
    assert gap(lm, write(engine, lm, SAMPLING, prompts), prompts) < SAME
    moved(lm)
    engine.move(loss=0.0, step=0)
    assert gap(lm, write(engine, lm, SAMPLING, prompts), prompts) < SAME
    engine.close()


def test_between_syncs_it_writes_with_weights_as_old_as_the_log_says(vllm_server: Server) -> None:
    engine, lm, first = vllm_server.engine(sync_every=2), student(), student()
    write(engine, lm, SAMPLING)
    assert engine.numbers["engine_age_steps"] == 0
    moved(lm)
    engine.move(loss=0.0, step=0)
    said = write(engine, lm, SAMPLING)
    assert engine.numbers["engine_age_steps"] == 1
    assert gap(first, said) < SAME
    assert gap(lm, said) > OTHER
    moved(lm)
    engine.move(loss=0.0, step=1)
    said = write(engine, lm, SAMPLING)
    assert engine.numbers["engine_age_steps"] == 0
    assert gap(lm, said) < SAME
    engine.close()


def test_an_adapter_writes_along(vllm_server: Server) -> None:
    engine, lm = vllm_server.engine(), student()
    add_lora(lm, rank=4, alpha=8.0, dropout=0.0, targets=None, seed=0)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    said = write(engine, lm, SAMPLING)
    assert gap(lm, said) < SAME
    assert gap(student(), said) > OTHER
    engine.close()


def test_a_resumed_run_goes_on_with_the_weights_that_the_killed_one_wrote_with(
    vllm_server: Server,
) -> None:
    killed, lm = vllm_server.engine(sync_every=3), student()
    write(killed, lm, SAMPLING)
    moved(lm)
    killed.move(loss=0.0, step=0)
    state = killed.state_dict()
    expected = write(killed, lm, SAMPLING, seeds=[5, 6, 7, 8])
    killed.close()
    resumed = vllm_server.engine(sync_every=3)
    resumed.load_state_dict(state)
    assert write(resumed, lm, SAMPLING, seeds=[5, 6, 7, 8]) == expected
    assert resumed.numbers["engine_age_steps"] == 1
    for step in (1, 2):
        resumed.move(loss=0.0, step=step)
    assert gap(lm, write(resumed, lm, SAMPLING)) < SAME
    resumed.close()


def test_a_checkpoint_holds_weights_only_where_they_would_be_written_with(
    vllm_server: Server,
) -> None:
    engine, lm = vllm_server.engine(), student()
    assert engine.state_dict() == {"age": 0, "weights": None}
    write(engine, lm, SAMPLING)
    engine.move(loss=0.0, step=0)
    assert engine.state_dict() == {"age": 1, "weights": None}
    engine.close()


def test_a_server_that_somebody_else_gave_weights_is_given_ours_again(
    vllm_server: Server, trouble: Troublemaker
) -> None:
    ours, theirs = vllm_server.engine(trouble.url), vllm_server.engine()
    lm, other = student(), student(seed=3)
    expected = write(ours, lm, SAMPLING)
    write(theirs, other, SAMPLING)
    assert write(ours, lm, SAMPLING) == expected
    # Now in the middle of what we write: all of it is written again.
    calls: list[int] = []

    def give_others(answer: dict) -> dict:
        calls.append(1)
        # The first is to see whether the weights have arrived.
        if len(calls) == 1 + len(PROMPTS):
            write(theirs, other, SAMPLING)
        return answer

    trouble.spoil["/v1/completions"] = give_others
    write(theirs, other, SAMPLING)
    assert write(ours, lm, SAMPLING) == expected
    assert ours.numbers["engine_retries"] == 1
    assert len(calls) == 2 * (1 + len(PROMPTS))
    ours.close()
    theirs.close()


def test_weights_lie_where_the_settings_say_and_are_gone_afterwards(
    vllm_server: Server, tmp_path: Path
) -> None:
    engine = vllm_server.engine(weights_folder=tmp_path / "here")
    write(engine, student(), SAMPLING)
    (folder,) = (tmp_path / "here").iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    assert [path.name for path in folder.iterdir()] == ["weights"]
    engine.close()
    assert list((tmp_path / "here").iterdir()) == []
    forgotten = vllm_server.engine(weights_folder=tmp_path / "here")
    write(forgotten, student(), SAMPLING)
    del forgotten
    gc.collect()
    assert list((tmp_path / "here").iterdir()) == []


def test_a_student_of_another_shape_is_refused_by_name(vllm_server: Server) -> None:
    engine = vllm_server.engine()
    # vLLM itself takes what it can of these weights, and says nothing.
    with pytest.raises(ModelError, match=r"The vLLM at http.* nats from the student"):
        write(engine, student(intermediate_size=160), SAMPLING)
    engine.close()

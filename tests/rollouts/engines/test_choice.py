"""Which engine writes, by its name and by the model."""

import pytest
import torch

from tests.rollouts.test_generation import SAMPLED, prompts_of
from tests.tiny_models import tiny_gemma3, tiny_llama
from tutelage.models import CausalLM
from tutelage.rollouts import Writing
from tutelage.rollouts.engines import (
    choice,
    engine_named,
    generate,
    write,
    write_in_slots,
)

PROMPTS = prompts_of(3, 11, 1)


def own() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(len(PROMPTS))]


def test_names_mean_engines_and_the_default_is_whoever_is_fastest() -> None:
    assert engine_named("auto") is write
    assert engine_named("slots") is write_in_slots
    assert engine_named("hf") is generate
    assert Writing().engine is write


@pytest.mark.parametrize(("make", "taken"), [(tiny_llama, "slots"), (tiny_gemma3, "hf")])
def test_the_slots_write_where_they_know_the_model_and_generate_elsewhere(
    make, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name, engine in (("slots", "write_in_slots"), ("hf", "generate")):
        original = getattr(choice, engine)

        def noted(*args, name=name, original=original, **kwargs):
            calls.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(choice, engine, noted)
    lm = CausalLM(make())
    found = write(lm, PROMPTS, SAMPLED, generator=own(), num_real=200)
    assert calls == [taken]
    assert found == generate(lm, PROMPTS, SAMPLED, generator=own(), num_real=200)


def test_no_prompts_give_no_completions_in_every_engine() -> None:
    lm = CausalLM(tiny_llama())
    for engine in (write, write_in_slots, generate):
        assert engine(lm, [], SAMPLED, generator=[]) == []

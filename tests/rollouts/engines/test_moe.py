"""Mixtures of experts write with transformers' own `generate`; the slots leave them alone."""

import pytest
import torch

from tests.tiny_moe import FAMILIES, some_biases, tiny_moe
from tutelage.core.errors import ModelError
from tutelage.models.routers import UniformDense, install_biased_routers, set_biases
from tutelage.rollouts.engines import Sampling, generate, write, write_in_slots

PROMPTS = ((5, 6, 7), (8, 9))
GREEDY = Sampling(max_completion_tokens=5, temperature=0.0)


def said(engine: object, lm: object) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(0)
    return [c.ids for c in engine(lm, PROMPTS, GREEDY, generator=generator)]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_follows_the_bias_and_no_order_of_training(family: str) -> None:
    lm = tiny_moe(family)
    plain = said(write, lm)
    control = install_biased_routers(lm)
    assert said(write, lm) == plain == said(generate, lm)
    set_biases(lm, some_biases(scale=20.0))
    biased = said(write, lm)
    with torch.no_grad():
        ids = torch.tensor([PROMPTS[0]])
        for token in biased[0]:
            assert int(lm.model(ids).logits[0, -1].argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    with control.ordered(UniformDense()):
        pass
    assert said(write, lm) == biased


def test_the_slots_refuse_experts_by_name() -> None:
    with pytest.raises(ModelError, match="the model's family is mixtral"):
        said(write_in_slots, tiny_moe())

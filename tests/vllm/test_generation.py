"""What vLLM writes is what transformers would: greedy ids, log-probabilities, ends, and draws."""

import httpx2
import pytest
import torch

from tests.vllm.conftest import ROOM, Server, student
from tests.vllm.reading import LONG_PROMPT, PROMPTS, gap, logp, scores, told, write
from tutelage.core.errors import DataError
from tutelage.rollouts.engines import Sampling, VllmEngine, generate

pytestmark = pytest.mark.vllm

PLAIN = Sampling(max_completion_tokens=24)
TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def engine(vllm_server: Server):
    made = vllm_server.engine()
    yield made
    made.close()


def test_greedy_completions_are_those_of_transformers_to_the_last_id(engine: VllmEngine) -> None:
    lm = student()
    greedy = Sampling(max_completion_tokens=24, temperature=0.0)
    said = write(engine, lm, greedy)
    generators = [torch.Generator() for _ in PROMPTS]
    assert said == generate(lm, PROMPTS, greedy, generator=generators)
    # Nothing was left to chance.
    assert set(told(said).tolist()) == {0.0}


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_log_probabilities_are_those_at_the_temperature_of_the_draw(
    engine: VllmEngine, temperature: float
) -> None:
    lm = student()
    said = write(engine, lm, PLAIN.model_copy(update={"temperature": temperature}))
    torch.testing.assert_close(
        told(said), logp(lm, said, temperature=temperature), rtol=0, atol=TOLERANCE
    )


def test_with_top_k_and_top_p_they_are_those_of_what_is_left(engine: VllmEngine) -> None:
    lm = student()
    said = write(engine, lm, Sampling(max_completion_tokens=24, top_k=5, temperature=1.5))
    expected = logp(lm, said, temperature=1.5, top_k=5)
    torch.testing.assert_close(told(said), expected, rtol=0, atol=TOLERANCE)
    cut = write(engine, lm, Sampling(max_completion_tokens=24, top_p=0.5, temperature=1.5))
    assert (told(cut) >= logp(lm, cut, temperature=1.5) - TOLERANCE).all()
    assert (told(cut) > logp(lm, cut, temperature=1.5) + 0.1).any()


def test_a_completion_ends_with_the_token_that_stopped_it_or_is_truncated(
    engine: VllmEngine,
) -> None:
    lm = student()
    ends = set(lm.model.generation_config.eos_token_id)
    prompts = PROMPTS * 8
    said = write(engine, lm, PLAIN, prompts)
    for one in said:
        assert one.truncated == (one.ids[-1] not in ends)
        assert not ends & set(one.ids[:-1])
        assert len(one.ids) == 24 if one.truncated else len(one.ids) <= 24
        assert len(one.logp) == len(one.ids)
    assert any(one.is_empty for one in said)
    assert any(not one.truncated and len(one.ids) > 2 for one in said)
    short = write(engine, lm, Sampling(max_completion_tokens=2), prompts)
    assert any(one.truncated for one in short)
    # The last token that there is room for may be an end.
    assert any(not one.truncated and len(one.ids) == 2 for one in short)


def test_padding_of_the_vocabulary_is_never_drawn_and_has_no_share(engine: VllmEngine) -> None:
    lm, hot = student(), Sampling(max_completion_tokens=24, temperature=2.0)
    prompts = PROMPTS * 8
    assert max(max(one.ids) for one in write(engine, lm, hot, prompts)) >= 200
    said = write(engine, lm, hot, prompts, num_real=200)
    assert max(max(one.ids) for one in said) < 200
    expected = logp(lm, said, prompts, temperature=2.0, num_real=200)
    torch.testing.assert_close(told(said), expected, rtol=0, atol=TOLERANCE)


def test_what_is_drawn_follows_from_a_rows_own_numbers_alone(engine: VllmEngine) -> None:
    lm = student()
    said = write(engine, lm, PLAIN, seeds=[1, 2, 3, 4])
    assert write(engine, lm, PLAIN, seeds=[1, 2, 3, 4]) == said
    few = Sampling(max_completion_tokens=24, batch_rows=1)
    back = write(engine, lm, few, PROMPTS[::-1], seeds=[4, 3, 2, 1])
    assert back[::-1] == said
    assert write(engine, lm, PLAIN, seeds=[5, 6, 7, 8]) != said


def test_tokens_are_drawn_as_often_as_their_probabilities_say(engine: VllmEngine) -> None:
    lm, number = student(), 1500
    one = Sampling(max_completion_tokens=1, temperature=1.3, batch_rows=64)
    prompts = [PROMPTS[0]] * number
    said = write(engine, lm, one, prompts)
    logits, _ = scores(lm, said[:1], prompts[:1])
    p = (logits[0] / 1.3).softmax(-1)
    counts = torch.zeros_like(p).index_add(
        0, torch.tensor([done.ids[0] for done in said]), torch.ones(number, dtype=p.dtype)
    )
    # Pearson's statistic over the likelier tokens: about their number, give or take its root.
    likely = p * number >= 5
    chi2 = float(((counts - p * number).square() / (p * number))[likely].sum())
    freedom = int(likely.sum()) - 1
    assert freedom > 20
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5


def test_log_probabilities_of_a_prompt_are_those_of_transformers(vllm_server: Server) -> None:
    # Asked after the engine: whoever gave the server other weights is to be undone.
    engine, lm = vllm_server.engine(), student()
    write(engine, lm, PLAIN)
    ids = LONG_PROMPT[:40]
    asked = {"model": None, "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0, "temperature": 0}
    answer = httpx2.post(f"{vllm_server.url}/v1/completions", json=asked).json()
    found = [
        one[str(token)]["logprob"]
        for token, one in zip(ids[1:], answer["choices"][0]["prompt_logprobs"][1:], strict=True)
    ]
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([ids])).logits[0].double()
    expected = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(found).double(), expected, rtol=0, atol=TOLERANCE)
    engine.close()


def test_prompts_are_refused_as_by_the_other_engines(engine: VllmEngine) -> None:
    lm = student()
    assert write(engine, lm, PLAIN, []) == []
    with pytest.raises(DataError, match="Prompt 1 is empty"):
        write(engine, lm, PLAIN, [[1], []])
    with pytest.raises(DataError, match=f"read more than {ROOM}"):
        write(engine, lm, PLAIN, [[1] * (ROOM - 23)])
    longest = write(engine, lm, PLAIN, [[1] * (ROOM - 24)])
    assert gap(lm, longest, [[1] * (ROOM - 24)]) < TOLERANCE

"""vLLM's words read rightly: the position, the true token beside the K, the rest, and lies."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.served import Listener, listening
from tests.teachers.remote.conftest import rollouts
from tests.tiny_models import tiny_llama
from tests.vllm_words import vllm_like
from tutelage.core.errors import RemoteError
from tutelage.core.records import Prompt, Rollout, TokenBatch
from tutelage.core.targets import TopKTarget
from tutelage.models import CausalLM
from tutelage.objectives.divergences import ForwardKL
from tutelage.objectives.partial import top_k_divergence
from tutelage.objectives.plain import plain_logits
from tutelage.teachers import LiveTeacher
from tutelage.teachers.cache import AnswerSettings, stored
from tutelage.teachers.remote import Link, RemoteTeacher, RemoteTeacherSettings, VllmApi, Wanted
from tutelage.text import collate

REAL = 260


@pytest.fixture(scope="module")
def plain_lm() -> CausalLM:
    return CausalLM(tiny_llama(3))


def teacher(url: str, *, top_k: int = 7, num_real: int = REAL, **more: Any) -> RemoteTeacher:
    given = {"retries": 0, "patience_seconds": 0.0, **more}
    settings = RemoteTeacherSettings.model_validate(
        {"url": url, "api": "vllm", "model": "teacher", "answer": "top_k", "top_k": top_k, **given}
    )
    link = Link(settings, None)
    wanted = Wanted(answer="top_k", num_real=num_real, num_entries=top_k)
    return RemoteTeacher(
        VllmApi(link, settings.name_there), link, settings, wanted, shape=(REAL, 32)
    )


def answered(lm: CausalLM, batch: TokenBatch, **more: Any) -> TopKTarget:
    with listening(vllm_like(lm)) as server:
        found = teacher(server.url, **more).score(batch)
    assert isinstance(found, TopKTarget)
    return found


@pytest.mark.parametrize("top_k", [1, 7, 20])
def test_the_entries_are_those_of_the_position_before_the_token(
    plain_lm: CausalLM, top_k: int
) -> None:
    batch = collate(rollouts())
    found = answered(plain_lm, batch, top_k=top_k)
    settings = AnswerSettings(answer="top_k", num_entries=top_k, dtype="float32")
    live = LiveTeacher(plain_lm, num_real=REAL).score(batch)
    same = stored(live, settings, key="")
    assert torch.equal(found.ids, same["ids"].long())
    torch.testing.assert_close(found.logp, same["logp"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.tail_logp, same["tail_logp"], rtol=1e-3, atol=1e-4)
    assert found.temperature == 1.0


def test_the_true_token_is_no_entry_of_its_own_unless_it_is_likely(plain_lm: CausalLM) -> None:
    """It always comes beside the K; kept, it would be one entry too many, or push one out."""
    prompt = Prompt(student_ids=(65, 66, 67), name="row")
    live = LiveTeacher(plain_lm).score(collate([Rollout(prompt=prompt, completion_ids=(0,))]))
    order = plain_logits(live.hidden, live.head)[0].argsort(descending=True).tolist()
    for place in (0, 3, 4, 200):
        row = Rollout(prompt=prompt, completion_ids=(order[place],))
        assert answered(plain_lm, collate([row]), top_k=4).ids[0].tolist() == order[:4]


def test_the_rest_keeps_the_loss_between_nothing_and_the_whole(plain_lm: CausalLM) -> None:
    """Truncated it would be negative, and clamped without a gradient (pitfall B21)."""
    batch = collate(rollouts())
    live = LiveTeacher(plain_lm, num_real=REAL).score(batch)
    whole = plain_logits(live.hidden, live.head).log_softmax(-1)
    scores = torch.randn(len(batch.labels), REAL, generator=torch.Generator().manual_seed(0))
    student = scores.requires_grad_()
    part = top_k_divergence(student, answered(plain_lm, batch), ForwardKL())
    all_of_it = (whole.exp() * (whole - student.log_softmax(-1))).sum(-1)
    assert bool((part > 0).all())
    assert bool((part <= all_of_it + 1e-5).all())
    (gradient,) = torch.autograd.grad(part.sum(), student)
    assert bool((gradient.abs().sum(-1) > 0).all())


def test_nearly_all_mass_in_the_entries_leaves_a_rest_that_is_finite(plain_lm: CausalLM) -> None:
    """One minus the kept mass has no digits left there, and its logarithm would be minus inf."""
    sharp = CausalLM(tiny_llama(3))
    with torch.no_grad():
        sharp.model.get_output_embeddings().weight.mul_(60)
    found = answered(sharp, collate(rollouts()), top_k=20)
    assert bool(found.tail_logp.isfinite().all())
    assert float(found.logp.exp().sum(1).max()) > 1 - 1e-6


Lie = Callable[[dict[str, Any]], None]


def each(change: Callable[[dict[str, Any]], None]) -> Callable[[Any], Any]:
    def change_all(tree: Any) -> Any:
        for choice in tree["choices"]:
            change(choice)
        return tree

    return change_all


def cut_logprobs(choice: dict[str, Any]) -> None:
    told = choice["prompt_logprobs"]
    for entry in told[1:]:
        for name in sorted(entry, key=lambda one: entry[one]["rank"])[4:7]:
            del entry[name]


def put(value: float) -> Callable[[Any], Any]:
    def change(choice: dict[str, Any]) -> None:
        for entry in choice["prompt_logprobs"][1:]:
            entry[min(entry, key=lambda one: entry[one]["rank"])]["logprob"] = value

    return each(change)


def others_read(choice: dict[str, Any]) -> None:
    choice["prompt_token_ids"] = choice["prompt_token_ids"][::-1]


def rotated(choice: dict[str, Any]) -> None:
    told = choice["prompt_logprobs"]
    choice["prompt_logprobs"] = [None, *told[2:], told[1]]
    choice["prompt_token_ids"] = None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (each(lambda one: one.update(prompt_logprobs=None)), "with no prompt_logprobs"),
        (each(lambda one: one["prompt_logprobs"].pop()), "prompt_logprobs; it must be one for"),
        (each(lambda one: one["prompt_logprobs"].insert(1, None)), "must be one for each"),
        (each(others_read), "about other ids"),
        (each(rotated), "without the token"),
        (each(cut_logprobs), "must be 7, which its --max-logprobs may cut"),
        (put(float("nan")), "with nan"),
        (put(0.7), "a log-probability of 0.7"),
        (put(-0.001), r"add up to 1\."),
        (lambda tree: {"choices": tree["choices"][:-1]}, "of 4 prompts; it must be all"),
        (lambda tree: {"detail": "no"}, "in no known way"),
        (lambda tree: [], "in no known way"),
    ],
)
def test_each_lie_is_told(plain_lm: CausalLM, change: Callable[[Any], Any], complaint: str) -> None:
    batch = collate(rollouts())
    with (
        listening(vllm_like(plain_lm, change=change)) as server,
        pytest.raises(RemoteError, match=complaint) as caught,
    ):
        teacher(server.url).score(batch)
    assert server.url in str(caught.value)
    assert any(key in str(caught.value) for key in batch.keys)


def test_an_entry_that_the_student_lacks_is_an_error_and_not_a_wrong_class(
    plain_lm: CausalLM,
) -> None:
    """vLLM cannot be asked to leave padding out; kept ids must be among the shared entries."""
    with (
        listening(vllm_like(plain_lm)) as server,
        pytest.raises(RemoteError, match="must be below"),
    ):
        teacher(server.url, num_real=100, top_k=20).score(collate(rollouts()))


def test_more_entries_than_the_server_allows_are_refused_in_its_own_words(
    plain_lm: CausalLM,
) -> None:
    with (
        listening(vllm_like(plain_lm)) as server,
        pytest.raises(RemoteError, match=r"prompt logprobs of 21.*--max-logprobs"),
    ):
        teacher(server.url, top_k=21).score(collate(rollouts()))


def test_another_model_is_refused_before_anything_is_asked(plain_lm: CausalLM) -> None:
    def one(server: Listener) -> None:
        with pytest.raises(RemoteError, match=r"it serves gpt-17; it must serve teacher"):
            teacher(server.url)
        assert server.asked == ["/v1/models"]

    with listening(vllm_like(plain_lm, name="gpt-17")) as server:
        one(server)

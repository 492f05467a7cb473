"""The student as its own teacher: which weights answer, what they leave behind, who is aligned."""

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.models.test_adapters import adapted
from tests.tiny_models import EOS, byte_tokenizer, tiny_llama
from tests.training.tiny_runs import objective, settings, trainer, weights
from tutelage.core.errors import CheckpointError, ConfigError, ModelError
from tutelage.core.records import Prompt, Rollout
from tutelage.models import CausalLM, moving_weights, plain_copy
from tutelage.objectives import Taid
from tutelage.rollouts import DatasetRollouts
from tutelage.teachers import AverageTeacher, LiveTeacher, Reader, SelfTeacher, self_teacher
from tutelage.text import Formatter, TeacherView, collate, cut
from tutelage.training import Trainer
from tutelage.training.state_tree import load_tree, save_tree

ALL = ("initial", "average", "live")


def rows(num_rows: int = 6, *, context: str = "solution") -> list[Rollout]:
    """Problems and solutions of very different lengths."""
    data = [
        {
            "prompt": [{"role": "user", "content": "Add " + "one and " * (at % 4) + f"{at}."}],
            "completion": [{"role": "assistant", "content": "ok " * (at % 3) + str(at)}],
            "solution": "Count. " * (1 + at * 2 % 5),
        }
        for at in range(num_rows)
    ]
    named = ((row, f"rows.jsonl:{at}") for at, row in enumerate(data, 1))
    tokenizer = byte_tokenizer()
    formatted = Formatter(tokenizer).rollouts(named).rows
    view = TeacherView(tokenizer=tokenizer, context=context, wording=WORDING)
    return view.rollouts(formatted).rows


WORDING = Path(__file__).with_name("short.j2")


def logits(teacher: Any, batch: Any) -> torch.Tensor:
    target = teacher.score(batch)
    return target.hidden @ target.head.weight.T


def student_logits(lm: CausalLM, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        return lm.hidden(batch.student)[batch.student.predicts] @ lm.head.weight.T


def lora_student(**options: Any) -> CausalLM:
    return adapted(moved=False, **options)


def whole_student(**options: Any) -> CausalLM:
    return CausalLM(tiny_llama(**options))


def run_of(student: CausalLM, teacher: Any, data: list[Rollout], **fields: Any) -> Trainer:
    clocks = {"teacher": teacher} if isinstance(teacher, AverageTeacher) else {}
    given = {"settings": settings(num_steps=3, rows_per_step=4, micro_batch_tokens=400), **fields}
    return trainer(student=student, teacher=teacher, data=data, clocks=clocks, **given)


@pytest.mark.parametrize("make", [lora_student, whole_student])
@pytest.mark.parametrize("chosen", ALL)
def test_before_the_first_step_teacher_and_student_are_one_bit_for_bit(make, chosen) -> None:
    lm = make()
    batch = collate(rows(context="none"))
    assert torch.equal(logits(self_teacher(lm, weights=chosen), batch), student_logits(lm, batch))


@pytest.mark.parametrize("make", [lora_student, whole_student])
@pytest.mark.parametrize("chosen", ALL)
@pytest.mark.parametrize("t", [None, 0.4])
def test_a_teacher_that_is_told_nothing_more_teaches_nothing(make, chosen, t) -> None:
    lm = make()
    data = rows(context="none")
    move = {} if t is None else {"move": Taid(schedule="constant", t_start=t)}
    run = run_of(lm, self_teacher(lm, weights=chosen), data, **move)
    assert run.loss_on(data) == pytest.approx(0.0, abs=1e-6)
    before = weights(lm)
    result = run_of(
        lm, self_teacher(lm, weights=chosen), data, settings=settings(num_steps=1), **move
    ).train()
    assert result.last is not None
    assert result.last.totals.loss == pytest.approx(0.0, abs=1e-6)
    assert result.last.totals.grad_norm < 1e-6
    told = rows()
    assert run_of(lm, self_teacher(lm, weights=chosen), told).loss_on(told) > 1e-3
    assert before.keys() == weights(lm).keys()


@pytest.mark.parametrize("make", [lora_student, whole_student])
def test_a_step_moves_the_live_teacher_and_not_the_first_weights(make) -> None:
    lm, data = make(), rows()
    batch = collate(data)
    first = self_teacher(lm, weights="initial")
    live = self_teacher(lm, weights="live")
    at_first = logits(first, batch)
    assert torch.equal(at_first, logits(live, batch))
    run_of(lm, first, data).train()
    assert torch.equal(logits(first, batch), at_first)
    assert not torch.equal(logits(live, batch), at_first)


@pytest.mark.parametrize("make", [lora_student, whole_student])
def test_the_average_is_the_closed_form_of_what_the_weights_acted_as(make) -> None:
    lm, data, decay = make(), rows(), 0.75
    teacher = AverageTeacher(lm, decay=decay)
    acted_as = [{name: w.clone() for name, w in moving_weights(lm).items()}]
    moved = teacher.move

    def noted(*, loss: float, step: int) -> None:
        acted_as.append({name: w.clone() for name, w in moving_weights(lm).items()})
        moved(loss=loss, step=step)

    teacher.move = noted
    run_of(lm, teacher, data).train()
    assert len(acted_as) == 4
    for name, average in teacher.state_dict()["averages"].items():
        first, *later = [one[name].double() for one in acted_as]
        n = len(later)
        expected = decay**n * first
        for k, weight in enumerate(later):
            expected = expected + (1 - decay) * decay ** (n - 1 - k) * weight
        assert average.dtype == torch.float32
        torch.testing.assert_close(average.double(), expected, atol=1e-6, rtol=1e-6)
    assert not torch.equal(acted_as[0][name], acted_as[-1][name])


def test_an_adapters_average_does_not_shrink_from_its_b_of_zero() -> None:
    lm = lora_student()
    decay, num_moves = 0.9, 5
    teacher = AverageTeacher(lm, decay=decay)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.2)
    before = teacher.state_dict()["averages"]
    first = {name: average.clone() for name, average in before.items()}
    for step in range(num_moves):
        teacher.move(loss=0.0, step=step)
    share = 1 - decay**num_moves
    for name, product in moving_weights(lm).items():
        gone = teacher.state_dict()["averages"][name] - first[name]
        torch.testing.assert_close(gone, share * (product - first[name]), atol=1e-6, rtol=1e-4)


def test_the_averaged_head_answers_where_the_head_is_trained() -> None:
    lm, data = whole_student(tie_word_embeddings=True), rows()
    teacher = AverageTeacher(lm, decay=0.5)
    run_of(lm, teacher, data).train()
    target = teacher.score(collate(data))
    averages = teacher.state_dict()["averages"]
    assert torch.equal(target.head.weight, averages["model.embed_tokens.weight"])
    assert not torch.equal(target.head.weight, lm.head.weight)


def test_an_average_in_half_precision_is_kept_in_full() -> None:
    lm = adapted(lambda: tiny_llama().bfloat16(), moved=False)
    teacher = AverageTeacher(lm, decay=0.999)
    name = "model.layers.0.self_attn.q_proj.weight"
    with torch.no_grad():
        layer = lm.model.get_submodule("model.layers.0.self_attn.q_proj")
        layer.lora_B["default"].weight.fill_(0.01)
    first = teacher.state_dict()["averages"][name].clone()
    for step in range(3):
        teacher.move(loss=0.0, step=step)
    product = moving_weights(lm)[name]
    expected = first + (1 - 0.999**3) * (product - first)
    torch.testing.assert_close(
        teacher.state_dict()["averages"][name], expected, atol=1e-7, rtol=1e-5
    )
    assert teacher.score(collate(rows())).hidden.dtype == torch.bfloat16


def test_an_average_in_half_precision_answers_with_what_it_is_and_what_it_was_restored_to() -> None:
    lm = adapted(lambda: tiny_llama().bfloat16(), moved=False)
    teacher, again = AverageTeacher(lm, decay=0.1), AverageTeacher(lm, decay=0.1)
    batch = collate(rows())
    at_first = logits(teacher, batch)
    with torch.no_grad():
        lm.model.get_submodule("model.layers.0.mlp.up_proj").lora_B["default"].weight.fill_(0.5)
    teacher.move(loss=0.0, step=0)
    assert not torch.equal(logits(teacher, batch), at_first)
    again.load_state_dict(teacher.state_dict())
    assert torch.equal(logits(again, batch), logits(teacher, batch))


def test_the_average_is_saved_and_restored_bit_for_bit(tmp_path: Path) -> None:
    lm, data = lora_student(), rows()
    teacher = AverageTeacher(lm, decay=0.5)
    run_of(lm, teacher, data).train()
    save_tree(teacher.state_dict(), tmp_path / "average")
    again = AverageTeacher(lm, decay=0.5)
    batch = collate(data)
    assert not torch.equal(logits(again, batch), logits(teacher, batch))
    again.load_state_dict(load_tree(tmp_path / "average"))
    assert torch.equal(logits(again, batch), logits(teacher, batch))
    with pytest.raises(CheckpointError, match="decay is not that of the checkpoint"):
        AverageTeacher(lm, decay=0.6).load_state_dict(load_tree(tmp_path / "average"))
    with pytest.raises(CheckpointError, match="set of trained weights is not that"):
        AverageTeacher(whole_student(), decay=0.5).load_state_dict(load_tree(tmp_path / "average"))


def test_looking_does_not_move_the_average() -> None:
    lm, data = lora_student(), rows()
    teacher = AverageTeacher(lm, decay=0.5)
    run = run_of(lm, teacher, data)
    with torch.no_grad():
        next(p for n, p in lm.named_parameters() if ".lora_B" in n).fill_(1.0)
    before = {name: a.clone() for name, a in teacher.state_dict()["averages"].items()}
    run.loss_on(data)
    teacher.score(collate(data))
    after = teacher.state_dict()["averages"]
    assert all(torch.equal(after[name], average) for name, average in before.items())


def test_how_a_step_is_cut_moves_the_average_once() -> None:
    found: list[dict[str, torch.Tensor]] = []
    for micro_batch_tokens in (10_000, 100):
        lm, data = lora_student(), rows()
        teacher = AverageTeacher(lm, decay=0.5)
        chosen = settings(num_steps=2, micro_batch_tokens=micro_batch_tokens)
        run_of(lm, teacher, data, settings=chosen).train()
        found.append(dict(teacher.state_dict()["averages"]))
    for name, average in found[0].items():
        torch.testing.assert_close(found[1][name], average, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [lora_student, whole_student])
@pytest.mark.parametrize("chosen", ALL)
def test_a_teacher_leaves_no_gradient_no_mode_no_random_number_and_no_adapter_off(
    make, chosen
) -> None:
    lm = make(dropout=0.5) if make is lora_student else make(attention_dropout=0.5)
    teacher = self_teacher(lm, weights=chosen)
    batch = collate(rows())
    expected = logits(teacher, batch)
    lm.train()
    lm.model.get_submodule("model.layers.1").eval()
    modes = [module.training for module in lm.modules()]
    trained = [p.requires_grad for p in lm.parameters()]
    torch.manual_seed(4)
    before = torch.get_rng_state()
    target = teacher.score(batch)
    assert torch.equal(target.hidden @ target.head.weight.T, expected)
    assert not target.hidden.requires_grad
    assert not target.head.weight.requires_grad
    assert torch.equal(before, torch.get_rng_state())
    assert [module.training for module in lm.modules()] == modes
    assert [p.requires_grad for p in lm.parameters()] == trained
    assert all(p.grad is None for p in lm.parameters())


def test_the_student_is_whole_again_when_its_teacher_fails() -> None:
    lm = adapted()
    teacher = SelfTeacher(lm, weights="initial")
    batch = collate(rows())
    lm.train()
    with_it = student_logits(lm.eval(), batch)
    lm.train()
    embedding = lm.model.model.embed_tokens.weight
    kept = embedding.detach().clone()
    with torch.no_grad():
        embedding.fill_(torch.nan)
    with pytest.raises(ArithmeticError, match="nan or infinite"):
        teacher.score(batch)
    with torch.no_grad():
        embedding.copy_(kept)
    assert lm.training
    assert torch.equal(student_logits(lm.eval(), batch), with_it)


def test_first_weights_need_an_adapter_or_a_copy() -> None:
    with pytest.raises(ModelError, match=r"adapter off.*student\.lora"):
        SelfTeacher(whole_student(), weights="initial")
    assert isinstance(self_teacher(whole_student(), weights="initial"), LiveTeacher)
    assert isinstance(self_teacher(lora_student(), weights="initial"), SelfTeacher)


@pytest.mark.parametrize("chosen", ["average", "live"])
def test_weights_that_move_are_not_remembered(chosen: str) -> None:
    with pytest.raises(ConfigError, match=f"weights are {chosen}, which move"):
        self_teacher(lora_student(), weights=chosen, reader=Reader(remember_bytes=10))


@pytest.mark.parametrize("make", [lora_student, whole_student])
def test_first_weights_are_remembered_and_stay_what_they_were(make) -> None:
    lm, data = make(), rows()
    batch = collate(data)
    reader = Reader(remember_bytes=10**7)
    teacher = self_teacher(lm, weights="initial", reader=reader)
    expected = logits(teacher, batch)
    run_of(lm, teacher, data).train()
    assert torch.equal(logits(teacher, batch), expected)
    assert reader.num_scored_rows == len(data)


# Alignment.


def position_model(length: int = 600) -> CausalLM:
    """No layers: its logits are the position that is read, whatever the token."""
    config = GPT2Config(
        vocab_size=length, n_positions=length, n_embd=length, n_layer=0, n_head=1,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
        model.transformer.wpe.weight.copy_(torch.eye(length))
        model.lm_head.weight.copy_(torch.eye(length))
    return CausalLM(model)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_both_views_answer_for_the_same_token_of_the_completion(layout: str) -> None:
    lm = position_model()
    lm.layout = layout
    data = rows(8)
    batch = collate(data)
    own = student_logits(lm, batch).argmax(-1)
    theirs = logits(SelfTeacher(lm, weights="live"), batch).argmax(-1)
    at = 0
    for rollout in data:
        prompt = rollout.prompt
        assert len(prompt.teacher_ids or ()) > len(prompt.student_ids)
        for offset, label in enumerate(rollout.completion_ids):
            assert batch.labels[at] == label
            assert own[at] == len(prompt.student_ids) + offset - 1
            assert theirs[at] == len(prompt.teacher_ids or ()) + offset - 1
            at += 1
    assert at == len(own)


def losses_of(
    data: list[Rollout], *, tokens: int, layout: str, make: Callable[[], CausalLM]
) -> float:
    lm = make()
    teacher = AverageTeacher(lm)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if ".lora_B" in name:
                parameter.copy_(torch.linspace(-0.3, 0.3, parameter.numel()).view_as(parameter))
    for one in (lm, teacher._lm):
        one.layout = layout
    run = Trainer(
        student=lm,
        teacher=teacher,
        objective=objective(),
        rollouts=DatasetRollouts(data),
        settings=settings(micro_batch_tokens=tokens),
    )
    return run.loss_on(data)


def test_the_loss_is_the_same_however_rows_are_ordered_cut_or_laid_out() -> None:
    data = rows(4)
    lengths = {(len(r.prompt.student_ids), len(r.prompt.teacher_ids or ())) for r in data}
    assert len(lengths) == 4
    expected = losses_of(data, tokens=10_000, layout="packed", make=lora_student)
    assert expected > 1e-2
    for order in list(permutations(range(4)))[::7]:
        for tokens in (1, 250, 10_000):
            for layout in ("packed", "padded"):
                found = losses_of(
                    [data[at] for at in order], tokens=tokens, layout=layout, make=lora_student
                )
                assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_batch_is_the_sum_of_its_rows_and_an_empty_completion_weighs_nothing() -> None:
    data = rows(4)
    empty = Rollout(prompt=data[0].prompt, completion_ids=(), source="student")
    whole = losses_of(data, tokens=10_000, layout="packed", make=lora_student)
    with_empty = losses_of([empty, *data], tokens=300, layout="packed", make=lora_student)
    assert with_empty == pytest.approx(whole, rel=1e-5)
    alone = [losses_of([row], tokens=10_000, layout="packed", make=lora_student) for row in data]
    trained = [len(row.completion_ids) for row in data]
    mean = sum(loss * n for loss, n in zip(alone, trained, strict=True)) / sum(trained)
    assert whole == pytest.approx(mean, rel=1e-5)
    assert losses_of([empty], tokens=100, layout="packed", make=lora_student) == 0.0


def test_a_longer_context_changes_the_teacher_and_not_how_many_tokens_are_trained() -> None:
    short, long = rows(3, context="none"), rows(3)
    pairs = zip(collate(short).labels.tolist(), collate(long).labels.tolist(), strict=True)
    assert all(one == other for one, other in pairs)
    assert len(cut(long, max_tokens=250)) >= len(cut(short, max_tokens=250))


def test_a_truncated_rollout_has_no_end_in_either_view() -> None:
    tokenizer = byte_tokenizer()
    row = {"prompt": "a?", "completion": "bcdef", "solution": "b to f"}
    kept = Formatter(tokenizer, max_completion_tokens=3).rollout(row, "r")
    shown = TeacherView(tokenizer=tokenizer, wording=WORDING).rollouts([kept]).rows[0]
    assert shown.truncated
    end = tokenizer.convert_tokens_to_ids(EOS)
    assert end not in collate([shown]).labels.tolist()


def test_a_frozen_copy_shares_nothing_that_moves() -> None:
    lm = whole_student()
    copied = plain_copy(lm)
    mine = {p.data_ptr() for p in lm.parameters()}
    assert not mine & {p.data_ptr() for p in copied.parameters()}


def test_prompts_alone_get_the_same_view_as_finished_rows() -> None:
    tokenizer = byte_tokenizer()
    view = TeacherView(tokenizer=tokenizer, wording=WORDING)
    row = {"prompt": [{"role": "user", "content": "Hi"}], "completion": "x", "solution": "s"}
    formatter = Formatter(tokenizer)
    (prompt,) = view.prompts([formatter.prompt(row, "r")]).rows
    (rollout,) = view.rollouts([formatter.rollout(row, "r")]).rows
    assert isinstance(prompt, Prompt)
    assert prompt.teacher_ids == rollout.prompt.teacher_ids

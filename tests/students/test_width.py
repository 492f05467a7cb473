"""Width pruning: the neurons that write most stay, and what is left is an ordinary model."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.students.test_prune import calibration
from tests.tiny_models import byte_tokenizer, tiny_gemma3, tiny_llama, tiny_qwen2
from tutelage.core.errors import ConfigError
from tutelage.models import CausalLM, LoadedModel, layers_of, save_model
from tutelage.students import (
    PrunedStudent,
    build_student,
    choose_neurons,
    neuron_importance,
    prune_neurons,
    wants_calibration,
)
from tutelage.students.moe import feed_forwards

KEPT = [torch.tensor([0, 2, 3, 40]), torch.tensor([1, 5, 30, 47])]
every_model = pytest.mark.parametrize(
    "model", [tiny_llama(), tiny_qwen2(), tiny_gemma3()], ids=lambda m: m.config.model_type
)


@every_model
def test_a_narrow_model_computes_what_silencing_the_other_neurons_computes(
    model: PreTrainedModel,
) -> None:
    lm, view = CausalLM(model), calibration()[0].student
    narrow = prune_neurons(lm, KEPT)
    found = narrow.hidden(view)
    before = [neurons.down.clone() for neurons in feed_forwards(lm)]
    for neurons, kept in zip(feed_forwards(lm), KEPT, strict=True):
        others = [at for at in range(48) if at not in kept.tolist()]
        neurons.down[:, others] = 0
    torch.testing.assert_close(found, lm.hidden(view), rtol=1e-5, atol=1e-5)
    for neurons, weight in zip(feed_forwards(lm), before, strict=True):
        neurons.down.copy_(weight)
    assert narrow.config.intermediate_size == 4
    assert lm.config.intermediate_size == 48
    assert layers_of(model)[0].mlp.gate_proj.weight.shape[0] == 48


def test_a_narrow_model_is_loaded_by_plain_transformers(tmp_path: Path) -> None:
    narrow = prune_neurons(CausalLM(tiny_llama()), KEPT)
    folder = save_model(narrow, byte_tokenizer(), tmp_path / "narrow")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, narrow.model(ids).logits)


def test_importance_is_the_mean_length_of_what_a_neuron_writes() -> None:
    lm = CausalLM(tiny_llama())
    written: list[list[torch.Tensor]] = [[], []]
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda m, args, to=to: to.append((args[0][0][:, None] * m.weight).norm(dim=1).detach())
        )
        for layer, to in zip(layers_of(lm.model), written, strict=True)
    ]
    for batch in calibration():
        for row in batch.student.input_ids.split(batch.student.row_starts.diff().tolist()):
            lm.model(row[None])
    for handle in handles:
        handle.remove()
    for found, parts in zip(neuron_importance(lm, calibration()), written, strict=True):
        expected = torch.cat(parts).double().mean(dim=0)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_the_most_important_stay_in_their_order() -> None:
    importance = [torch.tensor([1.0, 5.0, 3.0, 5.0]), torch.tensor([4.0, 1.0, 2.0, 3.0])]
    assert [kept.tolist() for kept in choose_neurons(importance, keep=2)] == [[1, 3], [0, 3]]
    with pytest.raises(ConfigError, match=r"student\.keep_neurons is 5; it must be from 1 to 4"):
        choose_neurons(importance, keep=5)


def test_a_student_can_be_cut_both_ways_and_neurons_are_watched_in_what_is_left() -> None:
    teacher = LoadedModel(
        lm=CausalLM(tiny_llama(num_hidden_layers=4)), tokenizer=byte_tokenizer(), source="tiny"
    )
    settings = PrunedStudent(keep_layers=2, choose=(0, 3), keep_neurons=10)
    student = build_student(settings, teacher=teacher, calibration=calibration()).lm
    assert (len(layers_of(student.model)), student.config.intermediate_size) == (2, 10)
    shallow = build_student(
        PrunedStudent(keep_layers=2, choose=(0, 3)), teacher=teacher, calibration=[]
    ).lm
    importance = neuron_importance(shallow, calibration())
    expected = prune_neurons(shallow, choose_neurons(importance, keep=10))
    view = calibration()[0].student
    assert torch.equal(student.hidden(view), expected.hidden(view))
    assert teacher.lm.config.intermediate_size == 48
    assert all(weight.requires_grad for weight in student.parameters())


def test_a_pruned_student_cuts_something_and_asks_for_rows_where_it_looks_at_them() -> None:
    with pytest.raises(ValidationError, match=r"one of them must be given"):
        PrunedStudent()
    assert wants_calibration(PrunedStudent(keep_neurons=3))
    assert wants_calibration(PrunedStudent(keep_layers=3))
    assert not wants_calibration(PrunedStudent(keep_layers=3, choose="uniform"))

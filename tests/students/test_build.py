from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from tests.students.test_prune import calibration
from tests.tiny_models import byte_tokenizer, tiny_gemma3, tiny_llama, tiny_qwen3
from tutelage.core.errors import ConfigError
from tutelage.models import CausalLM, LoadedModel, layers_of, load_model, save_model
from tutelage.students import (
    FreshStudent,
    LoadedStudent,
    PrunedStudent,
    StudentSettings,
    build_student,
)


def teacher(**overrides: object) -> LoadedModel:
    lm = CausalLM(tiny_llama(num_hidden_layers=4, **overrides))
    return LoadedModel(lm=lm, tokenizer=byte_tokenizer(), source="tiny")


def test_settings_are_told_apart_by_kind() -> None:
    adapter = TypeAdapter(StudentSettings)
    assert adapter.validate_python({"kind": "pruned", "keep_layers": 3}) == PrunedStudent(
        keep_layers=3
    )
    assert isinstance(adapter.validate_python({"kind": "loaded", "model": "x"}), LoadedStudent)
    assert isinstance(adapter.validate_python({"kind": "fresh"}), FreshStudent)
    chosen = adapter.validate_python({"kind": "pruned", "keep_layers": 2, "choose": [0, 3]})
    assert chosen == PrunedStudent(keep_layers=2, choose=(0, 3))
    for wrong in ({"kind": "pruned", "keep_layers": 0}, {"kind": "pruned", "keep_layer": 1}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)


def test_a_pruned_student_is_a_trainable_copy_of_a_frozen_teacher() -> None:
    base = teacher()
    base.lm.requires_grad_(requires_grad=False)
    student = build_student(PrunedStudent(keep_layers=2), teacher=base, calibration=calibration())
    assert len(layers_of(student.lm.model)) == 2
    assert student.tokenizer is base.tokenizer
    assert all(parameter.requires_grad for parameter in student.lm.parameters())
    assert not any(parameter.requires_grad for parameter in base.lm.parameters())
    assert not student.lm.training
    assert student.source.startswith("tiny, layers ")


def test_all_layers_kept_is_the_teacher_again_and_needs_no_calibration() -> None:
    base, view = teacher(), calibration()[0].student
    student = build_student(PrunedStudent(keep_layers=4), teacher=base)
    assert torch.equal(student.lm.hidden(view), base.lm.hidden(view))


def test_more_layers_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"student\.keep_layers is 5; it must be from 1 to 4"):
        build_student(PrunedStudent(keep_layers=5), teacher=teacher(), calibration=calibration())


def test_another_model_than_the_teacher_can_be_pruned_or_loaded(tmp_path: Path) -> None:
    folder = save_model(teacher().lm, byte_tokenizer(), tmp_path / "other")
    pruned = PrunedStudent(model=str(folder), keep_layers=3, choose="uniform", dtype="bfloat16")
    student = build_student(pruned, teacher=None)
    assert len(layers_of(student.lm.model)) == 3
    assert student.lm.dtype == torch.bfloat16
    loaded = build_student(LoadedStudent(model=str(folder)), teacher=None)
    assert torch.equal(loaded.lm.head.weight, teacher().lm.head.weight)


@pytest.mark.parametrize("tied", [True, False])
def test_a_student_cut_from_a_rounded_teacher_has_its_weights_in_full_precision(tied: bool) -> None:  # noqa: FBT001
    base = teacher(tie_word_embeddings=tied)
    base.lm.to(torch.bfloat16)
    student = build_student(PrunedStudent(keep_layers=4), teacher=base).lm
    rounded = dict(base.lm.named_parameters())
    for name, weight in student.named_parameters():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, rounded[name].float())
    assert {weight.dtype for weight in rounded.values()} == {torch.bfloat16}
    assert student.config.dtype == torch.float32
    assert (student.head.weight is student.model.get_input_embeddings().weight) is tied


def test_a_student_in_half_precision_turns_its_positions_by_unrounded_frequencies(
    tmp_path: Path,
) -> None:
    folder = str(save_model(teacher().lm, byte_tokenizer(), tmp_path / "other"))
    exact = teacher().lm.model.model.rotary_emb.inv_freq
    for settings in (
        PrunedStudent(keep_layers=2, choose="uniform", dtype="bfloat16"),
        LoadedStudent(model=folder, dtype="bfloat16"),
        FreshStudent(dtype="bfloat16"),
    ):
        student = build_student(settings, teacher=teacher()).lm
        assert {weight.dtype for weight in student.parameters()} == {torch.bfloat16}
        assert torch.equal(student.model.model.rotary_emb.inv_freq, exact)


@pytest.mark.parametrize("settings", [PrunedStudent(keep_layers=1), FreshStudent()])
def test_a_student_made_from_its_teacher_needs_one(settings: StudentSettings) -> None:
    with pytest.raises(ConfigError, match=r"there is no teacher; it must name a model"):
        build_student(settings, teacher=None)


def test_a_fresh_student_is_the_same_for_the_same_seed_and_disturbs_nobody() -> None:
    settings = FreshStudent(config={"num_hidden_layers": 1})
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again = (build_student(settings, teacher=teacher(), seed=3).lm for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    other = build_student(settings, teacher=teacher(), seed=4).lm
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
    assert not torch.equal(first.head.weight, teacher().lm.head.weight)


def test_a_fresh_student_has_the_teachers_vocabulary_and_the_asked_shape(tmp_path: Path) -> None:
    changes = {"num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 2}
    student = build_student(FreshStudent(config=changes), teacher=teacher())
    config = student.lm.config
    assert config.head_dim == 12
    assert config.eos_token_id == 257
    assert student.lm.head.weight.shape == (260, 24)
    assert len(layers_of(student.lm.model)) == 3
    hidden = student.lm.hidden(calibration()[0].student)
    folder = save_model(student.lm, student.tokenizer, tmp_path / "student")
    again = load_model(str(folder)).lm.hidden(calibration()[0].student)
    torch.testing.assert_close(hidden, again)


def test_a_fresh_student_may_be_like_another_model_in_the_teachers_language(
    tmp_path: Path,
) -> None:
    other = CausalLM(tiny_qwen3(vocab_size=300, eos_token_id=299))
    folder = save_model(other, byte_tokenizer(), tmp_path / "other")
    student = build_student(FreshStudent(like=str(folder)), teacher=teacher())
    assert student.lm.config.model_type == "qwen3"
    assert student.lm.head.weight.shape[0] == 260
    assert student.lm.config.eos_token_id == 257


def test_layer_by_layer_settings_follow_the_new_number_of_layers() -> None:
    base = LoadedModel(lm=CausalLM(tiny_gemma3()), tokenizer=byte_tokenizer(), source="gemma")
    student = build_student(FreshStudent(config={"num_hidden_layers": 7}), teacher=base)
    assert len(student.lm.config.layer_types) == 7
    assert student.lm.config.head_dim == 8


def test_a_wrong_change_to_a_config_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"num_hiden_layers is not .* mean num_hidden_layers\?"):
        build_student(FreshStudent(config={"num_hiden_layers": 2}), teacher=teacher())
    with pytest.raises(ConfigError, match=r"must make a valid llama config") as caught:
        build_student(FreshStudent(config={"hidden_size": "wide"}), teacher=teacher())
    assert "\n" not in str(caught.value)


def test_frozen_parameters_are_those_the_patterns_name() -> None:
    patterns = ("model.embed_tokens.*", "model.layers.0.*")
    settings = PrunedStudent(keep_layers=2, choose="uniform", freeze=patterns)
    lm = build_student(settings, teacher=teacher()).lm
    frozen = {name for name, p in lm.model.named_parameters() if not p.requires_grad}
    expected = {
        name
        for name, _ in lm.model.named_parameters()
        if name.startswith(("model.embed_tokens.", "model.layers.0."))
    }
    assert frozen == expected
    assert frozen


@pytest.mark.parametrize(
    ("patterns", "complaint"),
    [
        (("model.layers.9.*",), r"'model\.layers\.9\.\*', which no parameter matches; .* such as"),
        (("*",), r"is every parameter; it must leave some"),
    ],
)
def test_a_pattern_that_freezes_nothing_or_everything_is_refused(
    patterns: tuple[str, ...], complaint: str
) -> None:
    settings = PrunedStudent(keep_layers=2, choose="uniform", freeze=patterns)
    with pytest.raises(ConfigError, match=complaint):
        build_student(settings, teacher=teacher())

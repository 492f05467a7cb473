"""From settings to a student that can be trained."""

import fnmatch
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch

from tutelage.core.errors import ConfigError
from tutelage.core.records import TokenBatch
from tutelage.models import (
    CausalLM,
    LoadedModel,
    add_lora,
    layers_of,
    load_config,
    load_model,
)
from tutelage.students.fresh import fresh_config, fresh_model
from tutelage.students.moe import make_upcycled, needs_calibration
from tutelage.students.prune import choose_layers, layers_by_influence, prune_layers
from tutelage.students.reroute import reroute
from tutelage.students.settings import (
    FreshStudent,
    LoadedStudent,
    PrunedStudent,
    ReroutedStudent,
    StudentSettings,
    UpcycledStudent,
    lora_of,
)
from tutelage.students.width import (
    check_width,
    choose_neurons,
    neuron_importance,
    prune_neurons,
)


def build_student(
    settings: StudentSettings,
    *,
    teacher: LoadedModel | None,
    calibration: Sequence[TokenBatch] = (),
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> LoadedModel:
    """The student in eval mode on `device`, its weights its own and ready for gradients.

    Args:
        teacher: what students are made from, unless they name another model.
        calibration: rows on which layers are chosen by influence, and neurons are watched.

    Raises:
        ConfigError: for settings that do not fit the models.
    """
    dtype = cast(torch.dtype, getattr(torch, settings.dtype))
    if isinstance(settings, LoadedStudent):
        student = load_model(
            settings.model,
            dtype=dtype,
            device=device,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
        )
    elif isinstance(settings, PrunedStudent):
        student = _pruned(settings, teacher, calibration)
    elif isinstance(settings, UpcycledStudent):
        student = _upcycled(settings, teacher, calibration, seed=seed)
    elif isinstance(settings, ReroutedStudent):
        student = _rerouted(settings, teacher, calibration, seed=seed)
    else:
        student = _fresh(settings, teacher, seed=seed)
    lm = student.lm.to(device).eval()
    for parameter in lm.parameters():
        # Not the buffers: rounded rotary frequencies would turn distant positions elsewhere.
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad = True
    lm.config.dtype = dtype
    lora = lora_of(settings)
    if lora is not None:
        add_lora(
            lm,
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=lora.dropout,
            targets=lora.targets,
            seed=seed,
        )
    freeze(lm, settings.freeze)
    return replace(student, lm=lm)


def wants_calibration(settings: StudentSettings) -> bool:
    """Whether rows are looked at to make this student."""
    match settings:
        case PrunedStudent(keep_layers=layers, keep_neurons=neurons, choose=choose):
            return neurons is not None or (layers is not None and choose == "influence")
        case ReroutedStudent():
            return True
        case UpcycledStudent():
            return needs_calibration(settings)
        case _:
            return False


def freeze(lm: CausalLM, patterns: Sequence[str]) -> None:
    """Keep the parameters whose names match a pattern as they are.

    Names are the transformers model's own, such as `model.layers.0.mlp.up_proj.weight`.

    Raises:
        ConfigError: for a pattern that matches nothing, or when nothing is left to train.
    """
    parameters = dict(lm.model.named_parameters())
    for pattern in patterns:
        matched = [name for name in parameters if fnmatch.fnmatchcase(name, pattern)]
        if not matched:
            message = (
                f"student.freeze has {pattern!r}, which no parameter matches; it must match some, "
                f"such as {next(iter(parameters))}. Correct the pattern."
            )
            raise ConfigError(message)
        for name in matched:
            parameters[name].requires_grad = False
    if not any(parameter.requires_grad for parameter in parameters.values()):
        message = (
            f"student.freeze is {list(patterns)}, which is every parameter; it must leave some to "
            "train. Remove a pattern."
        )
        raise ConfigError(message)


def _pruned(
    settings: PrunedStudent, teacher: LoadedModel | None, calibration: Sequence[TokenBatch]
) -> LoadedModel:
    base = teacher if settings.model is None else load_model(settings.model)
    if base is None:
        raise _no_teacher("model")
    lm, source = base.lm, base.source
    if settings.keep_layers is not None:
        kept = _layers(settings, settings.keep_layers, lm, calibration)
        lm, source = prune_layers(lm, kept), f"{source}, layers {', '.join(map(str, kept))}"
    if settings.keep_neurons is not None:
        check_width(settings.keep_neurons, num_neurons=int(lm.config.intermediate_size))
        importance = neuron_importance(lm, calibration)
        lm = prune_neurons(lm, choose_neurons(importance, keep=settings.keep_neurons))
        source = f"{source}, {settings.keep_neurons} neurons a layer"
    return LoadedModel(lm=lm, tokenizer=base.tokenizer, source=source)


def _layers(
    settings: PrunedStudent, keep: int, lm: CausalLM, calibration: Sequence[TokenBatch]
) -> list[int]:
    if settings.choose == "influence":
        return layers_by_influence(lm, calibration, keep=keep)
    return choose_layers(settings.choose, keep=keep, num_layers=len(layers_of(lm.model)))


def _upcycled(
    settings: UpcycledStudent,
    teacher: LoadedModel | None,
    calibration: Sequence[TokenBatch],
    *,
    seed: int,
) -> LoadedModel:
    base = teacher if settings.model is None else load_model(settings.model)
    if base is None:
        raise _no_teacher("model")
    made = make_upcycled(base.lm, settings, calibration, seed=seed)
    source = f"{base.source}, {settings.experts} experts of which {settings.active} are active"
    return LoadedModel(lm=made.lm, tokenizer=base.tokenizer, source=source)


def _rerouted(
    settings: ReroutedStudent,
    teacher: LoadedModel | None,
    calibration: Sequence[TokenBatch],
    *,
    seed: int,
) -> LoadedModel:
    if teacher is None:
        message = (
            "student.kind is rerouted, and there is no teacher whose neurons its routers are made "
            "from; it must be given. Name a model in teacher.model."
        )
        raise ConfigError(message)
    student = load_model(settings.model, revision=settings.revision)
    device = student.lm.device
    reroute(student.lm.to(teacher.lm.device), teacher.lm, calibration, settings, seed=seed)
    student.lm.to(device)
    return replace(student, source=f"{student.source}, routers from {teacher.source}")


def _fresh(settings: FreshStudent, teacher: LoadedModel | None, *, seed: int) -> LoadedModel:
    if teacher is None:
        raise _no_teacher("like")
    base = teacher.lm.config if settings.like is None else load_config(settings.like)
    language = {"vocab_size": teacher.lm.config.vocab_size}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        language[name] = getattr(teacher.lm.config, name, None)
    config = fresh_config(base, {**language, **settings.config})
    lm = fresh_model(config, seed=seed, dtype=torch.float32)
    source = f"new {config.model_type} like {settings.like or teacher.source}"
    return LoadedModel(lm=lm, tokenizer=teacher.tokenizer, source=source)


def _no_teacher(setting: str) -> ConfigError:
    return ConfigError(
        f"student.{setting} is null and there is no teacher; it must name a model then. "
        f"Set student.{setting}, or a teacher."
    )

"""From settings to a teacher on a server, proved to serve the model that is meant."""

import os
from typing import Any

import torch

from tutelage.recipes.caching import Language
from tutelage.recipes.config import Recipe
from tutelage.recipes.pair import teacher_config, teacher_tokenizer, vocabulary_size
from tutelage.teachers.remote import (
    Expected,
    Link,
    RemoteAnswer,
    RemoteTeacher,
    RemoteTeacherSettings,
    ServerApi,
    TutelageApi,
    VllmApi,
    Wanted,
)
from tutelage.text import tokenizer_hash

_WHERE_AND_HOW_OFTEN = {
    "url",
    "trust_remote_code",
    "token_env",
    "timeout_seconds",
    "retries",
    "patience_seconds",
    "max_concurrent",
    "rows_per_request",
    "remember_megabytes",
    "parity_rows",
}


def open_remote(
    recipe: Recipe, language: Language, *, device: torch.device
) -> tuple[RemoteTeacher, RemoteTeacher | None]:
    """Who answers for training rows, and who for held-out ones: whole answers, or nobody.

    Raises:
        RemoteError: the server does not answer, or serves another model.
        ConfigError: the token is missing or wrong.
    """
    settings = recipe.teacher
    assert isinstance(settings, RemoteTeacherSettings)  # noqa: S101  the caller has looked
    teacher = ask_for(recipe, language, settings.answer, device=device)
    if settings.answer != "top_k":
        return teacher, teacher
    if settings.api == "vllm":
        return teacher, None
    return teacher, ask_for(recipe, language, "hidden", device=device)


def ask_for(
    recipe: Recipe, language: Language, answer: RemoteAnswer, *, device: torch.device
) -> RemoteTeacher:
    """A teacher that answers in this form."""
    settings = recipe.teacher
    assert isinstance(settings, RemoteTeacherSettings)  # noqa: S101  the caller has looked
    config, tokenizer = teacher_config(recipe), teacher_tokenizer(recipe)
    assert config is not None  # noqa: S101  teacher.model names it
    assert tokenizer is not None  # noqa: S101
    num_entries, width = vocabulary_size(config), int(config.get_text_config().hidden_size)
    token = os.environ.get(settings.token_env) if settings.token_env else None
    link = Link(settings, token)
    api: ServerApi = VllmApi(link, settings.name_there)
    if settings.api == "tutelage":
        expected = Expected(
            name=settings.name_there,
            tokenizer=tokenizer_hash(tokenizer),
            num_entries=num_entries,
            width=width,
        )
        api = TutelageApi(link, expected)
    wanted = Wanted(
        answer=answer,
        num_real=language.num_real or num_entries,
        num_entries=settings.top_k,
        temperature=settings.temperature,
    )
    shape = (num_entries, width)
    return RemoteTeacher(api, link, settings, wanted, shape=shape, device=device)


def who_teaches_there(settings: RemoteTeacherSettings, teacher: RemoteTeacher) -> dict[str, Any]:
    """What a run must not go on without; the server itself may have moved."""
    named = settings.model_dump(mode="json", exclude=_WHERE_AND_HOW_OFTEN)
    return {**named, **{f"served.{name}": value for name, value in teacher.identity.items()}}

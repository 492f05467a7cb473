"""What a teacher on a server cannot do for a recipe, found without asking the server."""

import os
from collections.abc import Iterator

from tutelage.recipes.config import Recipe
from tutelage.recipes.rows import writes
from tutelage.recipes.teaching import contradictions_of_answers
from tutelage.teachers.remote import RemoteTeacherSettings


def contradictions_with_remote(recipe: Recipe) -> Iterator[str]:
    """One line each: the dotted path, what it is, what it must be, what to do."""
    settings = recipe.teacher
    if not isinstance(settings, RemoteTeacherSettings):
        return
    yield from of_form(settings)
    if "teacher" in writes(recipe.rollouts):
        yield (
            f"rollouts.kind is {recipe.rollouts.kind} and the teacher is to write, but "
            "teacher.kind is remote, which only reads; the student or the data must. Change "
            "rollouts.kind, or load the teacher."
        )
    yield from contradictions_of_answers(
        recipe.objective,
        recipe.move,
        "top_k" if settings.answer == "top_k" else "hidden",
        temperature=settings.temperature if settings.answer == "top_k" else 1.0,
        rest=settings.rest,
    )


def of_form(settings: RemoteTeacherSettings, where: str = "teacher") -> Iterator[str]:
    """Of the settings among themselves.

    Args:
        where: their dotted path.
    """
    if settings.api == "vllm" and settings.answer != "top_k":
        yield (
            f"{where}.answer is {settings.answer}, and {where}.api is vllm, whose server knows "
            "only log-probabilities of the likeliest entries; it must be top_k. Change it, or "
            "serve the model with `tutelage serve`."
        )
    if settings.api == "vllm" and settings.temperature != 1:
        yield (
            f"{where}.temperature is {settings.temperature:g}, and {where}.api is vllm, whose "
            "prompt_logprobs are at temperature 1 and cannot be divided again; it must be 1, and "
            "the objective's too. Leave it out, or serve the model with `tutelage serve`."
        )
    if settings.answer != "top_k":
        for name in ("top_k", "temperature", "rest"):
            value = getattr(settings, name)
            if value != RemoteTeacherSettings.model_fields[name].default:
                yield (
                    f"{where}.{name} is {value}, and {where}.answer is {settings.answer}, which "
                    "reads none; it must be left out. Remove it, or set answer: top_k."
                )
    if settings.token_env is not None and not os.environ.get(settings.token_env):
        yield (
            f"{where}.token_env is {settings.token_env}, which is not set here; it must name an "
            "environment variable that holds the server's token. Export it, or leave it out."
        )


def told_of_remote(settings: RemoteTeacherSettings) -> str:
    """What will be asked of whom, in words; nobody is asked."""
    form = {"hidden": "hidden states", "top_k": f"top {settings.top_k}", "logits": "logits"}
    how = "tutelage serve" if settings.api == "tutelage" else "vLLM"
    return (
        f"remote: {form[settings.answer]} of {settings.name_there} from {how} at {settings.url}, "
        "not asked yet"
    )

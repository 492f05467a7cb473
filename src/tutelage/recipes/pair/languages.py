"""A student and a teacher with different tokenizers: whether a recipe can do with that."""

from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from tutelage.core.errors import ConfigError
from tutelage.objectives import NoMove
from tutelage.objectives.groupwise import can_cross
from tutelage.recipes.config import LiveTeacherSettings, Recipe, ToyTeacherSettings
from tutelage.recipes.rows import writes
from tutelage.text import agree


def own_entries(
    recipe: Recipe, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
) -> int | None:
    """Entries of the student's own tokenizer where the teacher has another one.

    None where the two agree, and where no objective bridges them: then they have to agree.

    Raises:
        ConfigError: a line for each setting that does not go with two tokenizers.
    """
    if agree(student, teacher) or not can_cross(recipe.objective):
        return None
    lines = [*_contradictions(recipe)]
    if lines:
        raise ConfigError("\n".join(lines))
    return max(student.get_vocab().values()) + 1


def _contradictions(recipe: Recipe) -> Iterator[str]:
    why = "the teacher has another tokenizer than the student"
    teacher, rollouts = recipe.teacher, recipe.rollouts
    if not isinstance(teacher, LiveTeacherSettings | ToyTeacherSettings):
        kind = None if teacher is None else teacher.kind
        yield (
            f"teacher.kind is {kind}, and {why}; it must be live, for answers are kept and blended "
            "by the student's tokens. Use the teacher itself, alone."
        )
    if not isinstance(recipe.move, NoMove):
        yield (
            f"move.kind is {recipe.move.kind}, and {why}; it must be none, for there is no target "
            "over common entries that could move. Leave the move out."
        )
    if "teacher" in writes(rollouts):
        yield (
            f"rollouts.kind is {rollouts.kind} and the teacher is to write, and {why}; it must "
            "only read: the student's ids are what is trained on. Let it write a file of rows "
            "first, or let the student write."
        )
    if recipe.evaluation.written_rows:
        yield (
            f"evaluation.written_rows is {recipe.evaluation.written_rows}, and {why}; it must be "
            "0, for what is written is compared by common entries. Leave it out."
        )
    if rollouts.trained_turns == "all":
        yield (
            f"rollouts.trained_turns is all, and {why}, so that turns are marked differently; it "
            "must be last. Remove it."
        )

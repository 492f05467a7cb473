"""What contradicts itself in the settings of a student's routers."""

from collections.abc import Iterator

from tutelage.recipes.config import Recipe
from tutelage.recipes.teaching import SelfTeacherSettings
from tutelage.students import LoadedStudent, lora_of
from tutelage.training.routers import LossFreeBalance, RewardBias, RoutingSettings


def contradictions_of_routing(recipe: Recipe) -> Iterator[str]:
    """One line each: the dotted path, what it is, what it must be, what to do."""
    settings = recipe.routing
    if settings is None:
        return
    yield from _of_mode(settings)
    yield from _of_saving(settings)
    yield from _of_rewards(settings, recipe)
    if settings.trains_experts_only and lora_of(recipe.student) is not None:
        yield (
            "student.lora is given, and routing trains the experts alone, which no adapter stands "
            "beside; it must be null. Leave it out, or set routing.trained: all."
        )
    yield from _of_self_teacher(settings, recipe)
    named = settings.targets is None or settings.targets.file is not None
    if not named and not isinstance(recipe.student, LoadedStudent):
        yield (
            f"routing.targets.file is null, and student.kind is {recipe.student.kind}, which has "
            "no folder to hold it; it must name a file. Name it."
        )
    if settings.probe_every is not None and not settings.probe_rows:
        yield (
            f"routing.probe_every is {settings.probe_every} and routing.probe_rows is 0; it must "
            "be null where nothing is measured. Leave it out, or raise routing.probe_rows."
        )


def _of_mode(settings: RoutingSettings) -> Iterator[str]:
    if settings.mode == "route":
        return
    if settings.balance.kind != "none":
        yield (
            f"routing.balance.kind is {settings.balance.kind} and routing.mode is "
            f"{settings.mode}, where no router is asked; it must be none. Leave it out, or set "
            "routing.mode: route."
        )


def _of_self_teacher(settings: RoutingSettings, recipe: Recipe) -> Iterator[str]:
    """A bias is no weight: averages leave it as it was, and an adapter takes it along."""
    teacher = recipe.teacher
    if not isinstance(teacher, SelfTeacherSettings) or not settings.moves_bias:
        return
    adapter = teacher.weights == "initial" and lora_of(recipe.student) is not None
    if teacher.weights == "average" or adapter:
        yield (
            f"routing.balance.kind is {settings.balance.kind}, and teacher.weights is "
            f"{teacher.weights}{' by an adapter' if adapter else ''}, whose routers would not have "
            "the biases that go with their weights; it must be live, or initial without student."
            "lora. Change it, or balance otherwise."
        )


def _of_saving(settings: RoutingSettings) -> Iterator[str]:
    if settings.save_bias == "refuse" and settings.moves_bias:
        yield (
            f"routing.save_bias is refuse, and routing.balance.kind is {settings.balance.kind}, "
            "which moves biases; it must be code or fold. Change it, or balance otherwise."
        )
    if settings.save_bias == "fold" and isinstance(settings.balance, LossFreeBalance):
        yield (
            "routing.save_bias is fold, and routing.balance.kind is loss_free, whose bias takes "
            "part in the choice alone, which no weight can imitate; it must be code. Change it."
        )


def _of_rewards(settings: RoutingSettings, recipe: Recipe) -> Iterator[str]:
    balance = settings.balance
    if not isinstance(balance, RewardBias) or recipe.reward is not None:
        return
    if "reward_rate" in balance.model_fields_set and balance.reward_rate:
        yield (
            f"routing.balance.reward_rate is {balance.reward_rate}, and there is no reward; it "
            "must be left out, for no token has an advantage. Remove it, or set reward."
        )

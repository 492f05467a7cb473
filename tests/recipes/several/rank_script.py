"""What each process of a two-rank run from a recipe does; the test starts it twice. No test."""

import sys
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from tutelage.recipes.assemble import assemble, make_student, make_trainer
from tutelage.recipes.config import Recipe, load
from tutelage.recipes.narrator import Silence


def weights_after(recipe: Recipe, folder: Path) -> dict[str, Tensor]:
    """The student's weights after the recipe's steps, on this rank."""
    work = assemble(recipe, folder, Silence())
    student = make_student(recipe, work)
    made = make_trainer(recipe, work, student, output=folder, evaluate=None, hooks=())
    made.train()
    return {name: one.detach().clone() for name, one in student.lm.named_parameters()}


def main(folder: Path, rank: int) -> None:
    """Every recipe of the folder, into files that the test reads."""
    for path in sorted((folder / "recipes").glob("*.yaml")):
        found = weights_after(load(str(path)), folder / f"{path.stem}-2")
        save_file(found, folder / f"{path.stem}-{rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""`upcycle` and `prune` from a shell: folders that load, numbers that hold, mistakes told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.cli.conftest import FAST, Words
from tests.cli.test_bad_input import told
from tests.tiny_models import byte_tokenizer, tiny_gemma2, tiny_llama, tiny_qwen2, tiny_qwen3

FEW = ("--rows", "4")


def save(folder: Path, model: Any) -> str:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def llama(tmp_path: Path) -> str:
    return save(tmp_path / "llama", tiny_llama(num_hidden_layers=3))


def test_upcycle_writes_a_folder_that_plain_transformers_loads_and_generates_with(
    tutelage: Words, llama: str
) -> None:
    result = tutelage(
        "upcycle", "--from", llama, "--experts", "4", "--active", "2", *FEW, "-o", "x"
    )
    assert result.exit_code == 0, result.output
    for part in (
        "mixtral: 4 experts of 12 neurons, 2 active",
        "equal to the dense model",
        "MaxVio",
    ):
        assert part in result.output
    assert result.stdout.strip().splitlines()[-1] == "model    x"
    model, tokenizer = AutoModelForCausalLM.from_pretrained("x"), AutoTokenizer.from_pretrained("x")
    ids = tokenizer("Hello there", return_tensors="pt").input_ids
    asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
    assert model.generate(ids, **asked).shape[1] > ids.shape[1]
    assert "made of" in Path("x/README.md").read_text()


def test_what_the_command_measured_is_what_the_folder_does(tutelage: Words, llama: str) -> None:
    tutelage("upcycle", "--from", llama, "--experts", "4", "--active", "2", *FEW, "-o", "x")
    found = json.loads(Path("x/fidelity.json").read_text())
    assert found["largest_logit_difference"] < 1e-5
    assert abs(found["all_experts_equal_gates"]["forward_kl"]) < 1e-6
    assert found["as_routed"]["forward_kl"] > 0.01
    load = torch.tensor(found["load"])
    assert load.shape == (3, 4)
    torch.testing.assert_close(load.sum(dim=1), torch.ones(3))
    assert found["max_violation"] == pytest.approx((4 * load.amax(dim=1) - 1).tolist())

    from tutelage.models import load_model
    from tutelage.recipes import Source
    from tutelage.recipes.making.request import calibration_batches

    lm, words = load_model("x").lm, load_model("x").tokenizer
    batches = calibration_batches(Source(model="x", output=Path("x"), num_rows=4), words, lm.device)
    chosen: list[torch.Tensor] = []
    handle = lm.model.model.layers[1].mlp.gate.register_forward_hook(
        lambda _m, _a, routed: chosen.append(routed[2].flatten())
    )
    for batch in batches:
        lm.hidden(batch.student)
    handle.remove()
    counts = torch.bincount(torch.cat(chosen), minlength=4)
    torch.testing.assert_close(counts / counts.sum(), load[1])


@pytest.mark.parametrize(
    "words",
    [
        ("--split", "co_activation", "--router", "fitted"),
        ("--split", "random", "--router", "zeros", "--keep-layers", "2"),
        ("--split", "contiguous", "--router", "random", "--dtype", "bfloat16"),
        ("--split", "copies"),
        ("--split", "drop_copies", "split.redrawn=0.25", "--seed", "3"),
        ("--cluster-on", "concat", "--size-tolerance", "0.2", "split.num_starts=2"),
    ],
    ids=" ".join,
)
def test_every_way_of_making_experts_works_from_a_shell(
    tutelage: Words, llama: str, words: tuple[str, ...]
) -> None:
    common = ("--from", llama, "--experts", "4", "--active", "2", *FEW, "-o", "x")
    result = tutelage("upcycle", *common, *words)
    assert result.exit_code == 0, result.output
    equal = "equal to the dense model" in result.output
    assert equal == ("drop_copies" not in words and "bfloat16" not in words)
    AutoModelForCausalLM.from_pretrained("x")


def test_a_shared_expert_is_for_families_that_have_one(tutelage: Words, tmp_path: Path) -> None:
    qwen = save(tmp_path / "qwen", tiny_qwen2())
    shape = ("--experts", "5", "--active", "2", "--shared", "1", *FEW, "-o", "x")
    result = tutelage("upcycle", "--from", qwen, *shape)
    assert result.exit_code == 0, result.output
    assert "qwen2_moe: 5 experts of 8 neurons and 8 shared, 2 active" in result.output
    other = save(tmp_path / "other", tiny_qwen3())
    line = told(tutelage, "upcycle", "--from", other, *shape[:-1], "y", code=2)
    assert line.startswith("--shared is given, and qwen3_moe has no expert that every token uses")


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("--experts", "5"), 2, "--experts is 5, which does not divide the model's 48 neurons"),
        (("--active", "9"), 2, "--active is 9; it must be from 1 to --experts, 4. Lower it."),
        (("--gates", "softmax"), 2, "--gates is softmax, and mixtral always divides the chosen"),
        (("--keep-layers", "9"), 2, "--keep-layers is 9; it must be from 1 to 3"),
        (("--cluster-on", "up_proj", "--split", "random"), 2, "--cluster-on is given and --split"),
        (("--split", "copies", "--router", "fitted"), 2, "--router is fitted with --split copies"),
        (("split.num_start=2",), 2, "split.num_start is not a setting of clustered. Did you mean"),
        (("freeze=[x]",), 2, "freeze is given; it must be left out, for nothing is trained here"),
        (("lora={rank: 4}",), 2, "lora is given; it must be left out"),
        (("--calibration", "none.jsonl"), 3, "Data file none.jsonl is missing"),
        (("--from", "nowhere/at/all"), 4, "The model 'nowhere/at/all' is not there"),
        (("--out", "file"), 7, "--out is file, which is a file; it must be a folder."),
        (("--out", "full"), 7, "--out is full, which holds other files; it must be new"),
        (("--out", "model"), 7, "--out is model, which already holds a model; it must be a new"),
        (("--out", "file/x"), 7, "--out is file/x, which cannot be written"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    tutelage: Words, llama: str, words: tuple[str, ...], code: int, line: str
) -> None:
    Path("file").write_text("mine")
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    before = sorted(Path().rglob("*"))
    good = ("--from", llama, "--experts", "4", "--active", "2", *FEW, "--out", "new/x")
    assert told(tutelage, "upcycle", *good, *words, code=code).startswith(line)
    assert sorted(Path().rglob("*")) == before


def test_a_family_nobody_knows_is_refused_with_the_ones_that_are(
    tutelage: Words, tmp_path: Path
) -> None:
    gemma = save(tmp_path / "gemma", tiny_gemma2())
    words = ("--from", gemma, "--experts", "4", "--active", "2", "-o", "x")
    line = told(tutelage, "upcycle", *words, code=4)
    assert "'gemma2'; to become a mixture of experts it must be one of llama, mistral" in line


def test_a_model_in_the_way_is_replaced_when_asked(tutelage: Words, llama: str) -> None:
    words = ("--from", llama, "--active", "2", *FEW, "-o", "x")
    assert tutelage("upcycle", *words, "--experts", "4").exit_code == 0
    assert tutelage("upcycle", *words, "--experts", "6").exit_code == 7
    assert tutelage("upcycle", *words, "--experts", "6", "--overwrite").exit_code == 0
    assert json.loads(Path("x/config.json").read_text())["num_local_experts"] == 6


def test_prune_cuts_depth_and_width_and_says_what_stayed(tutelage: Words, llama: str) -> None:
    words = ("--keep-layers", "2", "--keep-neurons", "16", *FEW, "-o", "x")
    result = tutelage("prune", "--from", llama, *words)
    assert result.exit_code == 0, result.output
    assert "kept     layers" in result.output
    assert "16 neurons a layer" in result.output
    config = AutoModelForCausalLM.from_pretrained("x").config
    assert (config.num_hidden_layers, config.intermediate_size) == (2, 16)
    assert told(tutelage, "prune", "--from", llama, "-o", "y", code=2).startswith(
        "--keep-layers and --keep-neurons are null; one of them must be given."
    )
    line = told(tutelage, "prune", "--from", llama, "--keep-neurons", "99", "-o", "y", code=2)
    assert line.startswith("--keep-neurons is 99; it must be from 1 to 48")


def test_help_names_every_way_and_the_default(tutelage: Words) -> None:
    text = tutelage("upcycle", "--help").output
    for part in ("--from", "--experts", "co_activation", "drop_copies", "fitted", "--keep-layers"):
        assert part in text


def test_a_folder_made_by_upcycle_is_a_student_like_any_other(tutelage: Words) -> None:
    recipe = ("train", "tiny", *FAST, "baselines={}", "output=first", "student.keep_layers=4")
    assert tutelage(*recipe).exit_code == 0
    made = ("--experts", "4", "--active", "2", *FEW, "-o", "experts")
    assert tutelage("upcycle", "--from", "first/student", *made).exit_code == 0
    result = tutelage(*recipe[:-2], "output=second", "student=experts")
    assert result.exit_code == 0, result.output
    config = json.loads(Path("second/student/config.json").read_text())
    assert (config["model_type"], config["num_experts_per_tok"]) == ("mixtral", 2)


@pytest.fixture
def mixture(tutelage: Words, tmp_path: Path) -> str:
    """Experts of another width and depth than the teacher, in float32."""
    base = save(tmp_path / "base", tiny_qwen3(seed=5, hidden_size=48))
    words = ("--experts", "4", "--active", "2", "--split", "random", *FEW)
    result = tutelage("upcycle", "--from", base, *words, "-o", str(tmp_path / "mixture"))
    assert result.exit_code == 0, result.output
    return str(tmp_path / "mixture")


def test_reroute_changes_routers_and_nothing_else_and_says_what_that_did(
    tutelage: Words, llama: str, mixture: str
) -> None:
    words = ("--student", mixture, "--from", llama, "--match", "hungarian", *FEW, "-o", "x")
    result = tutelage("reroute", *words, "split.rows=concat")
    assert result.exit_code == 0, result.output
    for part in ("old routers", "new routers", "map      ", "model    x"):
        assert part in result.output
    old = AutoModelForCausalLM.from_pretrained(mixture).state_dict()
    for name, weight in AutoModelForCausalLM.from_pretrained("x").state_dict().items():
        assert torch.equal(weight, old[name]) != name.endswith("mlp.gate.weight"), name
    found = json.loads(Path("x/rerouting.json").read_text())
    assert found["before"]["forward_kl"] != found["after"]["forward_kl"]
    assert found["before"]["teacher_perplexity"] == found["after"]["teacher_perplexity"]
    assert [layer["teacher_layer"] for layer in found["layers"]] == [0, 1]
    assert all(sorted(layer["cluster_of_expert"]) == [0, 1, 2, 3] for layer in found["layers"])
    assert all(0 < layer["explained"] <= 1 for layer in found["layers"])
    assert "match: hungarian" in Path("x/README.md").read_text()


def test_the_targets_beside_a_rerouted_model_are_those_of_the_clusters_its_experts_got(
    mixture: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    from tutelage.models import load_model
    from tutelage.recipes import Source, reroute_model, student_of
    from tutelage.recipes.making.request import calibration_batches
    from tutelage.students import mean_activations

    teacher = save(tmp_path / "deep", tiny_llama(num_hidden_layers=4))
    source = Source(model=teacher, output=Path("x"), num_rows=4)
    plan = student_of("rerouted", {"match": "hungarian"}, [], model=mixture)
    layers = reroute_model(source, plan).layers
    assert [layer.origin for layer in layers] == [0, 2]
    loaded = load_model(teacher)
    rows = calibration_batches(source, loaded.tokenizer, loaded.lm.device)
    activities = mean_activations(loaded.lm, rows)
    shares = load_file("x/expert_targets.safetensors")["shares"]
    for share, layer in zip(shares, layers, strict=True):
        means = [activities[layer.origin][neurons].mean() for neurons in layer.experts]
        wanted = torch.softmax(torch.stack(means) / 0.1, dim=0)
        torch.testing.assert_close(share, wanted.float())


def test_a_rerouted_folder_is_warmed_up_towards_its_targets(
    tutelage: Words, llama: str, mixture: str
) -> None:
    assert (
        tutelage("reroute", "--student", mixture, "--from", llama, *FEW, "-o", "x").exit_code == 0
    )
    routing = "routing={mode: uniform_sample, targets: {}}"
    teacher = f"teacher={{kind: live, model: {llama}}}"
    words = ("tiny", *FAST, "baselines={}", "output=run", "student=x", routing, teacher)
    result = tutelage("train", *words)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("--student", "llama"), 4, "The model's family is 'llama', which has no router"),
        (("model=x",), 2, "model is given; it must be left out, for --student names it."),
        (("split.num_start=2",), 2, "split.num_start is not a setting"),
        (("ridge=0",), 2, "ridge is 0; it must be greater than 0."),
        (("--student", "nowhere/at/all"), 4, "The model 'nowhere/at/all' is not there"),
    ],
    ids=str,
)
def test_a_mistake_of_reroute_is_one_line(
    tutelage: Words, llama: str, mixture: str, words: tuple[str, ...], code: int, line: str
) -> None:
    words = tuple(llama if word == "llama" else word for word in words)
    good = ("--student", mixture, "--from", llama, *FEW, "-o", "x")
    assert told(tutelage, "reroute", *good, *words, code=code).startswith(line)
    assert not Path("x").exists()


def test_a_teacher_of_another_tokenizer_cannot_reroute(
    tutelage: Words, mixture: str, tmp_path: Path
) -> None:
    other = save(tmp_path / "other", tiny_llama())
    tokenizer = json.loads(Path(other, "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    first, second = list(words)[40:42]
    words[first], words[second] = words[second], words[first]
    Path(other, "tokenizer.json").write_text(json.dumps(tokenizer))
    line = told(tutelage, "reroute", "--student", mixture, "--from", other, "-o", "x", code=4)
    assert "both models must have the same tokenizer" in line

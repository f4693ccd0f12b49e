"""The command, from files to a folder that loads."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_children import MIXED, QUANTIZED, UNIFORM, child_of, pieces
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from tangram.blocks.architecture import save_architecture
from tangram.child.assemble import save_child
from tangram.child.compensation import compensate
from tangram.cli import run
from tangram.commands.assemble_child import assemble_child
from tangram.files import sha256_of, write_tensors
from tangram.library.pieces import tensor_name
from tangram.models.loading import load_model
from tangram.tables import CORPUS, write_table

SHARDS = {"0-2": (0, 1, 2), "3-4": (3, 4)}


@pytest.fixture
def arguments(llama, tmp_path, monkeypatch):
    llama.save_pretrained(tmp_path / "parent")
    save_architecture(MIXED, {}, tmp_path / "architecture.json")
    piece = pieces(llama)
    for kind, module, variants in (
        ("attention", "self_attn", ("gqa-1", "linear", "no-op")),
        ("ffn", "mlp", ("width-0.5", "linear", "no-op")),
    ):
        for variant in variants:
            for shard, layers in SHARDS.items():
                path = tmp_path / "library" / kind / variant / f"{shard}.safetensors"
                path.parent.mkdir(parents=True, exist_ok=True)
                tensors = {
                    f"model.layers.{layer}.{module}.{name}": tensor.clone().contiguous()
                    for layer in layers
                    for name, tensor in piece(kind, variant, layer).items()
                }
                write_tensors(path, tensors, {})
    options = {
        "parent": tmp_path / "parent",
        "architecture": tmp_path / "architecture.json",
        "library": tmp_path / "library",
        "shards": ",".join(SHARDS),
        "runtime": "dtype=float32",
        "folder": tmp_path / "child",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["assemble_child", *words])
    return tmp_path


def exit_status() -> int:
    with pytest.raises(SystemExit) as caught:
        run(assemble_child)
    return caught.value.code or 0


@torch.no_grad()
def test_folder_equals_the_assembly_in_memory(arguments, llama):
    assert exit_status() == 0
    tokens = torch.arange(2, 14).view(2, 6)
    loaded = load_model(arguments / "child")
    assert torch.equal(loaded(tokens).logits, child_of(llama, MIXED)(tokens).logits)
    made = json.loads((arguments / "child" / "provenance.json").read_text())
    assert made["architecture"]["layers"][1] == {"attention": "gqa-1", "ffn": "width-0.5", "coupled": False}
    assert made["model_safetensors_sha256"] == sha256_of(arguments / "child" / "model.safetensors")
    used = "library/attention/gqa-1/0-2.safetensors"
    assert made["sources"][used] == sha256_of(arguments / used)
    assert "library/attention/gqa-1/3-4.safetensors" not in made["sources"]


@torch.no_grad()
def test_a_head_is_stored_in_its_precision(arguments, llama):
    architecture = replace(MIXED, head="parent@bf16")
    save_architecture(architecture, {}, arguments / "architecture.json")
    path = "library/head/parent@bf16/00-00.safetensors"
    (arguments / path).parent.mkdir(parents=True)
    head = pieces(llama)("head", "parent@bf16", 0)["weight"]
    write_tensors(arguments / path, {"lm_head.weight": head}, {})
    assert exit_status() == 0
    stored = load_file(arguments / "child" / "model.safetensors")
    assert torch.equal(stored.pop("lm_head.weight"), head)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    config = json.loads((arguments / "child" / "config.json").read_text())
    assert (config["head_precision"], config["tie_word_embeddings"], config["dtype"]) == ("bf16", False, "float32")
    made = json.loads((arguments / "child" / "provenance.json").read_text())
    assert made["architecture"]["head"] == "parent@bf16"
    assert made["sources"][path] == sha256_of(arguments / path)
    tokens = torch.arange(2, 14).view(2, 6)
    assert torch.equal(load_model(arguments / "child")(tokens).logits, child_of(llama, architecture)(tokens).logits)


@torch.no_grad()
def test_a_child_in_int8_loads_as_it_was_assembled(arguments, llama):
    save_architecture(QUANTIZED, {}, arguments / "architecture.json")
    for layer, kind, variant in QUANTIZED.pieces():
        if not variant.endswith("@int8"):
            continue
        shard = "00-00" if kind == "head" else "0-2"
        path = arguments / "library" / kind / variant / f"{shard}.safetensors"
        path.parent.mkdir(parents=True)
        piece = pieces(llama)(kind, variant, layer)
        write_tensors(path, {tensor_name(layer, kind, name): t.contiguous() for name, t in piece.items()}, {})
    assert exit_status() == 0
    stored = load_file(arguments / "child" / "model.safetensors")
    loaded, child = load_model(arguments / "child"), child_of(llama, QUANTIZED)
    for name, tensor in child.state_dict().items():
        assert torch.equal(stored[name], tensor), name
        assert stored[name].dtype == loaded.state_dict()[name].dtype == tensor.dtype, name
    tokens = torch.arange(2, 14).view(2, 6)
    assert torch.equal(loaded(tokens).logits, child(tokens).logits)


def test_random_weights_are_the_same_entries_elsewhere(arguments, monkeypatch):
    stored = {}
    for seed in ("none", "3", "4"):
        monkeypatch.setattr(sys, "argv", [*sys.argv, "--random-weights", seed])
        assert exit_status() == 0
        stored[seed] = load_file(arguments / "child" / "model.safetensors")
    matrices = 0
    for name, own in stored["none"].items():
        shuffled, other = stored["3"][name], stored["4"][name]
        if name.startswith("model.layers.") and own.ndim == 2:
            matrices += 1
            assert torch.equal(shuffled.flatten().sort().values, own.flatten().sort().values), name
            assert not torch.equal(shuffled, own), name
            assert not torch.equal(shuffled, other), name
        else:
            assert torch.equal(shuffled, own), name
    assert matrices
    load_model(arguments / "child")


@torch.no_grad()
def test_uniform_layers_are_a_stock_checkpoint_that_says_so(arguments, llama):
    save_architecture(UNIFORM, {}, arguments / "architecture.json")
    assert exit_status() == 0
    tokens = torch.arange(2, 14).view(2, 6)
    expected = child_of(llama, UNIFORM)(tokens).logits
    again = load_model(arguments / "child")
    save_child(again, again.config, arguments / "parent", arguments / "finetuned", {})  # as finetuning writes it
    for folder in (arguments / "child", arguments / "finetuned"):
        stock = AutoModelForCausalLM.from_pretrained(folder)
        assert type(stock) is LlamaForCausalLM
        assert torch.equal(stock(tokens).logits, expected)
        assert not list(folder.glob("*.py"))
        made = json.loads((folder / "provenance.json").read_text())
        assert made["loads_with"] == "AutoModelForCausalLM.from_pretrained(folder)"


def test_layers_that_differ_say_that_code_comes_along(arguments):
    assert exit_status() == 0
    made = json.loads((arguments / "child" / "provenance.json").read_text())
    assert made["loads_with"] == "AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)"
    for trust in (None, False):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            AutoModelForCausalLM.from_pretrained(arguments / "child", trust_remote_code=trust)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("library/ffn/linear/0-2.safetensors", "0-2.safetensors cannot be read"),
        ("parent/config.json", "config.json is not a readable model config"),
        ("parent/model.safetensors", "model.safetensors cannot be read"),
        ("architecture.json", "architecture.json is not an architecture"),
    ],
)
def test_missing_file_is_told_in_one_line(arguments, capfd, missing, message):
    (arguments / missing).unlink()
    capfd.readouterr()
    assert exit_status() == 1
    told = capfd.readouterr().err
    assert told.startswith("error: ")
    assert message in told
    assert told.count("\n") == 1
    assert not (arguments / "child").exists()


def test_truncated_library_file_is_told_in_one_line(arguments, capfd):
    path = arguments / "library" / "ffn" / "linear" / "0-2.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    capfd.readouterr()
    assert exit_status() == 1
    message = capfd.readouterr().err
    assert "ffn/linear/0-2.safetensors does not match its own checksum; delete it and run again" in message
    assert message.count("\n") == 1
    assert not (arguments / "child").exists()


def test_removed_subblocks_are_compensated_on_a_text(arguments, llama, monkeypatch):
    tokens = torch.randint(2, 14, (4, 8), generator=torch.Generator().manual_seed(0))
    row = {"sequence_id": 0, "source": "test", "documents": ["0"], "document_starts": [0]}
    assert exit_status() == 0
    plain = load_file(arguments / "child" / "model.safetensors")
    write_table([{**row, "input_ids": ids.tolist()} for ids in tokens], CORPUS, arguments / "text.parquet")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--corpus", str(arguments / "text.parquet"), "--ridge", "0.3"])
    assert exit_status() == 0
    stored = load_file(arguments / "child" / "model.safetensors")
    expected = compensate(plain, MIXED, llama, tokens, 0.3)
    assert any(not torch.equal(plain[name], expected[name]) for name in plain)
    for name, tensor in expected.items():
        assert torch.allclose(stored[name], tensor, atol=1e-6), name
    made = json.loads((arguments / "child" / "provenance.json").read_text())
    assert made["sources"]["corpus"] == sha256_of(arguments / "text.parquet")

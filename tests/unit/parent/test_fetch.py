"""The parent: every source ends as one plain checkpoint with the same logits; every damage is one clear line."""

import io
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_gguf import parent_in_a_package, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.child.assemble import build_config, load_parent, save_child
from tangram.cli import run
from tangram.commands.fetch_parent import fetch_parent
from tangram.config import Parent, slice_of
from tangram.errors import TangramError
from tangram.files import sha256_of
from tangram.models.loading import load_model
from tangram.parent.fetch import fetch

FAMILIES = [
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("mistral", {"sliding_window": 8}),
    ("qwen2", {}),
    ("qwen3", {"tie_word_embeddings": True}),
    ("granite", {"logits_scaling": 4.0}),
    ("gemma2", {"sliding_window": 8}),
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
    fetch(local(source), tmp_path / "parent", "float32", {"tangram.command": "test"})
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "parent")
    assert stock.dtype == torch.float32
    assert torch.equal(logits(stock), logits(AutoModelForCausalLM.from_pretrained(source)))
    assert torch.equal(logits(stock), logits(load_model(tmp_path / "parent")))
    assert not load_model(tmp_path / "parent").training
    tokenizer, original = AutoTokenizer.from_pretrained(tmp_path / "parent"), AutoTokenizer.from_pretrained(source)
    assert tokenizer("The child, déjà 30 vu\n").input_ids == original("The child, déjà 30 vu\n").input_ids
    assert tokenizer.chat_template == original.chat_template
    provenance = json.loads((tmp_path / "parent" / "provenance.json").read_text())
    assert provenance["tangram.command"] == "test"
    assert provenance["parameters"] == sum(parameter.numel() for parameter in stock.parameters())
    assert provenance["model_safetensors_sha256"] == sha256_of(tmp_path / "parent" / "model.safetensors")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "parent"]


@pytest.mark.parametrize(("overrides", "written"), [({}, "llama"), ({"sliding_window": 8}, "mistral")])
def test_a_phi3_comes_out_with_its_matrices_split(tiny_parent, tmp_path, overrides, written):
    """Rows of the fused matrices, as transformers' own forward slices its outputs."""
    source = tiny_parent("phi3", **overrides)
    fetch(local(source), tmp_path / "parent", "float32", {})
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "parent")
    original = AutoModelForCausalLM.from_pretrained(source)
    assert (stock.config.model_type, stock.num_parameters()) == (written, original.num_parameters())
    torch.testing.assert_close(logits(stock), logits(original), rtol=1e-5, atol=1e-5)
    long = torch.arange(3, 3 + 100)[None]  # far more than the window
    torch.testing.assert_close(stock(long).logits, original(long).logits, rtol=1e-4, atol=1e-5)
    provenance = json.loads((tmp_path / "parent" / "provenance.json").read_text())
    assert provenance["weights"] == f"as published; fused matrices split, as {written} instead of phi3"


def test_a_phi3_that_rotates_a_part_of_each_head_is_refused(tiny_parent, tmp_path):
    source = tiny_parent("phi3", rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5})
    with pytest.raises(TangramError, match=r"^the parent rotates 0.5 of each head [^\n]*Phi-3-mini or Phi-4$"):
        fetch(local(source), tmp_path / "parent", "float32", {})


def test_a_sharded_bfloat16_source_becomes_one_file_in_dtype(tiny_parent, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_parent("llama"), dtype=torch.bfloat16)
    shutil.copytree(tiny_parent("llama"), tmp_path / "source", ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 2
    fetch(local(tmp_path / "source"), tmp_path / "parent", "float32", {})
    assert [path.name for path in (tmp_path / "parent").glob("*.safetensors*")] == ["model.safetensors"]
    fetched = AutoModelForCausalLM.from_pretrained(tmp_path / "parent")
    assert fetched.dtype == torch.float32
    assert torch.equal(fetched.lm_head.weight, model.lm_head.weight.float())
    next((tmp_path / "source").glob("*00002-of*")).unlink()
    with pytest.raises(TangramError, match=r"lacks model-00002-of-\d+\.safetensors"):
        load_model(tmp_path / "source")


def test_equal_sources_give_equal_bytes_and_replace_the_folder(tiny_parent, tmp_path):
    for name in ("one", "two", "one"):
        fetch(local(tiny_parent("qwen2")), tmp_path / name, "float32", {})
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert str(tiny_parent("qwen2")) not in (tmp_path / "one" / "config.json").read_text()


def q8_0(data: np.ndarray) -> np.ndarray:
    """What Q8_0 leaves of a matrix: blocks of 32, each scaled by its largest value over 127, the scale in float16."""
    blocks = data.reshape(-1, 32)
    scale = np.maximum(np.abs(blocks).max(axis=1, keepdims=True) / 127, 1e-30)  # the padding token's row is zero
    return (np.round(blocks / scale) * scale.astype(np.float16).astype(np.float32)).reshape(data.shape)


def test_a_packaged_gguf_is_dequantized_into_a_checkpoint(tiny_parent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    original = tiny_parent("llama", num_hidden_layers=2)
    write_gguf(original, tmp_path / "tiny.Q8_0.gguf", quantization=gguf.GGMLQuantizationType.Q8_0)
    parent = parent_in_a_package(tmp_path / "tiny.Q8_0.gguf", layers=2)
    fetch(parent, tmp_path / "parent", "float32", {})
    state = AutoModelForCausalLM.from_pretrained(tmp_path / "parent").state_dict()
    expected = {name: tensor.float().numpy() for name, tensor in load_file(original / "model.safetensors").items()}
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        wanted = q8_0(tensor) if tensor.ndim > 1 else tensor
        np.testing.assert_allclose(state[name].numpy(), wanted, atol=2e-3 * np.abs(tensor).max(), err_msg=name)
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path / "parent"), AutoTokenizer.from_pretrained(original)
    assert ours("The parent, été 30\n").input_ids == theirs("The parent, été 30\n").input_ids
    provenance = json.loads((tmp_path / "parent" / "provenance.json").read_text())
    assert provenance["weights"] == "dequantized from Q8_0 GGUF"
    assert provenance["source"]["archive_sha256"] == parent.source.archive_sha256


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


def _quantized_by(method: str):
    def damage(folder: Path) -> None:
        change_config(folder, quantization_config={"quant_method": method, "bits": 4})

    return damage


def _quantized_without_a_word(kind: torch.dtype):
    def damage(folder: Path) -> None:
        name = "model.layers.1.mlp.up_proj.weight"
        rewrite(folder, lambda tensors: tensors.update({name: tensors[name].to(kind)}))

    return damage


def _padding_beyond_the_vocabulary(folder: Path) -> None:
    change_config(folder, pad_token_id=328)


def _index(text: str):
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(text)

    return damage


def _weights_are_called(name: str):
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / name)

    return damage


def _tokenizer_with_code(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {
        "tokenizer_class": "EvilTokenizer",
        "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]},
    }
    path.write_text(json.dumps(settings))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass EvilTokenizer: pass\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_quantized_by("gptq"), r"is quantized \(gptq\); dequantize it first"),
        (_quantized_by("awq"), r"is quantized \(awq\)"),
        (_quantized_by("bitsandbytes"), r"is quantized \(bitsandbytes\)"),
        (_quantized_by("compressed-tensors"), r"is quantized \(compressed-tensors\)"),
        (_quantized_by("fp8"), r"is quantized \(fp8\)"),
        (_quantized_without_a_word(torch.float8_e4m3fn), r"is quantized \(type F8_E4M3\); dequantize it first"),
        (_quantized_without_a_word(torch.int8), r"is quantized \(type I8\)"),
        (_padding_beyond_the_vocabulary, "transformers cannot build this model .*Padding_idx"),
        (_index('{"weight_map": {"lm'), "index.json is not a readable index of weights"),
        (_index('{"metadata": {}}'), "index.json is not a readable index of weights"),
        (
            _index('{"weight_map": ["model-00001-of-00001.safetensors"]}'),
            "index.json is not a readable index of weights",
        ),
        (
            _weights_are_called("model-00001-of-00002.safetensors"),
            "neither model.safetensors nor model.safetensors.ind",
        ),
        (_weights_are_called("model.fp16.safetensors"), "holds model.fp16.safetensors, but neither model.safetensors"),
        (
            _weights_are_called("consolidated.safetensors"),
            "holds consolidated.safetensors, but neither model.safetensors",
        ),
        (_weights_are_called("adapter_model.safetensors"), "holds adapter_model.safetensors, but neither"),
        (_tokenizer_with_code, "has no readable tokenizer"),
        (shutil.rmtree, "does not exist"),
        (_without_config, "config.json is not a readable model config"),
        (_other_family, "'gpt2' is not supported; supported: llama, mistral, qwen2, qwen3"),
        (_foreign_code, "auto_map names 'EvilForCausalLM'"),
        (_without_weights, "has no weights; only safetensors"),
        (_pickle, r"only pickled weights \(pytorch_model.bin\)"),
        (_truncate, "model.safetensors is truncated or corrupt"),
        (_corrupt, "model.safetensors is truncated or corrupt"),
        (_missing_tensor, "lacks tensors: model.layers.1.mlp.up_proj.weight"),
        (_unknown_tensor, "does not describe: model.layers.1.mlp.extra"),
        (_other_shape, "other shapes than its config.json gives: .* and 6 more"),
        (_nan, "model.layers.2.self_attn.q_proj.weight holds NaN"),
        (_infinite, "lm_head.weight holds NaN or infinite"),
        (_vocabulary, "the tokenizer has 320 tokens, the model only 300 embeddings"),
        (_without_tokenizer, "has no readable tokenizer"),
        (_broken_tokenizer, "has no readable tokenizer"),
    ],
)
def test_damage_is_one_line_and_leaves_nothing(copy, tmp_path, monkeypatch, damage, message):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))  # nothing may ask
    damage(copy)
    with pytest.raises(TangramError, match=message) as error:
        fetch(local(copy), tmp_path / "results" / "parent", "float32", {})
    assert "\n" not in str(error.value)
    assert ".partial" not in str(error.value)
    assert list((tmp_path / "results").iterdir()) == []
    assert not (copy / "ran").exists()


def test_numbers_that_plan_the_run_must_be_the_checkpoint_s(tiny_parent, tmp_path):
    with pytest.raises(
        TangramError, match=r"says num_layers: 4, num_kv_heads: 1, but .* num_layers: 3, num_kv_heads: 2"
    ):
        fetch(local(tiny_parent("llama"), num_layers=4, num_kv_heads=1), tmp_path / "p", "float32", {})


def arguments(source: dict, output: Path) -> list[str]:
    settings = slice_of(
        Parent.model_validate({"source": source, "num_layers": 3, "num_attention_heads": 4, "num_kv_heads": 2})
    )
    return ["fetch_parent", "--settings", settings, "--folder", str(output)]


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


TEMPLATES = {"default": "{{ messages[0].content }}", "tool_use": "tool: {{ messages[0].content }}"}


def test_all_chat_templates_reach_the_child(copy, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.chat_template = TEMPLATES
    tokenizer.save_pretrained(copy)
    fetch(local(copy), tmp_path / "parent", "float32", {})
    config, state = load_parent(tmp_path / "parent")
    save_child(
        state, build_config(config, Architecture((LayerChoice(),) * 3)), tmp_path / "parent", tmp_path / "child", {}
    )
    for folder in ("parent", "child"):
        assert AutoTokenizer.from_pretrained(tmp_path / folder).chat_template == TEMPLATES
    kept = {path.relative_to(tmp_path / "parent") for path in (tmp_path / "parent").rglob("*")}
    assert kept == {path.relative_to(tmp_path / "child") for path in (tmp_path / "child").rglob("*")}


def test_the_hub_gives_all_templates_and_only_the_loaded_weights(copy, tmp_path, monkeypatch):
    """The hub's own filter on a repository that lies in a folder: no network is needed for what it leaves out."""
    from huggingface_hub.utils import filter_repo_objects

    repository = tmp_path / "repository"
    AutoModelForCausalLM.from_pretrained(copy).save_pretrained(repository, max_shard_size="20KB")
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.chat_template = TEMPLATES
    tokenizer.save_pretrained(repository)
    others = ["consolidated.safetensors", "original/consolidated.00.pth", "onnx/model.onnx", "model.fp16.safetensors"]
    others += ["pytorch_model.bin", "docs/README.md", "evil.py", "flax/model.safetensors"]
    for name in others:
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("large")
    (repository / "README.md").write_text("---\nlicense: mit\n---\n")

    def snapshot(repo: str, revision: str, allow_patterns: list[str]) -> str:
        there = [str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()]
        for name in filter_repo_objects(there, allow_patterns=allow_patterns):
            (tmp_path / "snapshot" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / name, tmp_path / "snapshot" / name)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    source = {"type": "hub", "repo": "some/model", "revision": "main"}
    sizes = {"num_layers": 3, "num_attention_heads": 4, "num_kv_heads": 2}
    fetch(Parent.model_validate({"source": source, **sizes}), tmp_path / "parent", "float32", {})
    taken = {
        str(path.relative_to(tmp_path / "snapshot")) for path in (tmp_path / "snapshot").rglob("*") if path.is_file()
    }
    assert not taken & set(others)
    assert len([name for name in taken if name.endswith(".safetensors")]) > 2
    assert json.loads((tmp_path / "parent" / "provenance.json").read_text())["license"] == "mit"
    assert AutoTokenizer.from_pretrained(tmp_path / "parent").chat_template == TEMPLATES
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "parent")),
        logits(AutoModelForCausalLM.from_pretrained(copy)),
    )


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: apache-2.0\n---\n# A model\n", "apache-2.0"),
        ("---\nlicense: 'other'  # see the link\nlicense_name: small-1\n---\n", "other"),
        ("---\ntags: [a]\n---\nlicense: mit\n", None),
        ("---\nlicense: [mit, other]\n---\n", None),
        ("---\nlicense: {a\n---\n", None),
        ("# A model\n---\nlicense: mit\n---\n", None),
        (None, None),
    ],
)
def test_the_license_of_a_local_parent_is_recorded(copy, tmp_path, card, license):
    if card is not None:
        (copy / "README.md").write_text(card)
    fetch(local(copy), tmp_path / "fetched", "float32", {})
    assert json.loads((tmp_path / "fetched" / "provenance.json").read_text()).get("license") == license


def test_the_license_of_a_gguf_is_recorded(tiny_parent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tiny_parent("llama")
    write_gguf(folder, tmp_path / "tiny.Q8_0.gguf", lambda writer: writer.add_license("mit"))
    fetch(parent_in_a_package(tmp_path / "tiny.Q8_0.gguf"), tmp_path / "fetched", "float32", {})
    assert json.loads((tmp_path / "fetched" / "provenance.json").read_text())["license"] == "mit"

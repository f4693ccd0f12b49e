"""Children as folders of other model classes, by an independent reading of their configs."""

import json
from pathlib import Path

import pytest
import torch
from export_children import ARCHITECTURES, EIGHT_BITS, child_on_disk, random_tokens
from safetensors.torch import load_file
from tiny_children import FEWER_HEADS, LAYERS, PARENT_ONLY, UNIFORM
from tiny_models import write_parent
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.commands.export_child import export_child
from tangram.errors import TangramError
from tangram.export.decilm import write_decilm
from tangram.export.hf import write_hf
from tangram.export.parts import read_checkpoint
from tangram.models.loading import load_model, load_tokenizer

EXPRESSIBLE_IN_HF = ("parent", "uniform", "no-op first", "no FFN")


@pytest.fixture(scope="module", params=["llama", "llama-biases"])
def parent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama on disk, with and without biases."""
    folder = tmp_path_factory.mktemp("parent")
    biases = {"attention_bias": True, "mlp_bias": True} if request.param == "llama-biases" else {}
    write_parent(folder, num_hidden_layers=LAYERS, tie_word_embeddings=not biases, **biases)
    return folder


def rotate(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotate ``(batch, heads, tokens, width)`` by position."""
    width, half = x.shape[-1], x.shape[-1] // 2
    frequencies = theta ** -(torch.arange(0, width, 2) / width)
    angles = torch.arange(x.shape[2])[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Reference:
    """A decoder from the definition, whose layers are described by number of KV heads and by presence."""

    def __init__(self, folder: Path):
        self.config = json.loads((folder / "config.json").read_text())
        self.state = load_file(folder / "model.safetensors")

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        mean = x.square().mean(-1, keepdim=True)
        return x * torch.rsqrt(mean + self.config["rms_norm_eps"]) * self.state[f"{name}.weight"]

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        if (scale := self.state.get(f"{name}.weight_scale")) is not None:  # 8 bits; inputs with a scale per token
            steps = x.abs().amax(-1, keepdim=True).clamp_min(1e-12) / (127 if weight.dtype == torch.int8 else 448)
            codes = (x / steps).round() if weight.dtype == torch.int8 else (x / steps).to(weight.dtype).float()
            x, weight = codes * steps, weight.float() * scale
        return functional.linear(x, weight, bias)

    def attention(self, x: torch.Tensor, name: str, kv_heads: int) -> torch.Tensor:
        width = self.config["head_dim"]
        heads = len(self.state[f"{name}.q_proj.weight"]) // width
        theta = self.config["rope_parameters"]["rope_theta"]
        q, k, v = (
            self.linear(x, f"{name}.{part}_proj").unflatten(-1, (count, width)).transpose(1, 2)
            for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (rotate(k, theta), v))
        scores = rotate(q, theta) @ k.transpose(2, 3) / width**0.5
        scores += torch.full(scores.shape[2:], -torch.inf).triu(1)
        return self.linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"{name}.o_proj")

    def ffn(self, x: torch.Tensor, name: str) -> torch.Tensor:
        gate, up = self.linear(x, f"{name}.gate_proj"), self.linear(x, f"{name}.up_proj")
        return self.linear(functional.silu(gate) * up, f"{name}.down_proj")

    def __call__(self, tokens: torch.Tensor, layers: list[tuple[int, int]]) -> torch.Tensor:
        """Return logits; a layer is its KV heads and its FFN's width, 0 for none."""
        x = self.state["model.embed_tokens.weight"][tokens]
        used = {"model.embed_tokens.weight", "model.norm.weight"}
        for index, (kv_heads, width) in enumerate(layers):
            name = f"model.layers.{index}"
            if kv_heads:
                x = x + self.attention(self.norm(x, f"{name}.input_layernorm"), f"{name}.self_attn", kv_heads)
            if width:
                assert self.state[f"{name}.mlp.up_proj.weight"].shape[0] == width
                x = x + self.ffn(self.norm(x, f"{name}.post_attention_layernorm"), f"{name}.mlp")
            used |= {n for n in self.state if n.startswith(f"{name}.")}
        tied = self.config["tie_word_embeddings"]
        head = {name for name in self.state if name.startswith("lm_head.")}
        assert self.state.keys() - used == head
        assert tied == (not head)
        return self.linear(self.norm(x, "model.norm"), "model.embed_tokens" if tied else "lm_head")


def decilm_layers(folder: Path) -> list[tuple[int, int]]:
    """Return the layers of a DeciLM folder as vLLM reads them, through the folder's own config class."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert config.architectures == ["DeciLMForCausalLM"]
    assert len(config.block_configs) == config.num_hidden_layers
    heads, layers = config.num_attention_heads, []
    for block in config.block_configs:
        assert not hasattr(block.ffn, "ffn_mult"), "vLLM would round it up to a multiple of 256"
        kv_heads = 0 if block.attention.no_op else heads // block.attention.n_heads_in_group
        layers.append((kv_heads, 0 if block.ffn.no_op else block.ffn.intermediate_size))
    return layers


def hf_layers(folder: Path) -> list[tuple[int, int]]:
    """Return the layers of a folder in transformers' schema."""
    config = json.loads((folder / "config.json").read_text())
    layers = []
    for index in range(config["num_hidden_layers"]):
        entry = config.get("per_layer_config", {}).get(f"{index:02d}", {})
        skipped = entry.get("skip", [])
        kv_heads = entry.get("num_key_value_heads", config["num_key_value_heads"])
        width = entry.get("intermediate_size", config["intermediate_size"])
        layers.append(("attention" not in skipped and kv_heads, "mlp" not in skipped and width))
    return layers


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "constants" not in name])
@torch.no_grad()
def test_decilm_computes_the_childs_logits(parent: Path, tmp_path: Path, name: str) -> None:
    folder = child_on_disk(parent, tmp_path / "child", ARCHITECTURES[name])
    write_decilm(read_checkpoint(folder), tmp_path / "decilm", {})
    layers = decilm_layers(tmp_path / "decilm")
    assert layers[0][0], "vLLM's class needs an attention in layer 0"
    tokens = random_tokens(2, 30)
    logits, expected = Reference(tmp_path / "decilm")(tokens, layers), load_model(folder)(tokens).logits
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", EIGHT_BITS)
@pytest.mark.parametrize("precision", ["int8", "fp8"])
@torch.no_grad()
def test_decilm_computes_in_eight_bits(parent: Path, tmp_path: Path, name: str, precision: str) -> None:
    layers = [(layer.attention, layer.ffn) for layer in EIGHT_BITS[name].layers]
    choices = [LayerChoice(*(variant.replace("int8", precision) for variant in pair)) for pair in layers]
    architecture = Architecture(tuple(choices), f"parent@{precision}")
    folder = child_on_disk(parent, tmp_path / "child", architecture)
    write_decilm(read_checkpoint(folder), tmp_path / "decilm", {})
    tokens = random_tokens(2, 30)
    logits = Reference(tmp_path / "decilm")(tokens, decilm_layers(tmp_path / "decilm"))
    expected = load_model(folder)(tokens).logits
    assert (logits - expected).norm() < 0.02 * expected.norm()  # a number between two codes may become either
    config, state = (
        json.loads((tmp_path / "decilm" / "config.json").read_text()),
        load_file(tmp_path / "decilm/model.safetensors"),
    )
    (group,) = config["quantization_config"]["config_groups"].values()
    assert {f"{target}.weight" for target in group["targets"]} == {n for n, t in state.items() if t.itemsize == 1}


@pytest.mark.parametrize("name", EXPRESSIBLE_IN_HF)
@torch.no_grad()
def test_hf_computes_the_childs_logits(parent: Path, tmp_path: Path, name: str) -> None:
    folder = child_on_disk(parent, tmp_path / "child", ARCHITECTURES[name])
    write_hf(read_checkpoint(folder), tmp_path / "hf", {})
    tokens = random_tokens(2, 30)
    logits = Reference(tmp_path / "hf")(tokens, hf_layers(tmp_path / "hf"))
    expected = load_model(folder)(tokens).logits
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()


@torch.no_grad()
def test_hf_computes_fewer_query_heads(parent: Path, tmp_path: Path) -> None:
    layers = [LayerChoice(choice.attention, choice.ffn.replace("linear", "no-op")) for choice in FEWER_HEADS.layers]
    folder = child_on_disk(parent, tmp_path / "child", Architecture(tuple(layers)))
    write_hf(read_checkpoint(folder), tmp_path / "hf", {})
    config, tokens = json.loads((tmp_path / "hf" / "config.json").read_text()), random_tokens(2, 30)
    heads = [config["per_layer_config"].get(f"{i:02d}", {}).get("num_attention_heads", 4) for i in range(LAYERS)]
    assert heads == [2, 1, 4, 4, 2]
    logits, expected = Reference(tmp_path / "hf")(tokens, hf_layers(tmp_path / "hf")), load_model(folder)(tokens).logits
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()


@torch.no_grad()
def test_a_uniform_child_loads_with_stock_transformers(parent: Path, tmp_path: Path) -> None:
    folder = child_on_disk(parent, tmp_path / "child", UNIFORM)
    write_hf(read_checkpoint(folder), tmp_path / "hf", {})
    stock, tokens = AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), random_tokens(2, 30)
    assert torch.equal(stock(tokens).logits, load_model(folder)(tokens).logits)


def test_tokenizer_and_provenance_travel_and_code_does_not(parent: Path, tmp_path: Path) -> None:
    child = read_checkpoint(child_on_disk(parent, tmp_path / "child", ARCHITECTURES["no-op first"]))
    for name, write in (("decilm", write_decilm), ("hf", write_hf)):
        write(child, tmp_path / name, {"tangram.code": "0123"})
        assert json.loads((tmp_path / name / "provenance.json").read_text())["tangram.code"] == "0123"
        code = sorted(path.name for path in (tmp_path / name).glob("*.py"))
        assert code == (["configuration_decilm.py"] if name == "decilm" else [])
        text = "<|im_start|>Il était une fois"
        tokenizer = load_tokenizer(tmp_path / "child")
        stored = json.loads((tmp_path / name / "tokenizer.json").read_text())
        assert stored == json.loads((tmp_path / "child" / "tokenizer.json").read_text())
        assert tokenizer(text)["input_ids"]


@pytest.mark.parametrize(
    ("name", "architecture", "message"),
    [
        ("hf", ARCHITECTURES["mixed"], "hf: attention of layer 2 is a linear map"),
        ("hf", ARCHITECTURES["constants"], "hf: attention of layer 0 is a vector"),
        ("decilm", ARCHITECTURES["constants"], "decilm: attention of layer 0 is a vector"),
        ("hf", Architecture((LayerChoice("parent@int8"), *PARENT_ONLY.layers[1:])), "precision int8"),
        ("decilm", Architecture((LayerChoice("parent@q8_0"), *PARENT_ONLY.layers[1:])), "precision q8_0"),
        ("decilm", FEWER_HEADS, "attention of layer 0 has 2 query heads"),
        ("decilm", Architecture((LayerChoice("lowrank-5"), *PARENT_ONLY.layers[1:])), "lowrank-5.*no format"),
    ],
)
def test_what_a_folder_cannot_express_is_one_line(
    tmp_path: Path, name: str, architecture: Architecture, message: str
) -> None:
    write_parent(tmp_path / "parent", num_hidden_layers=LAYERS)
    folder = child_on_disk(tmp_path / "parent", tmp_path / "child", architecture)
    with pytest.raises(TangramError, match=message) as caught:
        {"hf": write_hf, "decilm": write_decilm}[name](read_checkpoint(folder), tmp_path / name, {})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("family", ["granite", "olmo2", "smollm3", "gemma2", "gemma3_text"])
def test_families_that_no_format_expresses_are_one_line(tmp_path: Path, family: str) -> None:
    write_parent(tmp_path / family, family)
    with pytest.raises(TangramError, match=rf"is of family {family}, which none of the formats gguf, [^\n]*$"):
        read_checkpoint(tmp_path / family)


def test_the_command_writes_into_the_folder_that_it_is_given(parent: Path, tmp_path: Path) -> None:
    for name in ("decilm", "hf"):
        export_child(str(parent), name, str(tmp_path / name))
        assert (tmp_path / name / "config.json").is_file()
        assert not (tmp_path / name / name).exists()


def test_smoothing_that_vllm_cannot_express_is_one_line(tmp_path: Path) -> None:
    write_parent(tmp_path / "parent", num_hidden_layers=LAYERS)
    folder = child_on_disk(tmp_path / "parent", tmp_path / "child", EIGHT_BITS["int8"], shared=False)
    with pytest.raises(TangramError, match="attention of layer 0 has smoothing factors that differ") as caught:
        write_decilm(read_checkpoint(folder), tmp_path / "decilm", {})
    assert "\n" not in str(caught.value)

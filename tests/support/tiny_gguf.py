"""GGUF files written from tiny checkpoints, as llama.cpp's converter writes them, and packages that hold them."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from safetensors.torch import load_file

from tangram.config import Parent
from tangram.files import sha256_of

FOLDER = "tiny_model"  # inside the package


def write_gguf(
    folder: Path,
    path: Path,
    more: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> None:
    """Write a checkpoint as a GGUF; ``more`` adds keys and tensors."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())["model"]
    family = "llama" if config["model_type"] == "mistral" else config["model_type"]
    writer = gguf.GGUFWriter(path, family)
    writer.add_name("tiny")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_rope_dimension_count(head_dim)
    if family == "qwen3":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
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
    more(writer)
    rename = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, family.upper()), config["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        stored = tensor.float().numpy()
        if family == "llama" and ("q_proj" in name or "k_proj" in name):  # llama.cpp stores rotary pairs interleaved
            heads = config["num_attention_heads"] if "q_proj" in name else config["num_key_value_heads"]
            pairs = stored.reshape(heads, 2, stored.shape[0] // heads // 2, *stored.shape[1:]).swapaxes(1, 2)
            stored = pairs.reshape(stored.shape)
        stem, _, leaf = name.rpartition(".")
        kind = quantization if stored.ndim > 1 else gguf.GGMLQuantizationType.F32
        stored = gguf.quantize(np.ascontiguousarray(stored), kind)
        writer.add_tensor(f"{rename.get_name(stem)}.{leaf}", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def parent_in_a_package(path: Path, layers: int = 3) -> Parent:
    """Put a GGUF into a wheel among the downloads of the working directory, and return it as a parent."""
    Path(".downloads").mkdir(exist_ok=True)
    archive = Path(".downloads/tiny_model-1.0-py3-none-any.whl")
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.write(path, f"{FOLDER}/{path.name}")
    source = {
        "type": "gguf-package",
        "package": "tiny-model==1.0",
        "archive_sha256": sha256_of(archive),
        "member": f"{FOLDER}/{path.name}",
    }
    sizes = {"num_layers": layers, "num_attention_heads": 4, "num_kv_heads": 2}
    return Parent.model_validate({"source": source, **sizes})

"""Fetch the parent from the hub, a local folder or a GGUF in a package, and write it as a stock checkpoint folder."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from tangram.archives import fetch_archive, read_members
from tangram.config import GgufParent, HubParent, LocalParent, Parent
from tangram.errors import TangramError
from tangram.files import atomic_path, sha256_of, write_text
from tangram.models.by_layer import rebuild_buffers
from tangram.models.families import CHILD_PREFIX, Shape
from tangram.models.loading import WEIGHTS, load_model, load_tokenizer, quieten, shard_names
from tangram.parent.fidelity import check_fidelity, comparison_tokens, stock_logits
from tangram.parent.gguf_metadata import Metadata
from tangram.parent.unfused import unfused

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Config, index of the weights, tokenizer, chat templates, and the card with the license. The weights are downloaded
# afterwards, by the index.
HUB_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "README.md"]
LICENSE_KEYS = ("license", "license_name", "license_link")  # of a card's front matter


def _check_numbers(parent: Parent, shape: Shape) -> None:
    """Raise unless the config's numbers, which determine the jobs, equal the checkpoint's."""
    actual = {
        "num_layers": shape.num_layers,
        "num_attention_heads": shape.heads,
        "num_kv_heads": shape.kv_heads,
    }
    wrong = [key for key, value in actual.items() if getattr(parent, key) != value]
    if wrong:
        configured = ", ".join(f"{key}: {getattr(parent, key)}" for key in wrong)
        right = ", ".join(f"{key}: {actual[key]}" for key in wrong)
        raise TangramError(f"config.parent says {configured}, but the checkpoint has others; write {right}")


def _snapshot(source: HubParent) -> Path:
    """Return the local copy of a hub repository: config, tokenizer and the weights that transformers would load."""
    from huggingface_hub import snapshot_download

    def download(patterns: list[str]) -> Path:
        return Path(snapshot_download(source.repo, revision=source.revision, allow_patterns=patterns))

    try:
        index = download(HUB_FILES) / f"{WEIGHTS}.index.json"
        return download([*HUB_FILES, *(shard_names(index) if index.is_file() else [WEIGHTS])])
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise TangramError(
            f"cannot download {source.repo} at {source.revision} from the hub ({type(error).__name__}: {reason}); "
            "check name, revision, access and network, or give a local folder as parent.source"
        ) from error


def _load_gguf(source: GgufParent) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str | None]:
    """Dequantize a GGUF to float32; return a model that can be saved, its tokenizer, and its license if it says one.

    Raises:
        TangramError: the file cannot be read, or has metadata that a transformers config cannot express.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.gguf")
        for _, data in read_members(fetch_archive(source), [source.member]):
            path.write_bytes(data)
        try:
            metadata = Metadata(path)
            config = metadata.apply_to(AutoConfig.from_pretrained(folder, gguf_file=path.name))
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=path.name, trust_remote_code=False)
            quantized = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=path.name, config=copy.deepcopy(config), dtype=torch.float32
            )
            state = quantized.state_dict()
            metadata.check_tensors(state)
        except (ValueError, OSError, RuntimeError, TangramError) as error:
            reason = " ".join(str(error).split())
            raise TangramError(f"{source.package}: {source.member} cannot be taken as the parent: {reason}") from error
    if len(templates := metadata.chat_templates) > 1:
        tokenizer.chat_template = templates
    model = type(quantized).from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    model.generation_config = quantized.generation_config
    return model, tokenizer, metadata.license


def _license_in(folder: Path) -> dict[str, str]:
    """Return the license in a model card's front matter, as entries of `provenance.json`; nothing without one.

    The hub's license ``other`` has a name and a link of its own.
    """
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    try:
        entries = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        return {}
    entries = entries if isinstance(entries, dict) else {}
    return {key: str(entries[key]) for key in LICENSE_KEYS if isinstance(entries.get(key), str)}


def _quantization(member: str) -> str:
    """Return the quantization in a GGUF's name, e.g. ``Q4_1``."""
    return Path(member).name.removesuffix(".gguf").rpartition(".")[2]


def _settle_head(model: Any) -> None:
    """Tie embedding and head if they are equal; else correct a config that says they are tied."""
    head, embedding = model.lm_head, model.model.embed_tokens
    if not model.config.tie_word_embeddings or head.weight is embedding.weight:
        return
    if torch.equal(head.weight.data, embedding.weight.data):
        head.weight = embedding.weight
    else:
        model.config.tie_word_embeddings = False


def _check_tokenizer(folder: Path, original: PreTrainedTokenizerBase) -> None:
    """Raise unless a folder's tokenizer encodes test texts as the original does, and has its chat templates."""
    saved = load_tokenizer(folder)
    texts = (
        "",
        " a  b\n\n\tc",
        "Il était 1234567 fois… 日本語 🙂",
        "def f(x):\n    return x",
        *original.all_special_tokens,
    )
    differing = [text for text in texts if saved(text)["input_ids"] != original(text)["input_ids"]]
    if differing or saved.chat_template != original.chat_template:
        change = f"encodes {differing[0]!r} differently" if differing else "has other chat templates"
        raise TangramError(
            f"the parent's tokenizer {change} once it is saved; this parent's tokenizer is not supported"
        )


def fetch(parent: Parent, output: str | Path, dtype: str, provenance: Mapping[str, str]) -> None:
    """Write the parent as a plain checkpoint folder, atomically: one safetensors file, tokenizer, provenance.json.

    Raises:
        TangramError: the source is unavailable, damaged, of an unknown family or in conflict with the config, the
            folder cannot be written, or the pipeline would compute other logits than the source (`fidelity`).
    """
    from safetensors import SafetensorError

    source = parent.source
    with atomic_path(output) as folder:
        folder.mkdir()
        quieten()
        if isinstance(source, GgufParent):
            model, tokenizer, license = _load_gguf(source)
            origin = {"weights": f"dequantized from {_quantization(source.member)} GGUF"}
            if license:
                origin["license"] = license
        else:
            path = Path(source.path) if isinstance(source, LocalParent) else _snapshot(source)
            model, tokenizer = load_model(path, dtype), load_tokenizer(path)
            if model.config.model_type.startswith(CHILD_PREFIX):
                raise TangramError(f"{path} is a heterogeneous child, which cannot be a parent; use a stock checkpoint")
            origin = {"weights": "as published", **_license_in(path)}
            if isinstance(source, HubParent):
                origin["commit"] = path.name  # the snapshot's folder is named after the commit
        _check_numbers(parent, Shape.of(model.config))
        _settle_head(model)
        source_type = model.config.model_type
        model.config.__dict__.pop("auto_map", None)  # the code that it names is not copied
        parameters = model.num_parameters()
        for weight in model.parameters():  # but no buffers: rotary frequencies keep their precision
            weight.data = weight.data.to(getattr(torch, dtype))
        model.config.dtype = getattr(torch, dtype)
        written = unfused(model)
        if (written_type := written.config.model_type) != source_type:
            origin["weights"] += f"; fused matrices split, as {written_type} instead of {source_type}"
        config = written.config
        try:
            written.save_pretrained(folder, max_shard_size="100TB")
            tokenizer.save_pretrained(folder)
        except SafetensorError as error:
            raise OSError(28, str(error), folder) from error
        (folder / WEIGHTS).chmod((folder / "config.json").stat().st_mode)  # safetensors writes files for the owner only
        _check_tokenizer(folder, tokenizer)
        tokens = comparison_tokens(config, parameters)
        del written
        model = model.float()
        rebuild_buffers(model, "cpu")  # the factor of Gemma's embedding was rounded to the dtype
        reference = stock_logits(model, tokens)
        del model  # so that at most one model is in memory
        check_fidelity(folder, config, tokens, reference)
        facts = origin | {
            "source": source.model_dump(),
            "dtype": dtype,
            "parameters": parameters,
            "model_safetensors_sha256": sha256_of(folder / WEIGHTS),
        }
        write_text(folder / "provenance.json", json.dumps({**provenance, **facts}, indent=2, sort_keys=True) + "\n")

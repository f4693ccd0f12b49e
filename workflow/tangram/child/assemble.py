"""Assemble a child from the parent's weights and pieces of the library, and write it as a checkpoint.

Assembly selects tensors by name and computes no weights; `child.compensation` does.
`tangram.models.loading.load_model` loads the result.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tangram.blocks.architecture import Architecture, heterogeneous_config, stock_overrides
from tangram.blocks.base import HEAD, Variant
from tangram.blocks.registry import block_class
from tangram.errors import TangramError
from tangram.files import atomic_path, sha256_of, write_tensors
from tangram.library.pieces import Library, State, tensor_name
from tangram.models import (
    configuration_tangram,
    layouts,
    modeling_tangram,
    operators,
    packed,
    packed_attention,
    quantized,
    window,
)
from tangram.models.families import CHILD_PREFIX, Shape, read_config
from tangram.models.layouts import Place, layout_among
from tangram.models.loading import attention_of, check_parent, is_finite, model_class

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

CODE = {  # copied into a child that stock code cannot run, under the names with which the files import each other
    "modeling_tangram.py": modeling_tangram,
    "configuration_tangram.py": configuration_tangram,
    "layouts.py": layouts,
    "operators.py": operators,
    "packed.py": packed,
    "packed_attention.py": packed_attention,
    "quantized.py": quantized,
    "window.py": window,
}
PRECISION_DTYPES = (torch.bfloat16, *(layer.dtype for layer in quantized.SCALED.values()))
WEIGHTS_FILE = "model.safetensors"
# A child gets the parent's other files: tokenizer, chat templates and generation config.
NOT_COPIED = ("*.safetensors*", "*.bin*", "config.json", "provenance.json", "README*")


def load_parent(folder: str | Path) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """Return a parent's config and tensors, without a model.

    Raises:
        TangramError: the checkpoint is missing, damaged or of an unknown family.
    """
    config = read_config(folder)
    check_parent(Path(folder))
    return config, load_weights(folder)


def load_weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """Return a checkpoint's tensors.

    Raises:
        TangramError: the file cannot be read.
    """
    return read_tensors(Path(folder) / WEIGHTS_FILE)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a model's file.

    Raises:
        TangramError: the file cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise TangramError(f"{path} cannot be read ({error}); make the checkpoint again") from error


def build_config(parent_config: PreTrainedConfig, architecture: Architecture) -> PreTrainedConfig:
    """Return a child's config: a stock config if all layers are alike, else one with `auto_map`.

    Raises:
        TangramError: the architecture has another number of layers than the parent.
    """
    shape = Shape.of(parent_config)
    if len(architecture.layers) != shape.num_layers:
        raise TangramError(
            f"the architecture has {len(architecture.layers)} layers, but the parent has {shape.num_layers}; "
            "solve again for this parent"
        )
    if (stock := stock_overrides(architecture, shape)) is not None:
        return type(parent_config).from_dict({**parent_config.to_dict(), **stock})
    config = heterogeneous_config(parent_config, architecture)
    model = model_class(config.model_type)
    config.architectures = [model.__name__]
    config.auto_map = {
        "AutoConfig": f"configuration_tangram.{model.config_class.__name__}",
        "AutoModelForCausalLM": f"modeling_tangram.{model.__name__}",
    }
    return config


def assemble_state(parent_state: State, architecture: Architecture, library: Library) -> dict[str, torch.Tensor]:
    """Return a child's tensors: the parent's, with the architecture's pieces instead of its subblocks.

    Args:
        parent_state: the parent's tensors by their names in its checkpoint.
        architecture: the child's variants.
        library: source of the pieces and coupled pairs; not called for variant ``'parent'``.

    Raises:
        TangramError: a piece holds NaN or infinite values.
    """
    state = dict(parent_state)
    for layer, kind, variant, stored in architecture.stored():
        prefixes = [tensor_name(layer, kind, ""), *_dropped_norms(parent_state, layer, kind, variant)]
        state = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(prefixes))}
        for name, tensor in library(kind, stored, layer).items():
            if not is_finite(tensor):
                raise TangramError(
                    f"library: {kind} {stored} of layer {layer} holds NaN or infinite values in '{name}'; "
                    "delete this variant's library files and run again"
                )
            state[tensor_name(layer, kind, name)] = tensor
    return state


def _dropped_norms(state: State, layer: int, kind: str, variant: str) -> list[str]:
    """Return the prefixes of the parent's norms that a variant does without: of a linear map, the one after it."""
    if kind == HEAD:
        return []
    prefix = f"model.layers.{layer}."
    names = {name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)}
    place: Place = getattr(layout_among(names), kind)
    block = block_class(variant)
    linear = block.part in ("linear", "unbiased")
    return [f"{prefix}{norm}." for norm in place.norms if not block.normed or (linear and norm == place.after)]


def shuffle_matrices(state: State, seed: int) -> dict[str, torch.Tensor]:
    """Return a child's tensors with the entries of every matrix of its layers in a random order.

    So all matrices are random, and have the distribution of the old ones in every precision (Puzzle, table 15). Norms,
    embedding and head stay.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = dict(state)
    for name in sorted(state):
        if name.startswith("model.layers.") and state[name].ndim > 1:
            order = torch.randperm(state[name].numel(), generator=generator)
            shuffled[name] = state[name].flatten()[order].view_as(state[name])
    return shuffled


def cast_state(state: State, architecture: Architecture, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return a child's tensors in a dtype, except those of pieces with a precision, whose types are their precision."""
    pieces = architecture.pieces()
    fixed = tuple(tensor_name(layer, kind, "") for layer, kind, variant in pieces if Variant.parse(variant).precision)
    return {name: tensor if name.startswith(fixed) else tensor.to(dtype) for name, tensor in state.items()}


def dtype_of(state: State) -> torch.dtype:
    """Return the dtype of a child's computation; matrices with a precision have types of their own."""
    return state["model.embed_tokens.weight"].dtype


def check_fits(config: PreTrainedConfig, shapes: Mapping[str, torch.Size], where: str | Path) -> dict[str, torch.dtype]:
    """Check that tensors have the names and shapes of a child's config.

    Returns:
        The types of the tensors whose precision the config fixes, such as int8.

    Args:
        config: the child's config.
        shapes: shape of every tensor; a tied head may be missing.
        where: the beginning of the message.

    Raises:
        TangramError: a tensor is missing, superfluous, or of another shape.
    """
    with torch.device("meta"):
        tensors = model_class(config.model_type)(config).state_dict()
    expected = {name: tensor.shape for name, tensor in tensors.items()}
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    for name in sorted((expected.keys() | shapes.keys()) - tied):
        actual, required = (tuple(by_name[name]) if name in by_name else "nothing" for by_name in (shapes, expected))
        if actual != required:
            raise TangramError(
                f"{where}: '{name}' is {actual}, but the child's config asks for {required}; "
                "weights and config are not of one parent: delete both and run again"
            )
    return {name: t.dtype for name, t in tensors.items() if t.dtype in PRECISION_DTYPES}


def build_child(config: PreTrainedConfig, state: State) -> Any:
    """Return a child in memory, in evaluation mode; it shares no memory with ``state``.

    Raises:
        TangramError: ``state`` does not fit the config.
    """
    check_fits(config, {name: tensor.shape for name, tensor in state.items()}, "child")
    return model_class(config.model_type).from_pretrained(
        None,
        config=copy.deepcopy(config),
        state_dict={name: tensor.clone() for name, tensor in state.items()},
        dtype=dtype_of(state),
        attn_implementation=attention_of(config),
    )


def code_of(config: PreTrainedConfig) -> dict[str, str]:
    """Return the code files of a child by file name, including operators that other packages register.

    The child's `operators.py` imports those operators from copies in the child's folder, so their packages need not be
    installed where the child is loaded. Transformers caches one model class per config class, and identifies a config
    class by the folder's name and the code of its file: an added comment there distinguishes children with different
    operators.
    """
    files = {name: Path(str(module.__file__)).read_text(encoding="utf-8") for name, module in CODE.items()}
    entries = {entry for layer in config.per_layer_config for entry in getattr(layer, "structured", [])}
    factories = {operators.family_of(entry): operators.factory_of(entry) for entry in sorted(entries)}
    for family, factory in factories.items():
        if factory.__module__ == operators.__name__:
            continue
        name = factory.__module__.replace(".", "_")
        source = Path(str(sys.modules[factory.__module__].__file__)).read_text(encoding="utf-8")
        files[f"{name}.py"] = source.replace(f"from {operators.__name__} import", "from .operators import")
        files["operators.py"] += f"\n\nfrom .{name} import {factory.__name__}\n\n"
        files["operators.py"] += f'OPERATORS["{family}"] = {factory.__name__}\n'
        files["configuration_tangram.py"] += f"# Operators of {factory.__module__}: {family}\n"
    return files


def trained_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return a model's tensors in memory of the CPU, as a checkpoint holds them: without a tied head."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def save_child(
    weights: nn.Module | State,
    config: PreTrainedConfig,
    parent: str | Path,
    output: str | Path,
    provenance: Mapping[str, str],
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write a child as a Hugging Face checkpoint that loads where this package is not installed.

    Entry `loads_with` of `provenance.json` is the call that loads it: a child whose layers are all alike is a stock
    checkpoint.

    Args:
        weights: a model, or a child's tensors.
        config: the child's config; the dtype of the embedding replaces its dtype.
        parent: checkpoint folder from which tokenizer, chat templates and generation config are copied.
        output: folder to write or to replace.
        provenance: flat metadata, for the weights' file and `provenance.json`.
        record: further entries of `provenance.json`, such as the architecture and the sources.

    Raises:
        TangramError: the weights do not fit the config, or the folder cannot be written.
    """
    state = dict(weights.state_dict() if isinstance(weights, nn.Module) else weights)
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    types = check_fits(config, {name: tensor.shape for name, tensor in state.items()}, output)
    state = {name: tensor.to(types.get(name, tensor.dtype)) for name, tensor in state.items()}
    config = copy.deepcopy(config)
    config.dtype = dtype_of(state)
    with atomic_path(output) as folder:
        folder.mkdir()
        if Path(parent).is_dir():
            ignored = shutil.ignore_patterns(*NOT_COPIED)
            shutil.copytree(parent, folder, ignore=ignored, copy_function=shutil.copyfile, dirs_exist_ok=True)
        stock = not config.model_type.startswith(CHILD_PREFIX)
        for name, text in {} if stock else code_of(config).items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "config.json").write_text(config.to_json_string(), encoding="utf-8")
        write_tensors(folder / WEIGHTS_FILE, state, provenance)
        record_of_child = {
            **provenance,
            **(record or {}),
            "loads_with": f"AutoModelForCausalLM.from_pretrained(folder{'' if stock else ', trust_remote_code=True'})",
            "model_safetensors_sha256": sha256_of(folder / WEIGHTS_FILE),
        }
        text = json.dumps(record_of_child, indent=2, sort_keys=True) + "\n"
        (folder / "provenance.json").write_text(text, encoding="utf-8")

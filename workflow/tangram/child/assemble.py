"""Assemble a child from the parent's weights and pieces of the library, and write it as a checkpoint of its own.

Assembly only moves tensors by name: no weights are made for it. `tangram.models.loading.load_model` loads the result.
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
from tangram.blocks.base import NO_OP, PARENT
from tangram.errors import TangramError
from tangram.files import atomic_path, sha256_of, write_tensors
from tangram.library.pieces import Library, State, tensor_name
from tangram.models import configuration_tangram, modeling_tangram, operators
from tangram.models.families import CHILD_PREFIX, SUBBLOCK_NAMES, Shape, read_config
from tangram.models.loading import check_parent, model_class

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CODE = {  # what travels with a child that stock code cannot run, by the names that the files import each other by
    "modeling_tangram.py": modeling_tangram,
    "configuration_tangram.py": configuration_tangram,
    "operators.py": operators,
}
WEIGHTS_FILE = "model.safetensors"
# All else in a parent's folder is its tokenizer's, its chat templates and how it generates: a child's as well.
OF_THE_PARENT = ("*.safetensors*", "*.bin*", "config.json", "provenance.json", "README*")


def load_parent(folder: str | Path) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """Return a parent's config and tensors, without a model.

    Raises:
        TangramError: the checkpoint is missing, damaged or of an unknown family.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, path = read_config(folder), Path(folder) / WEIGHTS_FILE
    check_parent(Path(folder))
    try:
        return config, load_file(path)
    except (OSError, SafetensorError) as error:
        raise TangramError(f"{path} cannot be read ({error}); fetch the parent again") from error


def build_config(parent_config: PreTrainedConfig, architecture: Architecture) -> PreTrainedConfig:
    """Return a child's config: a stock one where all layers are alike, else with the place of the model's code.

    Raises:
        TangramError: the architecture has another number of layers than the parent.
    """
    shape = Shape.of(parent_config)
    if len(architecture) != shape.num_layers:
        raise TangramError(
            f"the architecture has {len(architecture)} layers, but the parent has {shape.num_layers}; "
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
    """Return a child's tensors: the parent's, with the chosen pieces in place of subblocks.

    Args:
        parent_state: the parent's tensors by their names in its checkpoint.
        architecture: the choices.
        library: where pieces come from; not asked for the parent's own.

    Raises:
        TangramError: a piece holds NaN or infinite values.
    """
    state = dict(parent_state)
    for layer, choice in enumerate(architecture):
        for kind, (_, norm) in SUBBLOCK_NAMES.items():
            variant = getattr(choice, kind)
            if variant == PARENT:
                continue
            dropped = [tensor_name(layer, kind, "")]
            if variant == NO_OP:
                dropped.append(f"model.layers.{layer}.{norm}.")
            state = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(dropped))}
            for name, tensor in library(kind, variant, layer).items():
                if not tensor.isfinite().all():
                    raise TangramError(
                        f"library: {kind} {variant} of layer {layer} holds NaN or infinite values in '{name}'; "
                        "delete this variant's library files and run again"
                    )
                state[tensor_name(layer, kind, name)] = tensor
    return state


def check_fits(config: PreTrainedConfig, shapes: Mapping[str, torch.Size], where: str | Path) -> None:
    """Check that tensors are what a child's config asks for, by name and shape.

    Args:
        config: the child's.
        shapes: shape of every tensor; a tied head may be left out.
        where: what the message names.

    Raises:
        TangramError: a tensor is missing, superfluous, or of another shape.
    """
    with torch.device("meta"):
        expected = {name: t.shape for name, t in model_class(config.model_type)(config).state_dict().items()}
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    for name in sorted((expected.keys() | shapes.keys()) - tied):
        found, wanted = (tuple(known[name]) if name in known else "nothing" for known in (shapes, expected))
        if found != wanted:
            raise TangramError(
                f"{where}: '{name}' is {found}, but the child's config asks for {wanted}; "
                "weights and config are not of one parent: delete what was built and run again"
            )


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
        dtype=next(iter(state.values())).dtype,
    )


def code_of(config: PreTrainedConfig) -> dict[str, str]:
    """Return the code that travels with a child, by file name; with it, the operators of other packages that it needs.

    Those are added to the child's `operators.py`, as nothing of those packages need be installed where it is loaded.
    Transformers keeps one model class per config class and process, and tells config classes by the folder's name and
    the config's code: a line in that tells children apart whose operators differ.
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


def save_child(
    weights: nn.Module | State,
    config: PreTrainedConfig,
    parent: str | Path,
    output: str | Path,
    provenance: Mapping[str, str],
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write a child as a Hugging Face checkpoint that loads where this package is not installed.

    `provenance.json` says how (`loads_with`): a child whose layers are all alike is a plain stock checkpoint.

    Args:
        weights: a model, or a child's tensors.
        config: the child's config; its dtype becomes that of the weights.
        parent: checkpoint folder whose tokenizer, chat templates and generation config the child keeps.
        output: folder to write, or to replace, as a whole.
        provenance: flat metadata, for the weights' file and `provenance.json`.
        record: what else `provenance.json` says, such as the architecture and the sources.

    Raises:
        TangramError: the weights do not fit the config, or the folder cannot be written.
    """
    state = dict(weights.state_dict() if isinstance(weights, nn.Module) else weights)
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    check_fits(config, {name: tensor.shape for name, tensor in state.items()}, output)
    config = copy.deepcopy(config)
    config.dtype = next(iter(state.values())).dtype
    with atomic_path(output) as folder:
        folder.mkdir()
        if Path(parent).is_dir():
            kept = shutil.ignore_patterns(*OF_THE_PARENT)
            shutil.copytree(parent, folder, ignore=kept, copy_function=shutil.copyfile, dirs_exist_ok=True)
        stock = not config.model_type.startswith(CHILD_PREFIX)
        for name, text in {} if stock else code_of(config).items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "config.json").write_text(config.to_json_string(), encoding="utf-8")
        write_tensors(folder / WEIGHTS_FILE, state, provenance)
        made = {
            **provenance,
            **(record or {}),
            "loads_with": f"AutoModelForCausalLM.from_pretrained(folder{'' if stock else ', trust_remote_code=True'})",
            "model_safetensors_sha256": sha256_of(folder / WEIGHTS_FILE),
        }
        (folder / "provenance.json").write_text(json.dumps(made, indent=2, sort_keys=True) + "\n", encoding="utf-8")

"""An architecture as JSON and as transformers' per-layer overrides."""

import pytest
from tiny_children import CONFIGS, MIXED

from tangram.blocks.architecture import (
    Architecture,
    LayerChoice,
    from_json,
    heterogeneous_config,
    load_architecture,
    per_layer_config,
    save_architecture,
    stock_overrides,
    variants_in,
)
from tangram.errors import TangramError
from tangram.models.families import Shape

QUANTIZED = Architecture(
    (
        LayerChoice("parent@int8", "width-0.5@bf16"),
        LayerChoice("gqa-1", "parent@int8"),
        *(LayerChoice("no-op", "linear"),) * 3,
    ),
    "parent@bf16",
)


COUPLED = Architecture(
    (LayerChoice("gqa-1", "width-0.5", coupled=True), LayerChoice("gqa-1", "width-0.5")), "parent@bf16"
)


@pytest.mark.parametrize("architecture", [MIXED, QUANTIZED, COUPLED])
def test_json_round_trip_gives_equal_bytes(tmp_path, architecture):
    save_architecture(architecture, {}, tmp_path / "a.json")
    assert load_architecture(tmp_path / "a.json") == architecture
    assert variants_in(tmp_path / "a.json") == {variant for _, _, variant in architecture.pieces()}
    save_architecture(load_architecture(tmp_path / "a.json"), {}, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_only_layers_that_differ_have_overrides():
    assert per_layer_config(MIXED, Shape.of(CONFIGS["llama"])) == {
        0: {"skip": ["attention"]},
        1: {"num_key_value_heads": 1, "intermediate_size": 24},
        2: {"linear": ["attention", "mlp"]},
        3: {"skip": ["mlp"]},
    }


def test_pieces_are_all_subblocks_in_order_and_the_head():
    architecture = Architecture((LayerChoice("a", "b"), LayerChoice("c", "d")), "e")
    pieces = [(0, "attention", "a"), (0, "ffn", "b"), (1, "attention", "c"), (1, "ffn", "d"), (0, "head", "e")]
    assert list(architecture.pieces()) == pieces
    assert Architecture.of(architecture.choices) == architecture


def test_coupled_layers_have_the_pairs_weights_and_score():
    layers = (*COUPLED.layers, LayerChoice("no-op", "parent"))
    architecture = Architecture(layers, COUPLED.head)
    assert list(architecture.stored()) == [
        (0, "attention", "gqa-1", "gqa-1+width-0.5"),
        (0, "ffn", "width-0.5", "gqa-1+width-0.5"),
        (1, "attention", "gqa-1", "gqa-1"),
        (1, "ffn", "width-0.5", "width-0.5"),
        (2, "attention", "no-op", "no-op"),
        (0, "head", "parent@bf16", "parent@bf16"),
    ]
    assert list(architecture.scored()) == [
        (0, "block", "gqa-1+width-0.5"),
        *((1, "attention", "gqa-1"), (1, "ffn", "width-0.5"), (2, "attention", "no-op"), (0, "head", "parent@bf16")),
    ]
    assert LayerChoice.parse(COUPLED.layers[0].pair) == COUPLED.layers[0] != COUPLED.layers[1]
    assert from_json({"layers": [{"attention": "gqa-1", "ffn": "width-0.5"}], "head": "parent"}).layers == layers[1:2]
    same = per_layer_config(architecture, Shape.of(CONFIGS["llama"]))
    assert same[0] == same[1] == {"num_key_value_heads": 1, "intermediate_size": 24}


def test_precisions_of_both_subblocks_are_one_list():
    assert per_layer_config(QUANTIZED, Shape.of(CONFIGS["llama"])) == {
        0: {"intermediate_size": 24, "precision": ["attention=int8", "mlp=bf16"]},
        1: {"num_key_value_heads": 1, "precision": ["mlp=int8"]},
        **{layer: {"skip": ["attention"], "linear": ["mlp"]} for layer in (2, 3, 4)},
    }


def test_only_a_heads_variant_unties_the_embedding():
    tied = CONFIGS["qwen2"]
    config = heterogeneous_config(tied, QUANTIZED)
    assert (config.head_precision, config.tie_word_embeddings) == ("bf16", False)
    precisions = [layer.precision for layer in config.per_layer_config]
    assert precisions == [["attention=int8", "mlp=bf16"], ["mlp=int8"], [], [], []]
    config = heterogeneous_config(tied, Architecture(QUANTIZED.layers))
    assert (config.head_precision, config.tie_word_embeddings) == (None, True)


@pytest.mark.parametrize(
    ("choice", "head", "overrides"),
    [
        (LayerChoice("gqa-1", "width-0.5"), "parent", {"num_key_value_heads": 1, "intermediate_size": 24}),
        (LayerChoice("gqa-1", "width-0.5"), "parent@int8", None),
        (LayerChoice("parent@bf16", "parent"), "parent", None),
    ],
)
def test_no_precision_and_no_other_head_is_stock(choice, head, overrides):
    assert stock_overrides(Architecture((choice,) * 5, head), Shape.of(CONFIGS["llama"])) == overrides


WITHOUT_HEAD = '{"layers": [{"attention": "parent", "ffn": "parent"}]}'


@pytest.mark.parametrize(
    "text", [None, "{", '{"layer": []}', '{"layers": [{"attention": 1, "mlp": 2}]}', "[1]", WITHOUT_HEAD]
)
def test_what_is_no_architecture_is_told_in_one_line(tmp_path, text):
    path = tmp_path / "architecture.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TangramError, match=r"is not an architecture .*; delete it and run again$") as caught:
        load_architecture(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(TangramError, match=r"holds no architecture .*; delete it and run again$"):
        variants_in(path)

"""An architecture as JSON and as transformers' per-layer overrides."""

import pytest
from tiny_children import CONFIGS, MIXED

from tangram.blocks.architecture import load_architecture, per_layer_config, save_architecture
from tangram.errors import TangramError
from tangram.models.families import Shape


def test_json_round_trip_gives_equal_bytes(tmp_path):
    save_architecture(MIXED, {}, tmp_path / "a.json")
    assert load_architecture(tmp_path / "a.json") == MIXED
    save_architecture(load_architecture(tmp_path / "a.json"), {}, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_only_layers_that_differ_have_overrides():
    assert per_layer_config(MIXED, Shape.of(CONFIGS["llama"])) == {
        0: {"skip": ["attention"]},
        1: {"num_key_value_heads": 1, "intermediate_size": 24},
        2: {"linear": ["attention", "mlp"]},
        3: {"skip": ["mlp"]},
    }


@pytest.mark.parametrize("text", [None, "{", '{"layer": []}', '{"layers": [{"attention": 1, "mlp": 2}]}', "[1]"])
def test_what_is_no_architecture_is_told_in_one_line(tmp_path, text):
    path = tmp_path / "architecture.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TangramError, match="is not an architecture") as caught:
        load_architecture(path)
    assert "\n" not in str(caught.value)

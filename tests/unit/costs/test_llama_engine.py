import numpy as np
import pytest

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.config import Costs, Scenario
from tangram.costs import llama_engine
from tangram.costs.llama_engine import added, calibration_architectures, measure, measure_whole, slope
from tangram.costs.llama_layers import Layer, Part, pack, stubs
from tangram.costs.llama_stack import layers_of, parts_of, sizes_of, write
from tangram.errors import TangramError
from tangram.llama_cpp import Model, find
from tangram.models.families import shape_of

needs_llama_cpp = pytest.mark.skipif(find() is None, reason="no package with llama.cpp is installed")
CHAT = {"chat": Scenario(prefill=8, generate=6, batch_sizes=(2,))}
COSTS = Costs(repeats=3, max_repeats=3, stack_megabytes=1)


@pytest.fixture(autouse=True)
def short_stacks(monkeypatch):
    monkeypatch.setattr(llama_engine, "COPIES", {"prefill": (2, 2), "decode": (2, 4)})


@pytest.fixture
def shape(parents):
    return shape_of(parents["mistral"])


def test_a_slope_is_the_cost_of_one_copy_for_any_intercept():
    layer = (Layer(None, Part("ffn", 64)),)
    seconds = {file: 5.0 + 0.25 * len(file.layers) for file in slope(layer, 9)}
    assert sum(weight * seconds[file] for file, weight in slope(layer, 9).items()) == pytest.approx(0.25)
    assert added((1.0, slope(layer, 9)), (-1.0, slope(layer, 9))) == {}


@pytest.mark.parametrize(
    ("pieces", "missing"),
    [
        ([("attention", "parent"), ("ffn", "width-0.5")], 0),
        ([("attention", "gqa-1"), ("ffn", "no-op")], 1),
        ([("attention", "gqa-1"), ("ffn", "no-op"), ("attention", "no-op"), ("ffn", "parent")], 0),
        ([("attention", "linear"), ("ffn", "parent")], 1),
        ([("attention", "parent"), ("ffn", "linear")], 2),
        ([("attention", "no-op"), ("ffn", "no-op")], 0),
    ],
)
def test_subblocks_without_a_partner_need_a_stub(shape, pieces, missing):
    parts = [part for kind, variant in pieces for part in parts_of(kind, variant, shape)]
    assert stubs(parts) == missing
    assert [part for layer in pack(parts) for part in (layer.mixer, layer.ffn) if part] == parts


def test_a_block_that_llama_cpp_lacks_is_refused(shape):
    with pytest.raises(TangramError, match=r"llama.cpp has no ffn 'lowrank-4'.*engine: llama.cpp"):
        parts_of("ffn", "lowrank-4", shape)


@needs_llama_cpp
def test_sizes_are_those_of_the_file(shape, tmp_path):
    import gguf

    architecture = Architecture((LayerChoice("linear", "width-0.5"), LayerChoice("no-op", "linear"), LayerChoice()))
    layers = layers_of(architecture, shape)
    write(tmp_path / "model.gguf", layers, shape, vocabulary=50, positions=32)
    tensors = gguf.GGUFReader(tmp_path / "model.gguf").tensors
    of_layers = [tensor for tensor in tensors if tensor.name.startswith("blk.")]
    sizes = sizes_of(layers, shape)
    assert sizes.parameters == sum(int(tensor.n_elements) for tensor in of_layers)
    assert sizes.parameter_bytes == sum(int(tensor.n_bytes) for tensor in of_layers)
    assert sizes.kv_bytes_per_token == 2 * shape.kv_heads * shape.head_dim * 2  # of one attention, in F16
    with Model(tmp_path / "model.gguf") as model:
        logits = model.logits([[1, 2, 3]])
    assert logits.shape == (1, 3, 50)
    assert np.isfinite(logits).all()


@needs_llama_cpp
@pytest.mark.parametrize(
    ("kind", "variant"),
    [
        ("attention", "gqa-1"),
        ("attention", "no-op"),
        ("ffn", "linear"),
        ("ffn", "no-op"),
        ("head", "parent"),
        ("model", "parent"),
    ],
)
def test_every_kind_is_timed_in_both_phases(parents, kind, variant):
    rows = measure(parents["mistral"], kind, variant, COSTS, CHAT, "cpu", "float32")
    assert [(row["kind"], row["variant"], row["engine"]) for row in rows] == [(kind, variant, "llama.cpp")] * 2
    assert [row["phase"] for row in rows] == ["prefill", "decode"]
    assert all(row["parent_seconds"] > 0 for row in rows)
    assert all((row["seconds"] > 0) or variant == "no-op" or row["seconds"] >= 0 for row in rows)
    if (kind, variant) == ("attention", "no-op"):
        assert [row["seconds"] for row in rows] == [0, 0]


@needs_llama_cpp
def test_whole_models_are_timed_side_by_side(parents):
    architectures = calibration_architectures({"attention": ["gqa-1"], "ffn": ["no-op"]}, num_layers=2)
    seconds = measure_whole(parents["mistral"], architectures, COSTS, CHAT, "cpu", "float32")
    assert seconds.keys() == {("chat", "prefill", 2), ("chat", "decode", 2)}
    assert all(models.keys() == architectures.keys() for models in seconds.values())
    assert all(value > 0 for models in seconds.values() for value in models.values())


def test_every_uniform_type_is_calibrated():
    variants = ["parent@bf16", "parent@int8"]
    library = {"attention": variants, "ffn": ["no-op", *variants], "head": variants[:1]}
    architectures = calibration_architectures(library, num_layers=3)
    assert list(architectures)[4:] == ["parent@bf16"]
    assert architectures["parent@bf16"] == Architecture((LayerChoice(*variants[:1] * 2),) * 3, "parent@bf16")

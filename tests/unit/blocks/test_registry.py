"""Variants and families: one type for a name, one class for all that is known of it, and nobody else who knows it."""

import ast
import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from replaced import replaced

import tangram
from tangram.activations import StreamedActivations
from tangram.blocks import (
    NO_OP,
    PARENT,
    REGISTRY,
    Block,
    Variant,
    block_class,
    get_block,
    grammar,
    register,
    registry,
)
from tangram.blocks.architecture import Architecture, LayerChoice, per_layer_config
from tangram.blocks.calibration import Calibration
from tangram.blocks.registry import modules_of_variants
from tangram.config import BlockDistillation, limits, parse
from tangram.errors import TangramError
from tangram.library.distill import LayerDistillation
from tangram.models.families import Shape, decoder_layers
from tangram.models.loading import load_model
from tangram.provenance import modules_of
from tangram.report.data import strength
from tangram.report.style import short, variant_colors
from tangram.tools.estimate import stages
from tangram.tools.rates import RATES

ROOT = Path(tangram.__file__).parent
SHAPE = Shape("llama", 3, 32, 4, 2, 16, 64, 328, False)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("width-.50", Variant("width", 0.5)),
        ("gqa-01", Variant("gqa", 1)),
        ("no-op", Variant("no-op")),
        ("width-0.00001", Variant("width", 0.00001)),
        ("lowrank-64@int8", Variant("lowrank", 64, "int8")),
        ("parent@bf16", Variant("parent", None, "bf16")),
    ],
)
def test_a_name_is_taken_apart_and_put_together(name: str, variant: Variant) -> None:
    assert Variant.parse(name) == variant
    assert Variant.parse(str(variant)) == variant


@pytest.mark.parametrize("name", ["", "Width-0.5", "width-", "0.5", "width-1e3", "width-0.5-0.5", "gqa-" + "9" * 5000])
def test_other_text_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"variant's name|digits"):
        Variant.parse(name)


def test_two_spellings_are_one_variant() -> None:
    assert get_block("ffn", "width-.50", SHAPE) == get_block("ffn", "width-0.5", SHAPE)
    assert str(get_block("ffn", "width-.50", SHAPE).variant) == "width-0.5"


@pytest.mark.parametrize("name", ["gqa-0.5", "width-1", "width-0", "lowrank", "monarch-4", "nothing-4", "gqa-1@"])
def test_sizes_that_a_family_does_not_take(name: str) -> None:
    with pytest.raises(TangramError, match="is not a variant of"):
        get_block("ffn" if name.startswith("width") else "attention", name, SHAPE)


@pytest.mark.parametrize(
    ("kind", "forms"),
    [("head", ["parent@bf16", "parent@int8"]), ("attention", ["gqa-K", "linear", "no-op"])],
)
def test_forms_are_those_of_a_kind(kind: str, forms: list[str]) -> None:
    assert [form for form in grammar.forms(kind) if form in forms] == forms
    assert "parent" not in grammar.forms(kind)


@pytest.mark.parametrize(
    ("name", "precision", "source"),
    [
        ("width-0.5", None, None),
        ("width-0.5@int8", "int8", "width-0.5"),
        ("gqa-1@bf16", "bf16", "gqa-1"),
        ("parent@int8", "int8", None),
    ],
)
def test_a_name_tells_its_precision_and_its_source(name: str, precision: str | None, source: str | None) -> None:
    assert grammar.precision_of(name) == precision
    assert grammar.source_of(name) == source


@pytest.mark.parametrize(
    ("name", "complete"),
    [("parent", "parent@int8"), ("width-0.5", "width-0.5@int8"), ("no-op", None), ("width-0.5@bf16", None)],
)
def test_a_precision_is_added_where_the_block_allows_it(name: str, complete: str | None) -> None:
    assert grammar.with_precision(name, "int8") == complete


@pytest.mark.parametrize(
    ("precision", "device", "dtype", "message"),
    [
        ("bf16", "cuda", "bfloat16", "bf16 is the run's dtype"),
        ("fp8", "cpu", "float32", "fp8 runs on cuda only, not on device: cpu"),
    ],
)
def test_a_precision_must_run_and_differ(precision: str, device: str, dtype: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"here: {message}"):
        grammar.check_runs(precision, "here", device, dtype)
    grammar.check_runs(precision, "here", "cuda", "float32")


def test_every_family_says_all_that_others_ask() -> None:
    assert {PARENT, NO_OP} < registry().keys()
    sizes: dict[Any, Any] = {int: 1, float: 0.5, None: None}
    for family, block in registry().items():
        assert Variant.parse(block.form.replace("-K", "-1").replace("-R", "-1")).family == family
        for kind in block.kinds:
            made = get_block(kind, Variant(family, sizes[block.sizes]), SHAPE)
            assert 0 <= made.relative_size() <= 1
            assert made.too_large() is None
            assert isinstance(made.overrides(), dict)
            assert bool(short(str(made.variant))) == (family not in (PARENT, NO_OP))


@pytest.mark.parametrize(("kind", "name"), [("attention", "gqa-1"), ("ffn", "width-0.5"), ("ffn", "lowrank-8")])
def test_relative_sizes_are_those_of_the_weights(tiny_parent: Any, kind: str, name: str) -> None:
    model = load_model(tiny_parent("llama"), "float32", "cpu").requires_grad_(False)
    shape = Shape.of(model.config)
    parent = decoder_layers(model)[0]
    subblock = parent.self_attn if kind == "attention" else parent.mlp
    inputs = torch.randn(64, shape.hidden)
    outputs = torch.randn(64, shape.hidden)
    block = get_block(kind, name, shape)
    weights = block.initialize(subblock, Calibration(inputs, outputs, torch.ones(64), 1e-3))
    count = sum(tensor.numel() for tensor in weights.values())
    assert sum(tensor.numel() for tensor in subblock.parameters()) == shape.parameters(kind)
    assert block.relative_size() == pytest.approx(count / shape.parameters(kind))


class FirstChannels(Block):
    """`first-K`: the first K channels of an FFN; a family that nothing else in the package knows."""

    family, kinds, form, sizes = "first", ("ffn",), "first-K", int
    label, hue = "f{size}", ("#102030", "#405060")

    def overrides(self) -> dict[str, Any]:
        return {"intermediate_size": int(self.size)}

    def initialize(self, parent: Any, calibration: Calibration) -> dict[str, torch.Tensor]:
        count = int(self.size)
        return {
            name: tensor[:, :count] if name.startswith("down_proj") else tensor[:count]
            for name, tensor in parent.state_dict().items()
        }

    def relative_size(self) -> float:
        return self.size / self.shape.intermediate

    def too_large(self) -> str | None:
        return None if self.size < self.shape.intermediate else " is all of the FFN"


@pytest.fixture
def first() -> Iterator[None]:
    registry()
    register(FirstChannels)
    yield
    del REGISTRY["first"]


@pytest.mark.usefixtures("first")
def test_a_new_family_passes_the_configs_checks(tiny_config: dict) -> None:
    def library(name: str) -> dict:
        config = copy.deepcopy(tiny_config)
        return config | {"library": config["library"] | {"ffn": ["no-op", name]}}

    config = parse(library("first-032"))
    assert config.library.ffn == (NO_OP, "first-32")
    with pytest.raises(TangramError, match="'frist-32' is not a known variant; did you mean 'first-32'"):
        parse(library("frist-32"))
    widths = {"hidden_size": 32, "intermediate_size": 64}
    limits.check_variant("library.ffn[1]", "ffn", "first-32", config, widths)
    with pytest.raises(TangramError, match=r"config\.library\.ffn\[1\]: 'first-64' is all of the FFN"):
        limits.check_variant("library.ffn[1]", "ffn", "first-64", config, widths)


@pytest.mark.usefixtures("first")
def test_a_new_family_is_planned_by_its_size(tiny_config: dict) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 328}
    config = copy.deepcopy(tiny_config)
    config["parent"]["sizes"] = sizes
    config["library"] |= {"attention": [], "ffn": ["first-32", "first-16"]}
    config["targets"] = {name: {**t, "compare_layers_dropped": False} for name, t in config["targets"].items()}
    half, quarter = (s for s in stages(parse(config), RATES["cpu"]) if s.rule == "distill_blocks")
    assert half.disk_bytes == 2 * quarter.disk_bytes == 3 * 4 * 3 * 32 * 32


@pytest.mark.usefixtures("first")
def test_a_new_family_has_its_look_and_place_in_the_report() -> None:
    assert short("first-32") == "f32"
    assert variant_colors(["first-32"])["first-32"] == "#405060"
    names = ["no-op", "linear", "first-16", "first-32", "width-0.5", "parent"]
    assert sorted(names, key=strength) == ["parent", "width-0.5", "first-32", "first-16", "linear", "no-op"]


@pytest.mark.usefixtures("first")
def test_a_new_family_is_trained_and_assembled(tiny_parent: Any) -> None:
    model = load_model(tiny_parent("llama"), "float32", "cpu").requires_grad_(False)
    tokens = torch.randint(0, model.config.vocab_size, (8, 16), generator=torch.Generator().manual_seed(0))
    states = StreamedActivations(model, tokens, 4)
    problem = LayerDistillation(model, 1, states.hidden(1), states.hidden(2), BlockDistillation(epochs=1))
    piece = problem.distill("ffn", "first-32", seed=0)
    assert piece.curve
    layer = replaced(model, 1, "ffn", "first-32", piece.weights)
    assert layer.mlp.up_proj.out_features == 32
    assert per_layer_config(Architecture((LayerChoice("parent", "first-32"),)), SHAPE) == {0: {"intermediate_size": 32}}


@pytest.mark.usefixtures("first")
def test_a_new_familys_module_is_part_of_its_code_hash() -> None:
    modules = modules_of_variants(["first-32"])
    assert FirstChannels.__module__ in modules
    assert FirstChannels.__module__ in modules_of("tangram.commands.score_blocks", *modules)
    assert "tangram.blocks.width" not in modules_of("tangram.commands.score_blocks", *modules)


@pytest.mark.usefixtures("first")
def test_a_family_is_there_once_and_complete() -> None:
    register(FirstChannels)  # the same one again
    with pytest.raises(ValueError, match=r"'first' is already the family of .*FirstChannels"):
        register(type("Other", (FirstChannels,), {}))
    with pytest.raises(ValueError, match="Nameless does not define family, kinds, form, label, hue"):
        register(type("Nameless", (Block,), {}))
    with pytest.raises(ValueError, match="'a-1' cannot begin a variant's name"):
        register(type("Odd", (FirstChannels,), {"family": "a-1"}))


def test_another_package_registers_by_an_entry_point(tmp_path: Path) -> None:
    (tmp_path / "extension.py").write_text(
        "from tangram.blocks import register\n"
        "from tangram.blocks.width import NarrowFFN\n"
        "register(type('Thin', (NarrowFFN,), {'family': 'thin', 'form': 'thin-R', '__module__': __name__}))\n"
    )
    about = tmp_path / "extension-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: extension\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[tangram.blocks]\nthin = extension\n")
    program = (
        "import sys; from tangram.blocks.grammar import check, forms; from tangram.blocks.registry import *;"
        "check('ffn', 'thin-0.5', 'here', 4, 2); assert 'thin-R' in forms('ffn');"
        "assert 'extension' in modules_of_variants(['thin-0.5']); assert 'torch' not in sys.modules"
    )
    path = f"{tmp_path}:{ROOT.parent}"
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": path})


def test_checking_a_config_imports_no_torch() -> None:
    program = "import sys, tangram.config.limits; from tangram.blocks import registry; registry(); "
    subprocess.run([sys.executable, "-c", program + "assert 'torch' not in sys.modules"], check=True)


# A child's own format names operators, and travels without this package; studies register families of their own.
READS_OTHER_NAMES = ("blocks/", "models/", "studies/")
OTHER_WORDS = {PARENT, "linear", "constant"}  # models in tables; scaled rotary embeddings; learning rates
TAKES_APART = {"partition", "rpartition", "split", "removeprefix", "removesuffix", "startswith", "fullmatch", "match"}


def knows_of_families(tree: ast.AST) -> Iterator[int]:
    """Yield the lines on which code tells a family by its name, or takes a variant's name apart."""
    families = registry().keys() - OTHER_WORDS
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.rstrip("-") in families:
            yield node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in TAKES_APART:
            text = ast.unparse(node)
            if "variant" in text.lower() and "Variant.parse" not in text:
                yield node.lineno


@pytest.mark.parametrize(
    "code",
    [
        "x = variant.partition('-')",
        "y = {'gqa': 1}",
        "z = name.startswith('width-')",
        "w = variant == 'no-op'",
        "v = re.fullmatch('.*', variant)",
    ],
)
def test_code_that_knows_of_families_is_noticed(code: str) -> None:
    assert list(knows_of_families(ast.parse(code))) == [1]


def test_no_other_module_knows_of_families() -> None:
    modules = {path.relative_to(ROOT).as_posix(): path for path in ROOT.rglob("*.py")}
    lines = [
        f"{name}:{line}"
        for name, path in modules.items()
        if not name.startswith(READS_OTHER_NAMES)
        for line in knows_of_families(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert lines == []


def test_an_unknown_family_is_told_with_the_known_ones() -> None:
    known = "parent, gqa, gqa-mean, window, heads, width, butterfly"
    with pytest.raises(TangramError, match=f"'nothing-4' is not a variant of any family: {known}"):
        block_class("nothing-4")

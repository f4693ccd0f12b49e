import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.config import Costs, Scenario
from tangram.costs import torch_engine
from tangram.costs.memory import kv_bytes_per_token, parameter_bytes, parameters
from tangram.costs.passes import Passes, advance, fastest_kernels, fork, random_ids
from tangram.costs.torch_engine import measure, measure_whole, only, proportional, random_model
from tangram.models.families import decoder_layers
from tangram.models.packed import PackedLinear, pack
from tangram.tables import COSTS, read_table, write_table

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "granite", "olmo2", "smollm3", "gemma2", "gemma3_text")
NORMS_OF_SUBBLOCK = {"gemma2": 2, "gemma3_text": 2}  # else one
VARIANTS = {
    "attention": ("parent", "gqa-1", "lowrank-4", "ntk-4", "linear", "constant", "no-op"),
    "ffn": ("parent", "width-0.5", "lowrank-4", "ntk-4", "linear", "constant", "no-op"),
}
MIXED = Architecture(
    (LayerChoice("gqa-1", "width-0.5"), LayerChoice("no-op", "linear"), LayerChoice("parent", "no-op"))
)

MIXED_PRECISIONS = {
    variant: Architecture((LayerChoice(variant, variant), *MIXED.layers[1:]), variant)
    for variant in ("parent@bf16", "parent@int8")
}


def expected_parameters(family, kind, variant):
    """Count a subblock and its norms by hand: hidden 32, 4 heads, 2 KV heads, FFN 64."""
    hidden, heads, head_dim = 32, 4, {"llama": 12, "qwen3": 16, "gemma3_text": 16}.get(family, 8)
    norms = NORMS_OF_SUBBLOCK.get(family, 1) * hidden
    if variant == "no-op":
        return 0
    if variant == "constant":
        return hidden
    if variant == "linear":  # without a norm after it
        return (0 if family == "olmo2" else hidden) + hidden * hidden + hidden
    rank = 4 if variant in ("lowrank-4", "ntk-4") else None

    def matrix(columns, rows):
        return columns * rows if rank is None else rank * (columns + rows)

    if kind == "ffn":
        width = 32 if variant == "width-0.5" else 64
        biases = 2 * width + hidden if family == "llama" else 0
        return norms + 3 * matrix(hidden, width) + biases
    kv_heads = 1 if variant == "gqa-1" else 2
    q, kv = heads * head_dim, kv_heads * head_dim
    biases = {"llama": q + 2 * kv + hidden, "qwen2": q + 2 * kv}.get(family, 0)
    head_norms = {"qwen3": 2 * head_dim, "gemma3_text": 2 * head_dim, "olmo2": q + kv}.get(family, 0)
    return norms + 2 * matrix(hidden, q) + 2 * matrix(hidden, kv) + biases + head_norms


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_subblock_parameters_are_counted_exactly(parents, family, kind, dtype, size):
    for variant in VARIANTS[kind]:
        model = random_model(parents[family], Architecture((only(kind, variant),)), dtype, "cpu", vocabulary=8)
        counted = parameter_bytes(decoder_layers(model)[0])
        assert counted == size * expected_parameters(family, kind, variant), variant
        assert parameters(decoder_layers(model)[0]) == expected_parameters(family, kind, variant), variant


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_add_up_to_the_stock_model(parents, family):
    alone = [Architecture((only(kind, "parent"),)) for kind in VARIANTS]
    parts = [random_model(parents[family], architecture, "float32", "cpu", 8) for architecture in alone]
    fixed = random_model(parents[family], Architecture(()), "float32", "cpu")
    stock = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(parents[family]))
    layer = sum(parameter_bytes(decoder_layers(part)[0]) for part in parts)
    assert 3 * layer + parameter_bytes(fixed) == 4 * stock.num_parameters()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "olmo2", "gemma2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kv_bytes_are_those_of_the_cache(parents, family, dtype):
    model = random_model(parents[family], MIXED, dtype, "cpu")
    _, cache = advance(model, random_ids(model, batch=2, length=5))
    tensors = [t for layer in cache.layers if layer.keys is not None for t in (layer.keys, layer.values)]
    assert sum(t.nbytes for t in tensors) == 2 * 5 * sum(map(kv_bytes_per_token, decoder_layers(model)))
    assert len(tensors) == 4  # two of the three layers attend


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_run_as_the_model_runs_them(parents, family):
    model = random_model(parents[family], MIXED, "float32", "cpu")
    prompt, past = random_ids(model, 2, 9), random_ids(model, 2, 10)
    passes = Passes.of_layers(model, prompt, past, steps=2)
    with torch.inference_mode():
        torch.testing.assert_close(model.model.norm(passes.prefill()), model.model(prompt).last_hidden_state)
        token, cache = advance(model, past)
        token, cache = advance(model, token, cache)
        last = model.model(token, past_key_values=cache).last_hidden_state
        for _ in range(2):  # again: a pass leaves no trace in the cache
            torch.testing.assert_close(model.model.norm(passes.decode()), last)


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_passes_choose_the_tokens_that_generate_chooses(parents, family):
    model = random_model(parents[family], MIXED, "float32", "cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(20)  # logits far apart
    prompt = random_ids(model, 2, 9)
    generated = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False, eos_token_id=-1
    )
    passes = Passes.of_model(model, prompt, prompt, steps=3)
    assert passes.prefill().tolist() == generated[:, 9:10].tolist()
    assert passes.decode().tolist() == passes.decode().tolist() == generated[:, 12:].tolist()


def test_stacks_have_the_parents_shares_of_types_of_attention(parents):
    """Gemma 3 has one layer of full attention in six; the tiny one has one of three."""
    types = ["sliding_attention", "sliding_attention", "full_attention"]
    assert proportional(types, 3) == types
    for number in (1, 2, 3, 8, 9, 30):
        listed = proportional(types, number)
        assert len(listed) == number
        assert abs(listed.count("full_attention") - number / 3) < 1
    assert proportional([1, 1, 1, 0], 8) == [0, 0, 1, 1, 1, 1, 1, 1]
    model = random_model(parents["gemma3_text"], Architecture((only("attention", "parent"),) * 6), "float32", "cpu", 8)
    assert [layer.self_attn.is_sliding for layer in decoder_layers(model)] == [False] * 2 + [True] * 4


def test_a_fork_leaves_the_original_cache_alone(parents):
    model = random_model(parents["llama"], MIXED, "float32", "cpu")
    token, cache = advance(model, random_ids(model, 1, 5))
    forked = fork(cache)
    advance(model, token, forked)
    assert (cache.get_seq_length(), forked.get_seq_length()) == (5, 6)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_random_stacks_are_packed_like_real_pieces(parents, precision):
    """Separate products would price a piece too high."""
    layer = LayerChoice(attention=f"parent@{precision}", ffn=f"parent@{precision}")
    model = pack(random_model(parents["llama"], Architecture((layer,)), "float32", "cpu"))
    sizes = [len(module.sizes) for module in model.model.layers.modules() if isinstance(module, PackedLinear)]
    assert sorted(sizes) == [1, 1, 2, 3]  # o, down; gate and up; q, k and v


def test_deterministic_mode_is_left_only_while_timing():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with fastest_kernels():
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def settings():
    return Costs(repeats=3, stack_megabytes=1), {"chat": Scenario(prefill=8, generate=5, batch_sizes=(1, 2))}


@pytest.mark.parametrize(("kind", "variant"), [("attention", "gqa-1"), ("ffn", "parent"), ("model", "parent")])
def test_measured_rows_fit_the_cost_table(parents, settings, tmp_path, kind, variant):
    rows = measure(parents["qwen3"], kind, variant, *settings, "cpu", "float32")
    write_table(rows, COSTS, tmp_path / "costs.parquet")
    table = read_table(tmp_path / "costs.parquet", COSTS)
    assert set(zip(table.phase, table.batch, strict=True)) == {(p, b) for p in ("prefill", "decode") for b in (1, 2)}
    assert (table.seconds > 0).all()
    assert (table.parent_seconds > 0).all()
    assert (table.seconds == table.parent_seconds).all() == (variant == "parent")
    fixed = 32 * 50 + 32  # embedding and final norm
    expected = fixed if kind == "model" else expected_parameters("qwen3", kind, variant)
    assert set(table.parameters) == {expected}
    assert set(table.parameter_bytes) == {4 * expected}
    assert set(table.kv_bytes_per_token) == {2 * 1 * 16 * 4 if kind == "attention" else 0}


HEADS = {"parent": (1600, 4 * 1600), "parent@bf16": (1600, 2 * 1600), "parent@int8": (1682, 1600 + 4 * 82)}


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("variant", HEADS)
def test_heads_are_measured_with_their_stored_sizes(parents, settings, family, variant):
    """A head that is tied to the embedding stores nothing, but one in a precision is a matrix of its own."""
    expected = (0, 0) if (family, variant) == ("llama", "parent") else HEADS[variant]
    for row in measure(parents[family], "head", variant, *settings, "cpu", "float32"):
        assert (row["parameters"], row["parameter_bytes"], row["kv_bytes_per_token"]) == (*expected, 0)
        assert row["seconds"] > 0
        assert row["parent_seconds"] > 0


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize(("precision", "size"), [("bf16", 2), ("int8", 1)])
def test_memory_of_a_precision_is_that_of_its_matrices(parents, kind, precision, size):
    """Matrices of the subblock in the precision, the norm and the scales in float32."""
    one, plain = (
        decoder_layers(random_model(parents["qwen3"], Architecture((only(kind, v),)), "float32", "cpu", 8))[0]
        for v in (f"parent@{precision}", "parent")
    )
    state = plain.state_dict()
    matrices = [tensor for tensor in state.values() if tensor.ndim == 2]
    scales = sum(sum(tensor.shape) for tensor in matrices) if precision == "int8" else 0
    weights = sum(tensor.numel() for tensor in matrices)
    assert parameters(one) == parameters(plain) + scales
    assert parameter_bytes(one) == parameter_bytes(plain) - (4 - size) * weights + 4 * scales
    assert kv_bytes_per_token(one) == kv_bytes_per_token(plain)


def test_a_tied_head_is_stored_once(parents):
    tied = random_model(parents["llama"], Architecture(()), "float32", "cpu")
    own = random_model(parents["llama"], Architecture((), "parent@int8"), "float32", "cpu")
    assert parameters(tied) == 50 * 32 + 32
    assert parameters(own) == parameters(tied) + 50 * 32 + 50 + 32
    assert parameter_bytes(own) == parameter_bytes(tied) + 50 * 32 + 4 * (50 + 32)


@pytest.mark.parametrize("variant", ["parent@bf16", "parent@int8"])
def test_random_weights_are_those_of_the_precision(parents, variant):
    """Zeros would be faster than real weights."""
    layer = decoder_layers(random_model(parents["llama"], MIXED_PRECISIONS[variant], "float32", "cpu"))[0]
    state = layer.state_dict()
    assert all(tensor.abs().sum() > 0 for tensor in state.values())
    types = {state[f"{name}.weight"].dtype for name in ("self_attn.q_proj", "mlp.down_proj")}
    assert types == {torch.int8 if variant.endswith("int8") else torch.bfloat16}
    assert state["input_layernorm.weight"].dtype == torch.float32


def test_head_passes_choose_the_likeliest_token_of_every_copy(parents):
    heads = [torch.nn.Linear(8, 11, bias=False) for _ in range(3)]
    hidden = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    passes = Passes.of_heads(heads, hidden, steps=2)
    with torch.no_grad():
        expected = torch.stack([head(hidden)[:, -1].argmax(-1) for head in heads])
    assert torch.equal(passes.prefill(), expected)
    assert torch.equal(passes.decode(), torch.stack([expected, expected]))
    assert passes.steps == 2


def test_models_are_timed_packed_and_the_parent_also_as_stock(parents, settings, monkeypatch):
    packed = []
    monkeypatch.setattr(torch_engine, "pack", lambda model: packed.append(model) or pack(model))
    architectures = {"parent": Architecture((LayerChoice(),) * 3), "mixed": MIXED_PRECISIONS["parent@int8"]}
    seconds = measure_whole(parents["qwen2"], architectures, *settings, "cpu", "float32")
    assert seconds.keys() == {("chat", phase, batch) for phase in ("prefill", "decode") for batch in (1, 2)}
    assert all(times.keys() == {"parent", "mixed", "stock parent"} for times in seconds.values())
    assert all(second > 0 for times in seconds.values() for second in times.values())
    assert len(packed) == len(architectures)


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_no_op_costs_nothing(parents, settings, kind):
    for row in measure(parents["llama"], kind, "no-op", *settings, "cpu", "float32"):
        assert row["seconds"] == row["seconds_spread"] == 0
        assert row["parameters"] == row["parameter_bytes"] == row["kv_bytes_per_token"] == 0
        assert row["parent_seconds"] > 0

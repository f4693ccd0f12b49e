import math

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tangram.activations import open_activations
from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.child.assemble import build_config
from tangram.commands.evaluate_model import evaluate_model
from tangram.errors import TangramError
from tangram.evaluation.text import compare_on_text, text_rows
from tangram.models.modeling_tangram import TangramLlamaForCausalLM
from tangram.tables import CORPUS, EVALUATION, SAMPLES, read_table, write_table

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
CONFIG = LlamaConfig(**SIZES, num_hidden_layers=3, vocab_size=40, initializer_range=0.5)


@pytest.fixture
def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    """A tiny random parent and a heterogeneous child that is another random model."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    architecture = Architecture((LayerChoice("no-op", "linear"), LayerChoice("gqa-1", "width-0.5"), LayerChoice()))
    return LlamaForCausalLM(CONFIG).eval(), TangramLlamaForCausalLM(build_config(CONFIG, architecture)).eval()


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.randint(40, (5, 9), generator=torch.Generator().manual_seed(1))


def evaluate(model: PreTrainedModel, parent: PreTrainedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    final = open_activations(None, parent, ids, 2).hidden(3)
    return compare_on_text(model, parent, final, ids, batch_size=2, label="test")


@torch.no_grad()
def test_metrics_are_those_of_whole_forward_passes(models, input_ids):
    parent, child = models
    found = evaluate(child, parent, input_ids)
    child_logits, parent_logits = (model(input_ids).logits[:, :-1].double() for model in (child, parent))
    loss = functional.cross_entropy(child_logits.mT, input_ids[:, 1:], reduction="none")
    p, q = parent_logits.softmax(-1), child_logits.softmax(-1)
    torch.testing.assert_close(found["loss"].double(), loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["kl"].double(), (p * (p / q).log()).sum(-1), rtol=1e-4, atol=1e-5)
    assert torch.equal(found["agreement"], (parent_logits.argmax(-1) == child_logits.argmax(-1)).float())
    rows = {row["metric"]: row for row in text_rows("child", "heldout", found)}
    by_sequence = loss.mean(1).numpy()
    error = by_sequence.std(ddof=1) / math.sqrt(5)
    assert rows["lm_loss"]["value"] == pytest.approx(loss.mean().item(), rel=1e-5)
    assert rows["lm_loss"]["standard_error"] == pytest.approx(error, rel=1e-4)
    assert rows["perplexity"]["value"] == pytest.approx(np.exp(loss.mean().item()), rel=1e-5)
    assert rows["perplexity"]["standard_error"] == pytest.approx(np.exp(loss.mean().item()) * error, rel=1e-4)
    assert rows["kl"]["n"] == 5 * 8


def test_the_parent_agrees_with_itself(models, input_ids):
    parent, _ = models
    found = evaluate(parent, parent, input_ids)
    assert found["kl"].abs().max() == 0
    assert found["agreement"].min() == 1
    with torch.no_grad():
        loss = parent(input_ids, labels=input_ids).loss
    assert found["loss"].mean().item() == pytest.approx(loss.item(), rel=1e-5)


def test_a_broken_model_is_told_in_one_line(models, input_ids):
    parent, child = models
    with torch.no_grad():
        child.lm_head.weight[3] = torch.nan
    with pytest.raises(TangramError, match=r"^test: the model's outputs are not finite; [^\n]*$"):
        evaluate(child, parent, input_ids)


def test_the_command_writes_metrics_of_all_models(models, input_ids, tmp_path):
    parent, _ = models
    for name in ("parent", "child", "finetuned"):
        parent.save_pretrained(tmp_path / name)
    documents = {"source": "test", "documents": [], "document_starts": []}
    rows = [{"sequence_id": i, "input_ids": ids, **documents} for i, ids in enumerate(input_ids.tolist())]
    write_table(rows, CORPUS, tmp_path / "heldout.parquet")
    common = ('{"evaluation": {"batch_size": 2}}', str(tmp_path / "parent"), str(tmp_path / "heldout.parquet"))
    evaluate_model(*common, str(tmp_path / "parent.parquet"), str(tmp_path / "parent_sequences.parquet"))
    files = (str(tmp_path / "all.parquet"), str(tmp_path / "sequences.parquet"))
    evaluate_model(*common, *files, str(tmp_path / "child"), str(tmp_path / "finetuned"))
    alone = read_table(tmp_path / "parent.parquet", EVALUATION).set_index(["model", "task", "metric"])
    both = read_table(tmp_path / "all.parquet", EVALUATION).set_index(["model", "task", "metric"])
    assert set(alone.index.get_level_values("model")) == {"parent"}
    assert both.index.is_unique
    for model in ("child", "finetuned"):
        same = both.loc[model, "heldout", "perplexity"].value
        assert same == pytest.approx(alone.loc["parent", "heldout", "perplexity"].value, rel=1e-5)
    by_sequence = read_table(tmp_path / "sequences.parquet", SAMPLES).set_index(["model", "metric", "sample"]).value
    for model in ("child", "finetuned"):
        for metric in ("kl", "lm_loss", "agreement"):
            mean = both.loc[model, "heldout", metric]
            assert by_sequence[model, metric].mean() == pytest.approx(mean.value)
            assert by_sequence[model, metric].sem() == pytest.approx(mean.standard_error)
    assert set(read_table(tmp_path / "parent_sequences.parquet", SAMPLES).model) == {"parent"}

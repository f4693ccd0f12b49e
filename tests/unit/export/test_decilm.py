"""Children as folders that vLLM itself loads: its log-probabilities against torch's."""

from pathlib import Path

import pytest
import torch
from export_children import ARCHITECTURES, EIGHT_BITS, child_on_disk, random_tokens
from tiny_children import LAYERS
from tiny_models import write_parent

from tangram import vllm
from tangram.evaluation.vllm_text import log_probabilities
from tangram.export.decilm import write_decilm
from tangram.export.parts import read_checkpoint
from tangram.models.loading import load_model

needs_vllm = pytest.mark.skipif(vllm.python() is None, reason=vllm.INSTALL)
PARENTS = {
    "tied": {"tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
}
PROMPTS = [random_tokens(1, length)[0].tolist() for length in (2, 17, 100)]  # one batch
ALL = {**ARCHITECTURES, **EIGHT_BITS}
CASES = [(parent, name) for parent in PARENTS for name in (ALL if parent in ("tied", "biases") else ["mixed"])]


@pytest.fixture(scope="module")
def logprobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[torch.Tensor]]]:
    """All children on disk, and their log-probabilities in vLLM, by parent and architecture."""
    work = tmp_path_factory.mktemp("vllm")
    folders, children = {}, {}
    for parent, name in CASES:
        if not (work / parent).exists():
            write_parent(work / parent, num_hidden_layers=LAYERS, **{"head_dim": 32, **PARENTS[parent]})
        case = f"{parent}, {name}"
        children[case] = child_on_disk(work / parent, work / f"{case} child", ALL[name])
        folders[case] = work / case
        write_decilm(read_checkpoint(children[case]), folders[case], {})
    results = log_probabilities(folders, PROMPTS, "float32")
    return {case: (child, results[case]) for case, child in children.items()}


@needs_vllm
@pytest.mark.parametrize(("parent", "name"), CASES)
@torch.no_grad()
def test_vllm_computes_the_childs_probabilities(
    logprobs: dict[str, tuple[Path, list[torch.Tensor]]], parent: str, name: str
) -> None:
    folder, results = logprobs[f"{parent}, {name}"]
    child, largest, divergence = load_model(folder), 0.0, 0.0
    for prompt, result in zip(PROMPTS, results, strict=True):
        expected = child(torch.tensor([prompt])).logits[0, :-1].double().log_softmax(-1)
        difference = expected - result.double().log_softmax(-1)  # vLLM rounds to float32
        largest = max(largest, float(difference.abs().max()))
        divergence = max(divergence, float((expected.exp() * difference).sum(-1).mean()))
    print(f"{parent}, {name}: largest difference {largest:.1e}, KL {divergence:.1e}")
    rounds_inputs = name in EIGHT_BITS  # a number between two integers may become either
    assert largest < (0.2 if rounds_inputs else 1e-4)
    assert divergence < (1e-3 if rounds_inputs else 1e-9)

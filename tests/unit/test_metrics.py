import math

import pytest
import torch
from torch.nn import functional

from tangram.metrics import compare, compare_in_chunks, standard_error_by_sequence


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    child, parent = 3 * torch.randn(2, 11, 97, generator=generator)
    return child, parent, torch.randint(97, (11,), generator=generator)


def test_compare_agrees_with_torch(logits):
    child, parent, labels = logits
    found = compare(child, parent, labels)
    kl = functional.kl_div(
        child.double().log_softmax(-1), parent.double().log_softmax(-1), reduction="none", log_target=True
    )
    torch.testing.assert_close(found["kl"].double(), kl.sum(-1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["loss"], functional.cross_entropy(child, labels, reduction="none"))
    torch.testing.assert_close(found["parent_loss"], functional.cross_entropy(parent, labels, reduction="none"))
    expected = [
        float(c.tolist().index(c.max()) == p.tolist().index(p.max())) for c, p in zip(child, parent, strict=True)
    ]
    assert found["agreement"].tolist() == expected


def test_kl_of_two_coins_is_the_closed_form_from_parent_to_child():
    child, parent = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]])
    found = compare(child.log(), parent.log(), torch.tensor([1]))
    assert found["kl"].item() == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), rel=1e-6)
    assert found["loss"].item() == pytest.approx(math.log(10), rel=1e-6)
    assert found["parent_loss"].item() == pytest.approx(math.log(2), rel=1e-6)


def test_bfloat16_logits_are_compared_in_float32(logits):
    child, parent, labels = logits
    found = compare(child.bfloat16(), parent.bfloat16(), labels)
    exact = compare(child.bfloat16().float(), parent.bfloat16().float(), labels)
    assert found["kl"].dtype == torch.float32
    assert torch.equal(found["kl"], exact["kl"])


def test_a_model_does_not_differ_from_itself(logits):
    child, _, labels = logits
    found = compare(child, child, labels)
    assert torch.equal(found["kl"], torch.zeros(11))
    assert torch.equal(found["agreement"], torch.ones(11))


def test_chunks_give_what_all_positions_at_once_give():
    torch.manual_seed(0)
    child_hidden, parent_hidden, labels = torch.randn(13, 8), torch.randn(13, 8), torch.randint(50, (13,))
    child_head, parent_head = torch.nn.Linear(8, 50), torch.nn.Linear(8, 50)
    whole = compare(child_head(child_hidden), parent_head(parent_hidden), labels)
    chunked = compare_in_chunks(child_hidden, parent_hidden, child_head, parent_head, labels, chunk=4)
    for name, values in whole.items():
        torch.testing.assert_close(chunked[name], values)


def test_standard_error_is_over_sequences_not_tokens():
    values = torch.tensor([[1.0, 3.0], [2.0, 4.0], [6.0, 8.0]])  # sequence means 2, 3, 7: variance 7
    mean, error = standard_error_by_sequence(values)
    assert mean == pytest.approx(4.0)
    assert error == pytest.approx(math.sqrt(7 / 3))


def test_one_sequence_leaves_the_error_unknown():
    assert standard_error_by_sequence(torch.tensor([[1.0, 2.0]])) == (1.5, math.inf)

"""The distillation losses against their definitions."""

import pytest
import torch

from tangram.training.losses import cosine_distance, kl_divergence, normalized_mse


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_kl_and_its_gradient_equal_autograd_of_the_definition(chunk):
    torch.manual_seed(0)
    child = torch.randn(7, 11, dtype=torch.float64).float().requires_grad_(True)
    parent = 3 * torch.randn(7, 11)
    reference = child.detach().double().requires_grad_(True)
    p, q = (torch.distributions.Categorical(logits=logits) for logits in (parent.double(), reference))
    expected = torch.distributions.kl_divergence(p, q).mean()
    (2 * expected).backward()
    value = kl_divergence(child, parent, chunk)
    (2 * value).backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(child.grad.double(), reference.grad, rtol=1e-4, atol=1e-7)


def test_kl_of_extreme_logits_is_finite():
    child = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    value = kl_divergence(child, torch.tensor([[0.0, 0.0, 0.0]]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(child.grad).all()


def test_cosine_distance_of_scaled_and_opposite_states():
    states = torch.randn(4, 5, 6)
    assert cosine_distance(3 * states, states).item() == pytest.approx(0, abs=1e-6)
    assert cosine_distance(-states, states).item() == pytest.approx(2, abs=1e-6)


def test_normalized_mse_divides_by_the_scale():
    parent, child = torch.full((2, 3, 4), 2.0), torch.full((2, 3, 4), 5.0)
    assert normalized_mse(child, parent, torch.tensor(4.0)).tolist() == [[9 / 4] * 3] * 2

"""The pretended device raises the errors of a GPU, and computes the results of the CPU."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

DEVICE = torch.device("cuda", 0)


@pytest.fixture
def there(pretend_cuda):
    return torch.arange(6.0, device="cuda").view(2, 3)


REFUSED = {
    "an operand": lambda x: x + torch.ones(3),
    "an operand of the CPU's": lambda x: torch.ones(2, 3).add_(x),
    "a sum of the CPU's": lambda x: torch.zeros(()).add_(x.sum()),
    "a place for results": lambda x: torch.add(x, x, out=torch.empty(2, 3)),
    "a matrix": lambda x: x @ torch.ones(3, 1),
    "an identity": lambda x: x.T @ x + torch.eye(3),
    "a scalar in a list": lambda x: torch.stack([x[0, 0], torch.tensor(1.0)]),
    "a mask": lambda x: x.masked_fill(torch.ones(2, 3, dtype=torch.bool), 0.0),
    "an index of a CPU tensor": lambda x: torch.ones(3)[torch.tensor([0, 1], device=x.device)],
    "values to put": lambda x: x.index_put_((torch.tensor([0]),), torch.ones(3)),
    "gathered places": lambda x: x.gather(1, torch.zeros(2, 1, dtype=torch.int64)),
    "tokens of an embedding": lambda x: nn.Embedding(4, 2, device=x.device)(torch.tensor([1])),
    "a mask of attention": lambda x: nn.functional.scaled_dot_product_attention(
        x[None, None], x[None, None], x[None, None], torch.ones(2, 2, dtype=torch.bool)
    ),
    "tensors within a transform": lambda x: torch.where(x > 2, x, torch.zeros(2, 3)),
}


@pytest.mark.parametrize("meet", REFUSED.values(), ids=REFUSED)
def test_a_tensor_that_was_left_on_the_cpu_is_an_error(there, meet):
    with pytest.raises(RuntimeError, match="same device"):
        meet(there)


@pytest.mark.parametrize("convert", [lambda x: x.numpy(), np.array, np.asarray, lambda x: np.ones(6)[x]])
def test_numpy_cannot_read_the_device(there, convert):
    with pytest.raises(TypeError, match="device type tensor to numpy"):
        convert(there)


def test_a_generator_belongs_to_a_device(pretend_cuda):
    generator = torch.Generator()
    for make in (torch.randperm, torch.rand):
        with pytest.raises(RuntimeError, match="generator"):
            make(3, generator=generator, device="cuda")
    with pytest.raises(RuntimeError, match="generator"):
        torch.empty(3, device="cuda").normal_(generator=generator)
    assert torch.randperm(3, generator=generator).device.type == "cpu"


ALLOWED = {
    "a scalar": lambda x: x * torch.tensor(2.0),
    "places on the CPU": lambda x: x[torch.tensor([1, 0])],
    "a mask of rows on the CPU": lambda x: x[torch.tensor([True, False])],
    "a scalar put": lambda x: x.clone().index_put_((torch.tensor([0]),), torch.tensor(7.0)),
    "rows set by places on the CPU": lambda x: x.clone().index_fill_(0, torch.tensor([0], device=x.device), 1.0),
    "a copy": lambda x: torch.zeros_like(x).copy_(torch.ones(2, 3)),
    "a context": lambda x: _in_context(x) + x,
}


def _in_context(x):
    with torch.device(x.device):
        return torch.ones(3)


@pytest.mark.parametrize("compute", ALLOWED.values(), ids=ALLOWED)
def test_what_a_gpu_allows_is_computed(there, compute):
    found = compute(there)
    assert found.device == DEVICE
    assert torch.equal(found.cpu(), compute(there.cpu()))


def test_values_come_back_to_python(there):
    assert there.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert there.sum().item() == 15
    assert bool((there[0] < 3).all())
    assert there.cpu().numpy().sum() == 15
    assert copy.deepcopy(there).device == DEVICE


def _trained(device):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).to(device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    inputs = torch.arange(6.0).view(2, 3).to(device)
    for _ in range(3):
        optimizer.zero_grad()
        module(inputs).square().mean().backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.1)
        optimizer.step()
    return module, optimizer


def test_training_on_the_device_equals_training_on_the_cpu(pretend_cuda):
    (here, _), (there, optimizer) = _trained("cpu"), _trained("cuda")
    for own, other in zip(here.parameters(), there.parameters(), strict=True):
        assert other.device == other.grad.device == optimizer.state[other]["step"].device == DEVICE
        torch.testing.assert_close(other.cpu(), own)


def test_a_fused_step_wants_its_state_on_the_device(pretend_cuda):
    module, optimizer = _trained("cuda")
    optimizer.state[module[0].weight]["step"] = torch.tensor(3.0)
    with pytest.raises(RuntimeError, match="_fused_adamw_"):
        optimizer.step()


def test_a_module_changes_its_type_in_place(pretend_cuda):
    module = nn.Linear(3, 2).to("cuda")
    expected = module.weight.cpu().double()
    assert torch.equal(module.to(torch.float64).weight.cpu(), expected)


def test_other_code_is_as_before(pretend_cuda):
    x = torch.ones(2, requires_grad=True)
    (x * 2).sum().backward()
    assert type(x.grad) is torch.Tensor
    assert x.grad.device.type == "cpu"


def test_products_are_counted_where_they_are_made(pretend_cuda):
    here = torch.ones(2, 2)
    here @ here
    assert pretend_cuda == {"cpu": 1}
    here.to("cuda") @ here.to("cuda")
    assert pretend_cuda == {"cpu": 1, "cuda": 1}


def test_least_squares_are_those_that_a_gpu_has(pretend_cuda):
    matrix, right = torch.eye(4, 3) + 1, torch.arange(8.0).view(4, 2)
    found = torch.linalg.lstsq(matrix.to("cuda"), right.to("cuda")).solution
    assert torch.equal(found.cpu(), torch.linalg.lstsq(matrix, right, driver="gels").solution)

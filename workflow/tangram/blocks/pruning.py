"""Pruning of the inputs of a subblock's last matrix, with compensation: optimal brain surgeon on second moments.

Groups of inputs leave one after another, those first whose removal increases the squared error of the outputs least
when the other inputs take over their share (ZipLM, Kurtic et al. 2023, arXiv 2302.04089; SlimGPT, arXiv 2412.18110).
The order of removal is nested: the inputs that a smaller piece keeps are among those of every larger one.
"""

from __future__ import annotations

import torch

from tangram.blocks.moments import Moments, damped

ROUNDS = 16  # rounds in which the channels of an FFN leave; scores are computed anew for each round


def removal_order(
    moment: torch.Tensor, weight: torch.Tensor, size: int = 1, rounds: int | None = None, count: int | None = None
) -> torch.Tensor:
    """Return the order in which groups of adjacent inputs leave a matrix, ``(count,)``.

    The score of a group S is the increase of the expected squared error, ``tr(W_S [H⁻¹]_SS⁻¹ W_Sᵀ)``, with the second
    moments H of the inputs that remain and the matrix W after compensation.

    Args:
        moment: H, ``(inputs, inputs)``, positive definite.
        weight: W, ``(outputs, inputs)``.
        size: inputs per group.
        rounds: number of rounds, each of which removes equally many groups; by default each removes one.
        count: number of groups that leave; all by default.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment.double()))
    transposed = weight.double().t().clone()
    groups = len(moment) // size
    count, per_round = groups if count is None else count, -(-groups // (rounds or groups))
    blocks = inverse.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # a view
    remaining = torch.ones(groups, dtype=torch.bool, device=moment.device)
    removed = [remaining.new_zeros(0, dtype=torch.long)]
    while sum(map(len, removed)) < count:
        candidates = remaining.nonzero().flatten()
        rows = transposed.view(groups, size, -1)[candidates]
        scores = (rows * torch.linalg.solve(blocks[candidates], rows)).sum((1, 2))
        leaving = candidates[scores.argsort(stable=True)[:per_round]]
        remaining[leaving] = False
        removed.append(leaving)
        gone = (leaving[:, None] * size + torch.arange(size, device=moment.device)).flatten()
        compensation = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])  # (gone, inputs)
        transposed -= compensation.t() @ transposed[gone]
        inverse.addmm_(inverse[:, gone], compensation, alpha=-1)  # in place, as this is the largest matrix
    return torch.cat(removed)[:count]


def remaining_groups(
    moment: torch.Tensor, weight: torch.Tensor, number: int, size: int = 1, rounds: int | None = None
) -> torch.Tensor:
    """Return the groups that remain when only ``number`` do, in their order; see `removal_order`."""
    groups = len(moment) // size
    remaining = torch.ones(groups, dtype=torch.bool, device=moment.device)
    remaining[removal_order(moment, weight, size, rounds, groups - number)] = False
    return remaining.nonzero().flatten()


def refit(
    moments: Moments, weight: torch.Tensor, bias: torch.Tensor | None, inputs: torch.Tensor, ridge: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return a matrix of some of the inputs, and its bias, whose outputs are closest to those of the whole matrix.

    The ridge shrinks the matrix towards the columns of the whole one. With a bias the data are centered.

    Args:
        moments: of the inner activations.
        weight: ``(outputs, inner)``.
        bias: ``(outputs,)`` or None.
        inputs: indices of the inputs that remain, ``(n,)``.
        ridge: strength relative to the mean of the moment's diagonal.

    Returns:
        The matrix ``(outputs, n)`` and the bias, float32.
    """
    moment = damped(moments.inner_moment if bias is None else moments.inner_covariance, ridge)
    whole = weight.double()
    crossed = moment[inputs] @ whole.t()
    fitted = torch.linalg.solve(moment[inputs][:, inputs], crossed).t()
    if bias is None:
        return fitted.float().contiguous(), None
    shift = whole @ moments.inner_mean - fitted @ moments.inner_mean[inputs]
    return fitted.float().contiguous(), (bias.double() + shift).float()

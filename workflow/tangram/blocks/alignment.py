"""Rotations of attention heads, which do not change what attention computes, before the heads are merged.

Align Attention Heads Before Merging Them (arXiv 2412.20677): values are rotated by generalized Procrustes analysis, and
queries and keys in each of the two-dimensional planes that the rotary embedding turns, so that both rotations commute.
"""

from __future__ import annotations

from typing import Any

import torch

from tangram.blocks.base import FITTED_TOKENS

ITERATIONS = 30  # of generalized Procrustes analysis; the objective never decreases


def polar(matrices: torch.Tensor) -> torch.Tensor:
    """Return the nearest orthogonal (unitary) matrices, ``(..., n, n)``."""
    left, _, right = torch.linalg.svd(matrices)
    return left @ right


def agreeing_rotations(products: torch.Tensor) -> torch.Tensor:
    """Return rotations Q that maximize ``sum_ij E[(Q_i x_i)^H Q_j x_j]``, the agreement of the rotated signals.

    One signal at a time is rotated optimally; the first start is the agreement with the signals before it.

    Args:
        products: ``E[x_i x_j^H]`` of all pairs of signals, ``(..., signals, signals, n, n)``.

    Returns:
        ``(..., signals, n, n)``.
    """
    signals, n = products.shape[-3], products.shape[-1]
    identity = torch.eye(n, dtype=products.dtype, device=products.device)
    rotations = [identity.expand(*products.shape[:-4], n, n)]
    for i in range(1, signals):  # to the sum of those before
        before = torch.stack([q @ products[..., j, i, :, :] for j, q in enumerate(rotations)])
        rotations.append(polar(before.sum(0)))
    for i in [*range(signals)] * (ITERATIONS if signals > 1 else 0):
        others = [rotations[j] @ products[..., j, i, :, :] for j in range(signals) if j != i]
        rotations[i] = polar(torch.stack(others).sum(0))
    return torch.stack(rotations, dim=-3)


def rotate_values(weights: dict[str, torch.Tensor], rotations: torch.Tensor, heads: int) -> dict[str, torch.Tensor]:
    """Return an attention's weights with rotated values; the outputs of the rotated heads are rotated back by `o_proj`.

    Args:
        weights: of transformers' attention, by name.
        rotations: ``(KV heads, head size, head size)``.
        heads: number of query heads.
    """
    rotated, kv_heads = dict(weights), len(rotations)
    for name in ("v_proj.weight", "v_proj.bias"):
        if name in weights:
            rows = weights[name].to(rotations.dtype).reshape(kv_heads, rotations.shape[-1], -1)
            rotated[name] = (rotations @ rows).reshape(weights[name].shape)
    output = weights["o_proj.weight"].to(rotations.dtype)
    columns = output.unflatten(1, (kv_heads, heads // kv_heads, -1))
    rotated["o_proj.weight"] = torch.einsum("okgd,ked->okge", columns, rotations).flatten(1)
    return rotated


def rotate_keys(weights: dict[str, torch.Tensor], angles: torch.Tensor, heads: int) -> dict[str, torch.Tensor]:
    """Return an attention's weights with queries and keys rotated in each plane of the rotary embedding.

    Args:
        weights: of transformers' attention, by name.
        angles: unit complex numbers, ``(KV heads, head size / 2)``.
        heads: number of query heads.
    """
    rotated = dict(weights)
    for name, repeats in (("k_proj", 1), ("q_proj", heads // len(angles))):
        factors = angles.repeat_interleave(repeats, dim=0)[..., None]
        for part in ("weight", "bias"):
            if (tensor := weights.get(f"{name}.{part}")) is not None:
                planes = as_planes(tensor.double().reshape(len(factors), 2 * factors.shape[1], -1), dim=1) * factors
                turned = torch.cat([planes.real, planes.imag], dim=1)
                rotated[f"{name}.{part}"] = turned.reshape(tensor.shape)
    return rotated


def as_planes(states: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Return the components i and i + n / 2 of a dimension of size n as one complex number."""
    return torch.complex(*states.chunk(2, dim=dim))


def head_products(
    attention: Any, inputs: torch.Tensor, token_weights: torch.Tensor, kv_heads: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean products of all pairs of heads of each group: of their values, and of their keys by plane.

    Args:
        attention: transformers' attention.
        inputs: its inputs, ``(tokens, hidden)``.
        token_weights: ``(tokens,)``.
        kv_heads: number of groups.

    Returns:
        ``(groups, heads, heads, head size, head size)``, float64, and ``(groups, planes, heads, heads)``, complex.
    """
    share = (token_weights / token_weights.sum()).double()[:, None, None, None]
    of_values, of_keys = [], []
    for x, weight in zip(inputs.split(FITTED_TOKENS), share.split(FITTED_TOKENS), strict=True):
        values, keys = (
            projection(x).double().unflatten(-1, (kv_heads, -1, attention.head_dim))
            for projection in (attention.v_proj, attention.k_proj)
        )
        of_values.append(torch.einsum("tgia,tgjb->gijab", weight * values, values))
        planes = as_planes(keys)
        of_keys.append(torch.einsum("tgip,tgjp->gpij", weight * planes, planes.conj()))
    return torch.stack(of_values).sum(0), torch.stack(of_keys).sum(0)


def aligned(
    attention: Any, inputs: torch.Tensor, token_weights: torch.Tensor, kv_heads: int
) -> dict[str, torch.Tensor]:
    """Return the weights of the same attention whose KV heads agree as much as possible within each group, float64.

    With norms of queries and keys, only values are rotated: rotations of keys do not commute with the norms' weights.
    The arguments are those of `head_products`.
    """
    weights = {name: tensor.double() for name, tensor in attention.state_dict().items()}
    heads = attention.q_proj.out_features // attention.head_dim
    of_values, of_keys = head_products(attention, inputs, token_weights, kv_heads)
    weights = rotate_values(weights, agreeing_rotations(of_values).flatten(0, 1), heads)
    if hasattr(attention, "k_norm"):
        return weights
    angles = agreeing_rotations(of_keys[..., None, None])[..., 0, 0]  # (groups, planes, heads)
    return rotate_keys(weights, angles.transpose(1, 2).flatten(0, 1), heads)

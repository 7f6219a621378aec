"""References that several block tests share; the loops are written plainly in float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F


@pytest.fixture(scope="session")
def normalised():
    """LayerNorm of one vector."""

    def layer_norm(vector, weight, bias):
        centred = vector - vector.mean()
        return centred / math.sqrt((centred**2).mean() + 1e-5) * weight + bias

    return layer_norm


@pytest.fixture(scope="session")
def multihead():
    """Multi-head attention of lists of vectors, with the weights of nn.MultiheadAttention."""

    def attend(weights, name, queries, keys, heads):
        dim = len(queries[0])
        size = dim // heads

        def projected(vectors, i):
            part = slice(i * dim, (i + 1) * dim)
            weight = weights[f"{name}.in_proj_weight"][part]
            return [weight @ vector + weights[f"{name}.in_proj_bias"][part] for vector in vectors]

        query, key, value = projected(queries, 0), projected(keys, 1), projected(keys, 2)
        out = []
        for q in query:
            read = np.zeros(dim)
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                shares = [math.exp(q[part] @ k[part] / math.sqrt(size)) for k in key]
                for share, v in zip(shares, value, strict=True):
                    read[part] += share / sum(shares) * v[part]
            weight, bias = weights[f"{name}.out_proj.weight"], weights[f"{name}.out_proj.bias"]
            out.append(weight @ read + bias)
        return out

    return attend


@pytest.fixture(scope="session")
def gradients():
    """Return output and gradients of the input and of every weight; the loss has no symmetry."""

    def compute(function, module, features):
        features = features.clone().requires_grad_()
        out = function(features)
        generator = torch.Generator().manual_seed(3)
        target = torch.randn(out.shape, generator=generator, dtype=out.dtype)
        return out, torch.autograd.grad((out * target).sum(), [features, *module.parameters()])

    return compute


@pytest.fixture(scope="session")
def assert_same_function(gradients):
    """Compare a module with a plain form of it: outputs and all gradients, in float64."""

    def compare(module, plain, features):
        fast, slow = gradients(module, module, features), gradients(plain, module, features)
        torch.testing.assert_close(fast[0], slow[0], rtol=0, atol=1e-12)
        for mine, reference in zip(fast[1], slow[1], strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)

    return compare


@pytest.fixture(scope="session")
def plain_cbam():
    """CBAM by the operations of its paper, with the weights of a block."""

    def apply(block, features):
        maximum = features.amax(dim=(2, 3, 4))
        average = features.mean(dim=(2, 3, 4))
        weight = 2 * torch.sigmoid(block.channel(average) + block.channel(maximum))
        features = features * weight[:, :, None, None, None]
        pooled = torch.stack([features.mean(dim=1), features.amax(dim=1)], dim=1)
        weight, bias = block.spatial.weight, block.spatial.bias
        score = F.conv3d(pooled, weight.transpose(0, 1), bias.sum()[None], padding=1)
        return features * (2 * torch.sigmoid(score))

    return apply

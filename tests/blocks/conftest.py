"""References that several block tests share, written as plain loops in float64."""

import math

import numpy as np
import pytest


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

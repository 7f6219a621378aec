"""Properties of frozen encoders."""

import torch
from torch import Tensor, nn

from clipseg3d.clip.encoder import ClipEncoder, TextEncoder
from clipseg3d.testing.properties import require

TEXTS = ("Oedema in the left frontal lobe.", "No enhancement.", "A")


def check_text_encoder(encoder: TextEncoder, *, tolerance: float = 1e-4) -> None:
    """Check an encoder of texts.

    - n texts become (n, e) finite unit vectors without gradient; other texts get other vectors.
    - The vector of a text depends on that text alone, and a text over the limit is accepted.
    - Tokens are counted: more words, more tokens.
    - The fingerprint is 64 hexadecimal digits and stays the same.
    - An encoder that is a module stays in evaluation mode, trains nothing, and keeps its weights
      out of ``state_dict``.

    Args:
        encoder: as it would be given to a network.
        tolerance: absolute, for padding and sums in another order.

    Raises:
        AssertionError: a property does not hold; the message says which.
    """
    vectors = encoder.encode_text(list(TEXTS))
    _check_vectors("encode_text", vectors, len(TEXTS), encoder.embed_dim, tolerance)
    require(not vectors.requires_grad, "encode_text: vectors require a gradient")
    distance = float((vectors[0] - vectors[1]).abs().max())
    require(distance > tolerance, "encode_text: two texts have the same vector")
    for index, text in enumerate(TEXTS):
        (alone,) = encoder.encode_text([text])
        close = torch.allclose(alone, vectors[index], atol=tolerance)
        require(close, f"encode_text: the vector of {text!r} depends on the texts beside it")
    short, long = encoder.count_tokens("oedema"), encoder.count_tokens("oedema " * 5)
    require(0 < short < long, f"count_tokens: {short} for one word, {long} for five")
    encoder.encode_text(["oedema " * (encoder.max_tokens + 1)])
    first, second = encoder.fingerprint(), encoder.fingerprint()
    is_digest = len(first) == 64 and set(first) <= set("0123456789abcdef")
    require(is_digest and first == second, "fingerprint: not the same 64 hexadecimal digits")
    if isinstance(encoder, nn.Module):
        encoder.train()
        modes = [module.training for module in encoder.modules()]
        require(not any(modes), "train(): a frozen encoder must stay in evaluation mode")
        trained = [name for name, weight in encoder.named_parameters() if weight.requires_grad]
        require(not trained, f"weights that are not frozen: {', '.join(trained)}")
        require(not nn.ModuleList([encoder]).state_dict(), "state_dict: holds frozen weights")


def check_clip_encoder(encoder: ClipEncoder, *, tolerance: float = 1e-4) -> None:
    """Check a CLIP: what :func:`check_text_encoder` checks, and its image tower.

    - n images of any size become (n, e) finite unit vectors in the space of the texts.
    - The vector of an image depends on that image alone; other images get other vectors.
    - Patches are (n, g, g, e) finite unit vectors, with the same vectors of whole images.
    - A gradient reaches images that require one.

    Args:
        encoder: as it would be given to a network.
        tolerance: as for :func:`check_text_encoder`.

    Raises:
        AssertionError: a property does not hold; the message says which.
    """
    check_text_encoder(encoder, tolerance=tolerance)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 40, 40, generator=generator)
    vectors = encoder.encode_image(images)
    _check_vectors("encode_image", vectors, 3, encoder.embed_dim, tolerance)
    require(
        float((vectors[0] - vectors[1]).abs().max()) > 1e-6,
        "encode_image: two images have the same vector",
    )
    alone = encoder.encode_image(images[1:2])
    require(
        torch.allclose(alone, vectors[1:2], atol=tolerance),
        "encode_image: the vector of an image depends on the images beside it",
    )
    whole, patches = encoder.encode_patches(images)
    require(
        torch.allclose(whole, vectors, atol=tolerance),
        "encode_patches: the vectors of whole images are not those of encode_image",
    )
    require(
        patches.ndim == 4 and patches.shape[1] == patches.shape[2],
        f"encode_patches: {tuple(patches.shape)} is not (n, g, g, e)",
    )
    _check_vectors(
        "encode_patches",
        patches.flatten(0, 2),
        len(patches.flatten(0, 2)),
        encoder.embed_dim,
        tolerance,
    )
    images.requires_grad_()
    torch.autograd.backward(encoder.encode_image(images).sum())
    require(
        images.grad is not None and bool(images.grad.any()),
        "encode_image: no gradient reaches the images",
    )


def _check_vectors(name: str, vectors: Tensor, count: int, dim: int, tolerance: float) -> None:
    """Require finite unit vectors of the right number and length."""
    require(
        vectors.shape == (count, dim), f"{name}: {tuple(vectors.shape)}, expected {(count, dim)}"
    )
    require(bool(vectors.isfinite().all()), f"{name}: a vector is not finite")
    lengths = torch.linalg.vector_norm(vectors, dim=1)
    require(bool((lengths - 1).abs().max() < tolerance), f"{name}: vectors are not of length 1")

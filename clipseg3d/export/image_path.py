"""The image path of a network as a module that takes only tensors, for other runtimes."""

import copy

import torch
from torch import Tensor, nn

from clipseg3d.blocks.semantic_bridge import ViewTokens
from clipseg3d.networks.clipseg3d import CLIPSeg3D


class ImagePath(nn.Module):
    """A trained network without its frozen encoders: crops in, logits out.

    Region prompts and one report are embedded once, here, and their embeddings are stored. CLIP's
    image tower is left out, and the view embeddings are an input instead: they are the same for
    every crop of a case, while the graph runs once per crop; and CLIP may be 50 times larger than
    the rest of the network. Compute them once per case with
    ``network.semantic_fusion.bridge(volume)``, or give zeros with ``views_valid`` False: then only
    text guides the network.

    Args:
        network: trained. Its parts are shared and put into evaluation mode; only the small semantic
            parts are copied.
        report: report of the case; empty for prompts only.

    Raises:
        ValueError: a report is given to a network that reads no text.
    """

    def __init__(self, network: CLIPSeg3D, *, report: str = "") -> None:
        super().__init__()
        if report and network.text_bank is None:
            raise ValueError("the network reads no text; leave the report out")
        fusion = network.semantic_fusion
        self.text: Tensor | None
        self.text_mask: Tensor | None
        text, mask = network.embed_text([report])
        self.register_buffer("text", text)
        self.register_buffer("text_mask", mask)
        if fusion is not None:
            fusion = copy.deepcopy(fusion, {id(fusion.bridge): _EmbeddedViews()})
        self.network = CLIPSeg3D(
            network.unet, pixel_fusion=network.pixel_fusion, semantic_fusion=fusion
        )
        self.network.semantic_strength.copy_(network.semantic_strength)
        self.eval()

    def forward(
        self,
        image: Tensor,
        statistics: Tensor | None = None,
        crop_box: Tensor | None = None,
        view_tokens: Tensor | None = None,
        views_valid: Tensor | None = None,
        view_patches: Tensor | None = None,
        view_planes: Tensor | None = None,
    ) -> Tensor:
        """Return logits (1, r, x, y, z); :func:`example_inputs` shows which inputs a network needs.

        Args:
            image: crop (1, s, x, y, z), in the units of ``statistics``.
            statistics: (1, s, 4) of the whole brain.
            crop_box: (1, 2, 3) where the crop lies in the brain box.
            view_tokens: (1, n, e), CLIP's embeddings of the views.
            views_valid: (1,) bool, whether the network uses the view embeddings.
            view_patches: (1, v, g, g, e), for networks with a dense map.
            view_planes: (1, v, 3), for networks with a dense map.
        """
        semantics = None
        if view_tokens is not None and views_valid is not None:
            planes = view_tokens.new_zeros(1, 1, 3) if view_planes is None else view_planes
            embedded = ViewTokens(view_tokens, views_valid, view_patches, planes)
            semantics = self.network.encode_semantics(
                embedded,  # type: ignore[arg-type]  # _EmbeddedViews takes it in place of views
                self.text,
                self.text_mask,
            )
        return self.network.segment(
            image, semantics, crop_box=crop_box, statistics=statistics
        ).logits


class _EmbeddedViews(nn.Module):
    """Replaces the bridge if the views are embedded already."""

    def embed(self, embedded: ViewTokens) -> ViewTokens:
        """Return the embeddings that were given."""
        return embedded


@torch.no_grad()
def example_inputs(network: CLIPSeg3D, size: tuple[int, int, int]) -> dict[str, Tensor]:
    """Return random inputs of :meth:`ImagePath.forward`: name -> tensor, those the network needs.

    Args:
        network: the complete network, with CLIP.
        size: size of the crop (x, y, z), in voxels.
    """
    sequences = 4 if network.config is None else len(network.config.sequences)
    image = torch.randn(1, sequences, *size)
    inputs = {"image": image}
    if network.pixel_fusion is not None:
        inputs["statistics"] = torch.tensor([[[-2.0, 2.0, 0.0, 1.0]]]).repeat(1, sequences, 1)
    if network.semantic_fusion is None:
        return inputs
    bridge = network.semantic_fusion.bridge
    embedded = bridge(image)
    inputs["crop_box"] = torch.tensor([[[0.0] * 3, [1.0] * 3]])
    inputs["view_tokens"], inputs["views_valid"] = embedded.tokens, embedded.valid
    if embedded.patches is not None:
        inputs["view_patches"], inputs["view_planes"] = embedded.patches, embedded.planes
    return inputs

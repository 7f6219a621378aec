"""SigLIP and SigLIP 2 (of fixed resolution) of Hugging Face."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, BaseImageProcessor, SiglipModel

from clipseg3d.clip.frozen_clip import FrozenCLIP, pooled
from clipseg3d.clip.frozen_encoder import check_complete, read_pretrained
from clipseg3d.clip.hugging_face import register_model_type

_HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation of images, where a folder does not say them."""


class HuggingFaceSigLIP(FrozenCLIP):
    """A frozen SiglipModel of transformers.

    Texts are padded to ``max_tokens``, and padding is read, as the model was trained.

    Args:
        model: with both towers.
        tokenizer: of the same SigLIP.
        name: folder or hub name it was loaded from.
        mean: of red, green and blue, by which images in [0, 1] are normalised.
        std: likewise.

    Source: Zhai et al., ICCV 2023, arXiv 2303.15343.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        mean: Sequence[float] = _HALF,
        std: Sequence[float] = _HALF,
    ) -> None:
        side = int(model.config.vision_config.image_size)
        super().__init__(
            model,
            tokenizer,
            name=name,
            embed_dim=int(model.config.vision_config.hidden_size),
            max_tokens=int(model.config.text_config.max_position_embeddings),
            image_size=(side, side),
            mean=mean,
            std=std,
        )

    @classmethod
    def from_pretrained(cls, name: str, *, local_files_only: bool = False) -> "HuggingFaceSigLIP":
        """Load a SiglipModel and its tokenizer from a local folder or the Hugging Face hub.

        Images are normalised as its preprocessor_config.json says, if there is one.

        Args:
            name: folder written by ``save_pretrained`` (model and tokenizer), or a hub name such
                as ``google/siglip-base-patch16-224``.
            local_files_only: use a folder or the Hugging Face cache, and no network.

        Raises:
            FileNotFoundError: the name is a path, and there is no such folder.
            ValueError: the folder lacks weights or a tokenizer, or they are no complete SigLIP.
            ImportError: the tokenizer needs sentencepiece, which is not installed.
            OSError: the hub has no such model, or it cannot be reached and no copy is cached.
        """
        options = {"local_files_only": local_files_only}
        (model, report), tokenizer = read_pretrained(
            name,
            "SiglipModel",
            lambda source: (
                SiglipModel.from_pretrained(source, output_loading_info=True, **options),
                AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options),
            ),
        )
        check_complete(name, "SiglipModel", list(report["missing_keys"]), tokenizer, model.config)
        mean, std = _normalisation(name, **options)
        return cls(model, tokenizer, name=name, mean=mean, std=std)

    def _image_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (n, e), and last hidden states (n, g g, c)."""
        output = self.frozen_model.vision_model(pixel_values=pixels, return_dict=True)
        return output.pooler_output, output.last_hidden_state

    def _patch_features(self, hidden: Tensor) -> Tensor:
        """Return features (n, g, g, e): each patch is pooled as if the image had no other."""
        count, patches, _ = hidden.shape
        side = round(patches**0.5)
        alone = hidden.reshape(count * patches, 1, -1)
        features: Tensor = self.frozen_model.vision_model.head(alone)
        return features.reshape(count, side, side, -1)

    def _text_features(self, texts: Sequence[str]) -> Tensor:
        """Return features (n, e)."""
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        ids = tokens["input_ids"].to(self.frozen_model.device)
        return pooled(self.frozen_model.get_text_features(input_ids=ids))


def _normalisation(name: str, *, local_files_only: bool) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of images, of three numbers each.

    Raises:
        ValueError: they are not.
    """
    try:
        values, _ = BaseImageProcessor.get_image_processor_dict(
            name, local_files_only=local_files_only
        )
    except OSError:  # there is no such file, since the model itself was found
        values = {}
    found = [values.get(key, _HALF) for key in ("image_mean", "image_std")]
    if any(not isinstance(numbers, list | tuple) or len(numbers) != 3 for numbers in found) or (
        min(found[1]) <= 0
    ):
        raise ValueError(
            f"{name}: image_mean and image_std of its preprocessor_config.json are {found}, not "
            "three numbers each, above 0 for image_std; repair the file"
        )
    return found[0], found[1]


register_model_type("siglip", HuggingFaceSigLIP.from_pretrained)

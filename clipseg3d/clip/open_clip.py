"""CLIPs of the package open_clip_torch, such as BiomedCLIP."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from einops import rearrange
from huggingface_hub import snapshot_download, try_to_load_from_cache
from torch import Tensor

from clipseg3d.clip.frozen_clip import FrozenCLIP
from clipseg3d.clip.registry import register
from clipseg3d.ranges import nearest

_PREFIX = "open_clip"
_HUB = "hf-hub:"
_CONFIG = "open_clip_config.json"
_SAFE_WEIGHTS = "*.safetensors"
_OTHER_WEIGHTS = "open_clip_pytorch_model.bin"
_TOKENIZER = ("*.json", "*.txt", "*.model")
_CURE = (
    "check the name and the network, or save the model where there is a network and give its folder"
)


class OpenClipEncoder(FrozenCLIP):
    """A frozen model of open_clip, in float32.

    Args:
        model: as ``open_clip.create_model`` builds it.
        tokenizer: as ``open_clip.get_tokenizer`` builds it.
        name: that it was loaded by.
        embed_dim: number of embedding channels e.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, embed_dim: int) -> None:
        size = model.visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        super().__init__(
            model,
            tokenizer,
            name=name,
            embed_dim=embed_dim,
            max_tokens=int(tokenizer.context_length),
            image_size=(height, width),
            mean=model.visual.preprocess_cfg["mean"],
            std=model.visual.preprocess_cfg["std"],
        )

    @classmethod
    def from_pretrained(cls, name: str, *, local_files_only: bool = False) -> "OpenClipEncoder":
        """Load a model by its name in open_clip, or from a folder or the Hugging Face hub.

        Args:
            name: an architecture and the tag of its weights, such as
                ``ViT-B-32/laion2b_s34b_b79k``; ``hf-hub:`` and a hub name, such as
                ``hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224``; or a folder
                with open_clip_config.json, weights and, if it has one of its own, the tokenizer.
                A text tower of Hugging Face may have its config.json in a folder within.
            local_files_only: use folders and the Hugging Face cache, and no network.

        Raises:
            ImportError: open_clip_torch is not installed.
            FileNotFoundError: the name is a path, and there is no such folder.
            ValueError: open_clip knows no such name; the folder is incomplete or damaged.
            OSError: the weights are not cached and cannot be downloaded.
        """
        try:
            import open_clip
        except ImportError as error:
            raise ImportError(
                f'{_PREFIX}:{name} needs open_clip_torch: pip install "clipseg3d[open-clip]"'
            ) from error
        folder = Path(name).expanduser()
        if name.startswith(_HUB):
            folder = _download(name.removeprefix(_HUB), local_files_only)
        elif not folder.is_dir():
            if folder.is_absolute() or name.startswith((".", "~")):
                raise FileNotFoundError(f"{name}: no such folder; give one with {_CONFIG}")
            return _by_tag(open_clip, name, local_files_only)
        return _from_folder(open_clip, folder, name, local_files_only)

    def count_tokens(self, text: str) -> int:
        """Return the length of a text in tokens, start and end included."""
        words: Any = getattr(self.tokenizer, "tokenizer", None)  # of Hugging Face
        if words is None:
            return len(self.tokenizer.encode(text)) + 2
        clean = getattr(self.tokenizer, "clean_fn", str)
        return len(words(clean(text), verbose=False)["input_ids"])

    def _image_features(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features (n, e), and hidden states (n, c, g, g) of patches, if any."""
        tower = self.frozen_model.visual
        trunk = getattr(tower, "trunk", None)  # of timm
        if not hasattr(tower if trunk is None else trunk, "patch_embed" if trunk else "_pool"):
            return self.frozen_model.encode_image(pixels), None
        output = tower.forward_intermediates(
            pixels, indices=1, normalize_intermediates=trunk is not None
        )
        return output["image_features"], output["image_intermediates"][-1]

    def _patch_features(self, hidden: Tensor | None) -> Tensor:
        """Return features (n, g, g, e): each patch is pooled as if all tokens were like it."""
        if hidden is None:
            raise ValueError(
                f"{self.name}: its image tower is no vision transformer and has no patches; leave "
                "dense out, or take another CLIP"
            )
        tower = self.frozen_model.visual
        trunk = getattr(tower, "trunk", None)
        before = 1 if trunk is None else trunk.num_prefix_tokens
        rows = hidden.shape[2]
        tokens = rearrange(hidden, "n c h w -> (n h w) 1 c").expand(-1, before + 1, -1)
        if trunk is None:
            features, _ = tower._pool(tokens)
            features = features if tower.proj is None else features @ tower.proj
        else:
            features = tower.head(trunk.forward_head(tokens))
        grid: Tensor = rearrange(features, "(n h w) e -> n h w e", n=len(hidden), h=rows)
        return grid

    def _text_features(self, texts: Sequence[str]) -> Tensor:
        """Return features (n, e)."""
        features: Tensor = self.frozen_model.encode_text(
            self.tokenizer(list(texts)).to(self.mean.device)
        )
        return features

    def _is_used(self, name: str) -> bool:
        """Say yes: unlike those of transformers, these files lack no weight."""
        return True


def _by_tag(open_clip: Any, name: str, local_files_only: bool) -> OpenClipEncoder:
    """Load an architecture of open_clip, with the weights of a tag."""
    architecture, _, tag = name.rpartition("/")
    config = open_clip.get_model_config(architecture)
    if config is None:
        raise ValueError(
            f"{_PREFIX}:{name}: neither a folder nor ARCHITECTURE/TAG; "
            "open_clip.list_pretrained() lists what there is"
        )
    source = open_clip.get_pretrained_cfg(architecture, tag)
    if not source:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        raise ValueError(f"{_PREFIX}:{name}: no weights {tag!r}; {nearest(tag, tags)}")
    try:
        if local_files_only and not _is_cached(source):
            raise FileNotFoundError("it is not in the Hugging Face cache")
        model = open_clip.create_model(architecture, pretrained=tag, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(architecture)
    except Exception as error:  # open_clip raises errors of any kind
        raise OSError(f"{_PREFIX}:{name} was not loaded ({_one_line(error)}); {_CURE}") from error
    return OpenClipEncoder(
        model, tokenizer, name=f"{_PREFIX}:{name}", embed_dim=int(config["embed_dim"])
    )


def _from_folder(
    open_clip: Any, folder: Path, name: str, local_files_only: bool
) -> OpenClipEncoder:
    """Load a model from a folder."""
    if not (folder / _CONFIG).is_file():
        raise ValueError(f"{folder}: holds no {_CONFIG}; save the model as open_clip does")
    source = f"local-dir:{folder}"
    try:
        config = open_clip.get_model_config(source)
        text = dict(config["text_cfg"])
        if tower := text.get("hf_model_name"):  # only its config.json is needed
            inner = folder / tower
            text["hf_model_name"] = str(
                inner if inner.is_dir() else _download(tower, local_files_only, text_only=True)
            )
            text["hf_model_pretrained"] = False
        model = open_clip.create_model(source, require_pretrained=True, text_cfg=text)
        tokenizer = open_clip.get_tokenizer(source)
        dim = int(config["embed_dim"])
    except OSError:  # the message says which file could not be had
        raise
    except Exception as error:  # open_clip raises errors of any kind
        raise ValueError(
            f"{folder}: not a readable model of open_clip ({_one_line(error)}); save it again"
        ) from error
    return OpenClipEncoder(model, tokenizer, name=f"{_PREFIX}:{name}", embed_dim=dim)


def _download(repository: str, local_files_only: bool, *, text_only: bool = False) -> Path:
    """Return the folder of a repository in the Hugging Face cache, downloaded if need be.

    Raises:
        OSError: there is no such repository, or it cannot be reached and no copy is cached.
    """

    def fetch(*patterns: str) -> Path:
        return Path(
            snapshot_download(
                repository, allow_patterns=list(patterns), local_files_only=local_files_only
            )
        )

    try:
        if text_only:
            return fetch("config.json")
        folder = fetch(_CONFIG, _SAFE_WEIGHTS, *_TOKENIZER)
        if not any(folder.glob(_SAFE_WEIGHTS)):
            folder = fetch(_OTHER_WEIGHTS)
        return folder
    except Exception as error:  # versions of huggingface_hub differ in what they raise
        raise OSError(
            f"{repository!r} is not in the Hugging Face cache and was not downloaded "
            f"({type(error).__name__}); {_CURE}"
        ) from error


def _is_cached(source: dict[str, Any]) -> bool:
    """Say whether the weights of a tag are in the Hugging Face cache."""
    repository, _, file = source.get("hf_hub", "").rpartition("/")
    files = [file] if file else ["open_clip_model.safetensors", _OTHER_WEIGHTS]
    return bool(repository) and any(
        isinstance(try_to_load_from_cache(repository, name), str) for name in files
    )


def _one_line(error: Exception) -> str:
    """Return the message of an error without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


register(_PREFIX, OpenClipEncoder.from_pretrained)

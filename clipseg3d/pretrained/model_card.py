"""The model card: a README.md that is saved with the weights."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from clipseg3d import __version__
from clipseg3d.networks.clipseg3d import CLIPSeg3D

_TEMPLATE = """---
{{ card_data }}
---

# {{ name | default("CLIPSeg3D", true) }}

3D segmentation of brain tumours ({{ regions }}) in MRI ({{ sequences }}), skull-stripped and in one
space, by a network of `clipseg3d` {{ version }} with {{ parameters }} parameters.

```python
from clipseg3d import CLIPSeg3D

network = CLIPSeg3D.from_pretrained({{ source | default("FOLDER_OR_HUB_ID", true) | tojson }})
```

## What it is for
{% if settings %}
- label convention: {{ settings.release_name }}
- voxel size: {{ settings.spacing_mm }} mm; other scans are resampled to it
- sliding window: {{ settings.roi_size | join(" x ") }} voxels, overlap {{ settings.overlap }}
- cases that lack sequences: {{ "yes, trained for it" if settings.allow_missing else "no" }}
{%- if settings.postprocessing %}
- post-processing, done by `Predictor` and `clipseg3d segment` unless it is switched off (ml, and
  shares of the largest component): `{{ settings.postprocessing | tojson }}`
{%- endif %}
{% else %}
Not stated.
{% endif %}
Frozen encoders, which are not part of these files; others are refused:
{% for role, encoder in encoders.items() %}
- {{ role }}: `{{ encoder.name }}`, SHA-256 of its weights `{{ encoder.sha256 }}`
{% else %}
- none
{% endfor %}
## Training data, and their licences

{{ data | default("To be filled in by the author.", true) }}

## Measured

{{ metrics | default("To be filled in by the author: Dice and HD95 per region, on which cases, by "
"which protocol.", true) }}

## Limits

{{ limits | default("To be filled in by the author.", true) }} Not a medical device.

## Citation

The method: [arXiv 2507.09966](https://arxiv.org/abs/2507.09966).
"""


def model_card(
    network: CLIPSeg3D, description: Mapping[str, Any], texts: Mapping[str, Any] | None = None
) -> ModelCard:
    """Return the card of a network.

    Args:
        network: whose weights are counted.
        description: values of its config.json.
        texts: of the author: ``name``, ``data``, ``metrics``, ``limits``, ``source``; the card says
            which ones are missing.
    """
    own = network.state_dict()
    sizes = [weight.numel() for name, weight in network.named_parameters() if name in own]
    card: ModelCard = ModelCard.from_template(
        card_data=ModelCardData(
            library_name="clipseg3d",
            pipeline_tag="image-segmentation",
            tags=["medical", "mri", "brain-tumor", "brats", "3d", "clip"],
        ),
        template_str=_TEMPLATE,
        version=__version__,
        regions=", ".join(description["network"]["regions"]),
        sequences=", ".join(description["network"]["sequences"]),
        parameters=f"{sum(sizes):,}",
        settings=network.settings,
        encoders=description["encoders"],
        **(texts or {}),
    )
    return card

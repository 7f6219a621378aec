from .block_properties import check_block as check_block
from .encoder_properties import check_clip_encoder as check_clip_encoder
from .encoder_properties import check_text_encoder as check_text_encoder
from .guidance_properties import check_guidance as check_guidance
from .release_properties import check_release as check_release

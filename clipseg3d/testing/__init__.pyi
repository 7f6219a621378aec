from .block_properties import check_block as check_block
from .dicom_series import write_dicom_series as write_dicom_series
from .encoder_properties import check_clip_encoder as check_clip_encoder
from .encoder_properties import check_text_encoder as check_text_encoder
from .guidance_properties import check_guidance as check_guidance
from .release_properties import check_release as check_release

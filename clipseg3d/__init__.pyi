from .data.brats import BraTS2018DataModule as BraTS2018DataModule
from .data.brats import BraTS2019DataModule as BraTS2019DataModule
from .data.brats import BraTS2020DataModule as BraTS2020DataModule
from .data.brats import BraTS2021DataModule as BraTS2021DataModule
from .data.brats import BraTS2023GLIDataModule as BraTS2023GLIDataModule
from .data.brats import BraTS2023MENDataModule as BraTS2023MENDataModule
from .data.brats import BraTS2023METDataModule as BraTS2023METDataModule
from .data.brats import BraTS2023PEDDataModule as BraTS2023PEDDataModule
from .data.brats import BraTS2023SSADataModule as BraTS2023SSADataModule
from .data.brats import BraTS2024GLIDataModule as BraTS2024GLIDataModule
from .data.brats import BraTS2024MENRTDataModule as BraTS2024MENRTDataModule
from .data.brats import BraTS2024PEDDataModule as BraTS2024PEDDataModule
from .data.brats import BraTS2025GLIDataModule as BraTS2025GLIDataModule
from .data.brats import BraTS2025METDataModule as BraTS2025METDataModule
from .data.brats import BraTSDataModule as BraTSDataModule
from .data.brats import MSDTask01DataModule as MSDTask01DataModule
from .inference.predictor import Predictor as Predictor
from .networks.clipseg3d import CLIPSeg3D as CLIPSeg3D
from .networks.config import NetworkConfig as NetworkConfig
from .networks.unet import UNet3D as UNet3D
from .phantom.datamodule import PhantomDataModule as PhantomDataModule
from .training.module import CLIPSeg3DModule as CLIPSeg3DModule

__version__: str

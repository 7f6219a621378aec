from .bundle import write_bundle as write_bundle
from .graph import write_onnx as write_onnx
from .graph import write_torch as write_torch
from .image_path import ImagePath as ImagePath

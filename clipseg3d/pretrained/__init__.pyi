from .checkpoint import read_checkpoint_file as read_checkpoint_file
from .reader import TrainedNetwork as TrainedNetwork
from .reader import load_pretrained as load_pretrained
from .reader import read_networks as read_networks
from .writer import push_to_hub as push_to_hub
from .writer import save_pretrained as save_pretrained
from .writer import write_postprocessing as write_postprocessing

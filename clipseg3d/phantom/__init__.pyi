from .counterfactual import Counterfactual as Counterfactual
from .datamodule import PhantomDataModule as PhantomDataModule
from .report import describe as describe
from .simulate import Phantom as Phantom
from .simulate import simulate_phantom as simulate_phantom
from .simulate import simulate_twins as simulate_twins
from .write import write_phantom as write_phantom
from .write import write_phantoms as write_phantoms

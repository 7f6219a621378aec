from .datamodule import PhantomDataModule as PhantomDataModule
from .report import PhantomFacts as PhantomFacts
from .report import describe as describe
from .report import measure_facts as measure_facts
from .simulate import Phantom as Phantom
from .simulate import simulate_phantom as simulate_phantom
from .write import write_phantom as write_phantom
from .write import write_phantoms as write_phantoms

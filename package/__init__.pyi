from . import data as data
from . import layers as layers
from . import learn as learn
from . import recipes as recipes
from . import serving as serving
from . import training as training
from . import zoo as zoo
from .serving.contract import ContractError as ContractError
from .serving.formats import FormatError as FormatError
from .training import CheckpointError as CheckpointError
from .training import FolderInUseError as FolderInUseError
from .zoo import *
from .zoo.published.keras_hub import from_keras_hub as from_keras_hub
from .zoo.published.keras_hub import to_keras_hub as to_keras_hub

__version__: str

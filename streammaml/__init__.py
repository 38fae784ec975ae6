"""Online adaptation for many contexts on Kafka: one small model for each, adapted by MAML.

Rule: importing this stays light (no torch, numba, river or kafka). The worker is a command,
``streammaml run``; what a program can do is build and check a configuration, and tell by the
error who has to act.
"""

from importlib.metadata import version as _version

from streammaml.config import Config as Config
from streammaml.errors import BackendError as BackendError
from streammaml.errors import ConfigError as ConfigError
from streammaml.errors import DamagedError as DamagedError
from streammaml.errors import FencedError as FencedError
from streammaml.errors import GapError as GapError
from streammaml.errors import IncompatibleError as IncompatibleError
from streammaml.errors import InitializationError as InitializationError
from streammaml.errors import InputError as InputError
from streammaml.errors import MisfitError as MisfitError
from streammaml.errors import NonFiniteError as NonFiniteError
from streammaml.errors import RejectedError as RejectedError
from streammaml.errors import StoreError as StoreError
from streammaml.errors import StreamMAMLError as StreamMAMLError
from streammaml.errors import TooManyRejectedError as TooManyRejectedError
from streammaml.errors import UnavailableError as UnavailableError
from streammaml.errors import UnreadableError as UnreadableError

__version__ = _version("streammaml")

"""The pure core: nothing here imports a backend, reads a clock or a file, or logs."""

from streammaml.learner.memory import Shelf as Shelf
from streammaml.learner.online import Learner as Learner
from streammaml.learner.online import warm_up as warm_up
from streammaml.learner.schema import Labels as Labels
from streammaml.learner.schema import Schema as Schema

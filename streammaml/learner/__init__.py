"""The pure core: nothing here imports a backend, reads a clock or a file, or logs."""

from streammaml.learner.describe import describe_records as describe_records
from streammaml.learner.memory import Shelf as Shelf
from streammaml.learner.online import Learner as Learner
from streammaml.learner.online import warm_up as warm_up
from streammaml.learner.schema import Labels as Labels
from streammaml.learner.schema import Schema as Schema
from streammaml.learner.snapshot import description_of as description_of
from streammaml.learner.snapshot import differences as differences
from streammaml.learner.snapshot import fingerprint_of as fingerprint_of
from streammaml.learner.snapshot import is_expired as is_expired

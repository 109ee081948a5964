"""Where models come from, and in `folder`, `cards` and `publish` how they get to the Hub."""

from .load import EMBEDDED as EMBEDDED
from .load import EMBEDDED_FOLDER as EMBEDDED_FOLDER
from .load import RELEASED as RELEASED
from .load import load_pipeline as load_pipeline
from .load import resolve_model as resolve_model
from .load import weights_record as weights_record

"""The exceptions that bad input raises, also where a library of an extra is not installed.

The Hub-carried model and pipeline files stand alone and raise plain ``ValueError`` by the same rule: one sentence that
names the argument, its value and what was wanted.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class InputError(ValueError):
    """Input from a caller (an argument, a file, a photo) that cannot be used as it is."""


def load_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Import a library of one of the project's extras.

    Args:
        module: name of the module.
        extra: name of the extra in pyproject.toml that installs it.
        purpose: what is wanted of it, for the error message.

    Returns:
        The module.

    Raises:
        InputError: it is not installed; the sentence says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{purpose} needs the library {module}, which is not installed; pip install 'bokehdepth[{extra}]' adds it."
        ) from error

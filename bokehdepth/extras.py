"""Libraries that only some uses need: loaded when one is asked for, named with their extra where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import InputError


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

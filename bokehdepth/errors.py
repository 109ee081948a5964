"""The exceptions that bad input raises.

The Hub-carried model and pipeline files stand alone and raise plain ``ValueError`` by the same rule: one sentence that
names the argument, its value and what was wanted.
"""


class InputError(ValueError):
    """Input from a caller (an argument, a file, a photo) that cannot be used as it is."""

"""The two ways an experiment ends early, each with a message meant for the user."""


class InputError(ValueError):
    """Something the user gave cannot be used; raised before anything is written."""


class RunError(RuntimeError):
    """A training run that cannot go on; finished runs are kept."""

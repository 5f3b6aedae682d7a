"""The one base class of what this package raises about input: files, settings, weights, checkpoints."""


class RmpeError(Exception):
    """Something that the user can put right; the message names the file or setting and what is wrong with it."""


class MissingExtraError(RmpeError, ImportError):
    """A library that is not installed because it belongs to an extra."""

    def __init__(self, library: str, extra: str, purpose: str):
        super().__init__(f"{purpose} needs {library}, which is not installed: pip install 'rmpe-jax[{extra}]'")

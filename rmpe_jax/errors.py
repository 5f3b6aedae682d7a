"""The one base class of what this package raises about input: files, settings, weights, checkpoints."""


class RmpeError(Exception):
    """Something that the user can put right; the message names the file or setting and what is wrong with it."""

"""What can go wrong, one class per kind of input, so that callers can tell a bad image from a bad model."""


class CamtoolsError(Exception):
    """Base of every error that camtools raises on purpose; its text says what was wrong and the way out."""


class InputError(CamtoolsError, ValueError):
    """An image that cannot be used: unreadable, empty, not finite, or of the wrong shape."""


class TargetError(CamtoolsError, ValueError):
    """A class that does not exist: index out of range, unknown name, or a list of the wrong length."""


class ModelError(CamtoolsError, RuntimeError):
    """A model that cannot be explained: no class scores, no map to be had, or unknown under that name."""


class WeightsError(CamtoolsError, ValueError):
    """A checkpoint that cannot be read, is not where it was said to be, or does not fit the model."""


class PipelineError(CamtoolsError, ValueError):
    """A pipeline or step that cannot work: impossible order, unknown preset, parameter out of range."""

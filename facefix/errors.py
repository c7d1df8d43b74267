"""The exceptions that facefix raises, each with the exit code the command line ends with.

A message says what was expected, what was found and what to do, and names the file or argument.
"""

from __future__ import annotations


class FacefixError(Exception):
    """Base of every error that facefix raises on purpose. The run failed."""

    exit_code = 1


class UsageError(FacefixError):
    """An argument, option or setting cannot be used as given."""

    exit_code = 2


class PhotoError(FacefixError):
    """One photo cannot be read, restored or written; a run over many goes on without it."""


class CheckpointError(FacefixError):
    """A file of weights is not what it should be: not a checkpoint, truncated, keys missing, wrong shapes, unsafe."""


class NotFiniteError(FacefixError):
    """A network gave NaN or infinity."""


class DeviceError(UsageError):
    """The device or dtype that was asked for is not there."""


class WeightsUnavailable(FacefixError):
    """Weights that are needed are not installed, or could not be fetched."""

    exit_code = 69


class LockHeld(FacefixError):
    """Another run holds the lock of this output folder."""

    exit_code = 75


class OutputError(FacefixError):
    """Nothing more can be written to the output folder; the run ends, and a later one goes on."""

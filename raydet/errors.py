"""The exception tree and the exit codes.

    RaydetError
    |-- ConfigError       what the user asked for is wrong                     exit 2
    |   |-- StudyError    a study asks for something that cannot be            exit 2
    |   `-- TrackingError the tracking server cannot be used                   exit 2
    |       `-- TrackerAwayError it does not answer now                        exit 2
    |-- DataError         what lies on disk is wrong                           exit 3
    |-- CheckpointError   a checkpoint cannot be written or read               exit 3
    |   `-- OtherFormatError it was written by another version of raydet       exit 3
    |-- OutOfMemoryError  a worker has no memory left                          exit 4
    |   `-- HostMemoryError its host is about to have none; it has saved       exit 4
    |-- PreemptedError    a run was asked to stop, and has saved               exit 143
    |   |-- StoppedEarlyError enough is known about it                         exit 143
    |   `-- RestartRequestedError it is to go on with other workers            exit 143
    `-- TrainingError     a run cannot go on                                   exit 1
        |-- NonFiniteLossError a loss is not a number                          exit 1
        |-- WorkerLostError another worker of the run is gone                  exit 1
        `-- StalledError  a worker stands still                                exit 5

A message says what was wanted, what came, where (file, row, sample, rank) and what to do. The command line prints
it on one line and leaves with the exit code; a traceback is for our own mistakes only.

All of them are built from one string, so that they travel between processes unchanged. Secrets are struck out of it
at once, so that they reach no log, journal or record of Ray's, whoever writes the message down.
"""

from raydet.redact import redact

EXIT_OK = 0
EXIT_TRIALS_FAILED = 1
EXIT_OUR_MISTAKE = 1
EXIT_USAGE = 2
EXIT_DATA = 3
EXIT_OUT_OF_MEMORY = 4
EXIT_STALLED = 5
EXIT_BUDGET_SPENT = 6
"""A study has taken what it may take; nothing of it is lost."""
EXIT_INTERRUPTED = 130
"""The shell's convention for a program ended by Ctrl-C (128 + SIGINT)."""
EXIT_PREEMPTED = 143
"""The shell's convention for a program ended by `kill` (128 + SIGTERM)."""


class RaydetError(Exception):
    """Base of everything raydet raises on purpose."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(redact(message))


class ConfigError(RaydetError, ValueError):
    """A setting, a flag or a combination of them is wrong."""

    exit_code = EXIT_USAGE


class StudyError(ConfigError):
    """A study cannot be what it is asked to be."""


class TrackingError(ConfigError):
    """The experiment tracker cannot be reached or refuses the request."""


class TrackerAwayError(TrackingError):
    """The experiment tracker does not answer now: the same request may be made again."""


class DataError(RaydetError, ValueError):
    """A file of a data set is missing, unreadable or contradicts itself."""

    exit_code = EXIT_DATA


class CheckpointError(RaydetError):
    """A checkpoint is damaged, incomplete or belongs to another model."""

    exit_code = EXIT_DATA


class OtherFormatError(CheckpointError):
    """A checkpoint that another version of raydet can read."""


class OutOfMemoryError(RaydetError):
    """A worker's device, or its host, has no memory left."""

    exit_code = EXIT_OUT_OF_MEMORY


class HostMemoryError(OutOfMemoryError):
    """The memory of a host, not of a GPU, was about to end; the run has finished its step and saved."""


class PreemptedError(RaydetError):
    """A run was asked to stop; it has finished its step and saved where it stands."""

    exit_code = EXIT_PREEMPTED


class StoppedEarlyError(PreemptedError):
    """A run was asked to stop because others are far better."""


class RestartRequestedError(PreemptedError):
    """A run was asked to stop so that it can go on elsewhere, or with more workers."""


class TrainingError(RaydetError):
    """A run cannot go on: its loss is not finite, or its workers died."""


class NonFiniteLossError(TrainingError):
    """A loss is infinite or not a number; the images are named."""


class WorkerLostError(TrainingError):
    """Another worker of the run is gone; what it raised, if it could, says why."""


class StalledError(TrainingError):
    """A worker stands still; it is named with what it was last seen doing."""

    exit_code = EXIT_STALLED


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what was to be done at Ctrl-C is to be done, with another exit code."""

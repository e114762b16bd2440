"""The exception tree and the exit codes.

    RaydetError
    |-- ConfigError       what the user asked for is wrong                     exit 2
    |   |-- StudyError    a study is invalid                                   exit 2
    |   `-- TrackingError the tracking server cannot be used                   exit 2
    |       `-- TrackerUnavailableError it does not answer now                 exit 2
    |-- DataError         files on disk are wrong                              exit 3
    |-- CheckpointError   a checkpoint cannot be written or read               exit 3
    |   `-- OtherFormatError it was written by another version of raydet       exit 3
    |-- OutOfMemoryError  a worker is out of memory                            exit 4
    |   `-- HostMemoryError its host is almost out of memory; it has saved     exit 4
    |-- PreemptedError    a run was asked to stop, and has saved               exit 143
    |   |-- StoppedEarlyError other runs are far better                        exit 143
    |   `-- RestartRequestedError it must restart with other workers           exit 143
    `-- TrainingError     a run cannot continue                                exit 1
        |-- NonFiniteLossError a loss is infinite or NaN                       exit 1
        |-- WorkerLostError another worker of the run is gone                  exit 1
        `-- StalledError  a worker has stalled                                 exit 5

A message says what was expected, what was found, where (file, row, sample, rank) and what to do. The command line
prints it on one line and exits with the exit code; only internal errors show a traceback.

All errors are built from one string, so that they can be sent between processes unchanged. Its secrets are masked at
once, so that they never reach a log, a journal or a record of Ray.
"""

from raydet.redact import redact

EXIT_OK = 0
EXIT_TRIALS_FAILED = 1
EXIT_INTERNAL_ERROR = 1
EXIT_USAGE = 2
EXIT_DATA = 3
EXIT_OUT_OF_MEMORY = 4
EXIT_STALLED = 5
EXIT_BUDGET_SPENT = 6
"""The budget of a study is exhausted; nothing is lost."""
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
    """A study, or a request to one, is invalid."""


class TrackingError(ConfigError):
    """The experiment tracker cannot be reached or refuses the request."""


class TrackerUnavailableError(TrackingError):
    """The experiment tracker does not answer now; the request may be repeated."""


class DataError(RaydetError, ValueError):
    """A file of a data set is missing, unreadable or contradicts itself."""

    exit_code = EXIT_DATA


class CheckpointError(RaydetError):
    """A checkpoint is damaged, incomplete or belongs to another model."""

    exit_code = EXIT_DATA


class OtherFormatError(CheckpointError):
    """A checkpoint was written by another version of raydet, which can read it."""


class OutOfMemoryError(RaydetError):
    """A worker's device, or its host, is out of memory."""

    exit_code = EXIT_OUT_OF_MEMORY


class HostMemoryError(OutOfMemoryError):
    """A host, not a GPU, was almost out of memory; the run has finished its step and saved."""


class PreemptedError(RaydetError):
    """A run was asked to stop; it has finished its step and saved."""

    exit_code = EXIT_PREEMPTED


class StoppedEarlyError(PreemptedError):
    """A run was asked to stop because others are far better."""


class RestartRequestedError(PreemptedError):
    """A run was asked to stop so that it can resume on other nodes, or with more workers."""


class TrainingError(RaydetError):
    """A run cannot continue: its loss is not finite, or its workers died."""


class NonFiniteLossError(TrainingError):
    """A loss is infinite or NaN; the message names the images."""


class WorkerLostError(TrainingError):
    """Another worker of the run is gone; the error that it raised, if any, says why."""


class StalledError(TrainingError):
    """A worker has stalled; the message names it and its last phase."""

    exit_code = EXIT_STALLED


class Terminated(KeyboardInterrupt):
    """SIGTERM was received; handled like Ctrl-C, with another exit code."""

"""The one family of errors; each says where, what was found, what is allowed and what to do.

The command line turns a member into one line and its `exit_code`; `--debug` shows the traceback.
"""

from typing import ClassVar


class TutelageError(Exception):
    """Anything a user can mend. Never raised for a bug of ours."""

    exit_code: ClassVar[int] = 1


class ConfigError(TutelageError, ValueError):
    """A setting that does not exist, has a wrong value or contradicts another one."""

    exit_code = 2


class DataError(TutelageError, ValueError):
    """A row, column, file or target that cannot be used as asked."""

    exit_code = 3


class ModelError(TutelageError, ValueError):
    """A model or tokenizer that cannot be loaded, or that does not fit its partner."""

    exit_code = 4


class CheckpointError(TutelageError, OSError):
    """A checkpoint that is missing, damaged or of another run."""

    exit_code = 5


class NumericsError(TutelageError, ArithmeticError):
    """A number that is not finite where only finite numbers make sense."""

    exit_code = 6


class OutputError(TutelageError, OSError):
    """A folder or file that cannot be written."""

    exit_code = 7


class MissingDependencyError(TutelageError, ImportError):
    """An optional package that this setting needs and that is not installed."""

    exit_code = 8


class RemoteError(TutelageError, ConnectionError):
    """A server that does not answer, or that answers what cannot be true."""

    exit_code = 9

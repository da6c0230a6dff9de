"""Files of a run folder, which need not be what their names say. Torch-free."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

# No link is followed, and a pipe is not waited for; Windows knows neither.
_FLAGS = sum(getattr(os, name, 0) for name in ("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


def is_text(name: str) -> bool:
    """Whether the name of a file can be told: on a disk it is bytes, and those may be no text."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def open_plain(path: Path) -> BinaryIO:
    """A file to read. Raises OSError; of what is no plain file FileNotFoundError."""
    try:
        file = os.fdopen(os.open(path, _FLAGS), "rb")
    except IsADirectoryError:
        raise _no_file(path) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _no_file(path) from None
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _no_file(path)
    return file


def _no_file(path: Path) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "is no plain file", str(path))

"""Messages of libraries that tell a user of this program nothing. Torch-free."""

from __future__ import annotations

import logging


def hush_libraries() -> None:
    """Keep bitsandbytes from warning, as it is imported, of an optional kernel package for processors.

    What it cannot do is checked where an optimizer asks for it (toolkit.training.optimizers).
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

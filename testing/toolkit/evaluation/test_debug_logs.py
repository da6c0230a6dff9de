"""Logs of conditioning that cannot be written."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from toolkit.errors import RunError
from toolkit.evaluation.debug_logs import DebugLogs


def test_logs_that_cannot_be_written_are_one_line(tmp_path):
    encodings = SimpleNamespace(prompt=lambda text: SimpleNamespace(embeds=torch.zeros(1, 2, 3)))
    for kinds in ((True, False), (False, True)):
        logs = DebugLogs(tmp_path / "gone", captions=kinds[0], conditioning=kinds[1])
        with pytest.raises(RunError, match=r"eval_caption_(debug|cond)_\d+\.log: cannot be written: No such"):
            logs.write([], encodings)
    DebugLogs(tmp_path / "gone", captions=False, conditioning=False).write([], encodings)

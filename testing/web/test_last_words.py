"""What is read from the end of what an attempt printed."""

from __future__ import annotations

import pytest

from web.launchers.attempt import Exit
from web.launchers.last_words import last_words

TRACE = """\
Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
  File "/lib/site-packages/accelerate/commands/launch.py", line 999, in simple_launcher
    raise subprocess.CalledProcessError(returncode=process.returncode, cmd=cmd)
subprocess.CalledProcessError: Command '['python', 'run.py', 'a.yaml']' """
BUG = (
    'Traceback (most recent call last):\n  File "run.py", line 1, in <module>\nZeroDivisionError: division\n'
)
RESULT = "\nResult:\n - 0 completed jobs\n - 1 failure\n"


@pytest.mark.parametrize(("output", "line", "exit"), [
    ("", "", None),
    ("loading\n  step 1\r  step 2\n\n", "step 2", None),
    ("error: no such file\n" + RESULT, "no such file", None),
    ("error: first\nerror: second\nnote: and so on\n", "first", None),
    ("error: of a part\n" + BUG + RESULT, "ZeroDivisionError: division", None),
    ("error: no such file\n" + TRACE + "returned non-zero exit status 2.\n", "no such file", Exit(code=2)),
    ("Job stopped\n" + RESULT + TRACE + "returned non-zero exit status 3.\n", "Job stopped", Exit(code=3)),
    (BUG + RESULT + TRACE + "returned non-zero exit status 1.\n", "ZeroDivisionError: division",
     Exit(code=1)),
    ("step 9\n" + TRACE + "died with <Signals.SIGKILL: 9>.\n", "step 9", Exit(signal=9)),
    ("step 9\n" + TRACE.replace("/", "\\") + "died with unknown signal 99.\n", "step 9", Exit(signal=99)),
    (TRACE + "returned non-zero exit status 2.\n", "", Exit(code=2)),
])  # fmt: skip
def test_the_launchers_own_traceback_is_not_what_the_program_said(output, line, exit):
    said = last_words(output)
    assert (said.line, said.exit) == (line, exit)

"""Jobs that write no run folder are followed and stopped all the same."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from testing.web.conftest import ROOT
from testing.web.live_queue import Queue
from web import actions

GENERATE = """\
job: generate
config:
  name: pictures
  process:
    - type: to_folder
      output_folder: {folder}
      model: {{name_or_path: tiny-sd}}
      generate: {{prompts: [a]}}
"""
PROGRAM = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from jobs.without_folder import watched
from toolkit.config_modules.loading import load_job
from toolkit.errors import JobStopped
try:
    with watched(load_job(sys.argv[1], "pictures"), total_steps=7) as (status, stop):
        status.phase("sampling", "Generating images - 0/7")
        status.tick(3)
        while not stop:
            time.sleep(0.01)
        raise JobStopped("stopped after 3 of 7 pictures")
except JobStopped:
    sys.exit(3)
"""


def test_its_progress_is_seen_and_a_stop_is_obeyed(settings, config, tmp_path):
    queue = Queue(replace(settings, command=(sys.executable, "-c", PROGRAM)), config)
    try:
        text = GENERATE.format(folder=tmp_path / "pictures")
        job = actions.create_job(queue.services, text, devices=["cpu:0"])
        assert actions.enqueue_job(queue.services, job.id).run_folders == ()
        queue.until(lambda: queue.get(job).step == 3)
        seen = queue.get(job)
        assert (seen.phase, seen.total_steps, seen.info) == ("sampling", 7, "Generating images - 0/7")
        with pytest.raises(Exception, match="no run yet that could obey"):
            actions.command_job(queue.services, job.id, "save")
        actions.stop_job(queue.services, job.id, "save")
        stopped = queue.until_status(job, "stopped")
        assert (stopped.reason, stopped.exit_code, stopped.step) == ("stopped after 3 of 7 pictures", 3, 3)
    finally:
        queue.close()

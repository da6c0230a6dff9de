"""Jobs as processes: started, followed, stopped, ended, and taken over by another server."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from testing.web.conftest import ROOT
from testing.web.live_queue import Queue, reasons, states
from toolkit.runs.process import identity_of
from web import actions
from web.app import make_services
from web.launchers.attempt import AttemptFolder, Owners

STAND_IN = (
    sys.executable,
    "-c",
    "import runpy, sys; sys.argv = sys.argv[1:]; sys.path.insert(0, '.'); "
    "runpy.run_path(sys.argv[0], run_name='__main__')",
    str(ROOT / "testing/torture/stand_in.py"),
)
# fmt: skip


@pytest.fixture
def queue(settings, config) -> Iterator[Queue]:
    """A queue whose jobs are stand-ins; whatever still runs at the end is killed."""
    queue = Queue(replace(settings, command=STAND_IN, stop_grace_s=1.0), config)
    yield queue
    queue.close()


def test_a_job_runs_to_its_end(queue):
    job = queue.add(steps=4)
    done = queue.until_status(job, "completed")
    assert (done.exit_code, done.exit_signal, done.attempt, done.step, done.total_steps) == (0, None, 1, 4, 4)
    assert states(queue, job) == ["draft", "queued", "starting", "running", "completed"]
    assert "attempt 1 from step 0" in queue.folder(job).output_path.read_text()
    assert queue.services.lanes.all()[2].job_id is None


def test_the_config_is_that_of_the_moment_it_was_enqueued(queue):
    queue.services.lanes.stop("cpu:0")
    first = queue.add("first", steps=1)
    queue.services.lanes.stop("cpu:0")
    text = queue.services.store.config(first.id)
    with queue.services.database.write() as tx:  # as if somebody could edit it while it waits
        tx.connection.exec_driver_sql("UPDATE configs SET text = ?", (text.replace("steps", "spoilt"),))
    queue.services.lanes.start("cpu:0")
    queue.until_status(first, "completed")
    assert queue.folder(first).config_path.read_text() == text


def test_a_failure_is_told_with_its_reason(queue):
    job = queue.until_status(queue.add(steps=1, exit=1), "failed")
    assert (job.exit_code, job.reason) == (1, "it was told to fail")


def test_a_program_that_cannot_start_fails_with_its_last_words(queue):
    queue.settings = replace(queue.settings, command=("/no/such/program",))
    queue.restart()
    job = queue.until_status(queue.add(), "failed")
    assert "/no/such/program" in job.reason


def test_a_killed_job_has_failed_and_its_lane_moves_on(queue):
    first, second = queue.add("first", steps=500), queue.add("second", steps=1)
    queue.until_status(first, "running")
    os.kill(queue.folder(first).owners().child.pid, signal.SIGKILL)
    done = queue.until_status(first, "failed")
    assert done.exit_signal == signal.SIGKILL and "SIGKILL" in done.reason
    queue.until_status(second, "completed")


def test_stopping_keeps_the_steps_and_going_on_resumes(queue):
    job = queue.add(steps=60, seconds=0.02)
    queue.until(lambda: queue.get(job).step >= 2)
    actions.stop_job(queue.services, job.id, "save")
    stopped = queue.until_status(job, "stopped")
    assert stopped.exit_code == 3 and 2 <= stopped.step < 60
    assert not (queue.run_folder(job) / "commands" / "stop").exists()
    actions.enqueue_job(queue.services, job.id)
    done = queue.until_status(job, "completed")
    assert done.attempt == 2 and done.step == 60
    assert f"attempt 2 from step {stopped.step}" in queue.folder(job).output_path.read_text()


def test_stopping_while_it_starts_is_not_lost(queue):
    job = queue.add(steps=500)
    queue.services.supervisor.tick()
    assert queue.get(job).status == "starting"
    actions.stop_job(queue.services, job.id, "save")
    assert queue.until_status(job, "stopped", "failed", "lost").status == "stopped"


def test_stopping_now_does_not_wait_for_a_step(queue):
    job = queue.add(steps=2, seconds=60)
    queue.until(lambda: queue.get(job).phase == "training")
    actions.stop_job(queue.services, job.id, "now")
    stopped = queue.until_status(job, "stopped")
    assert stopped.step == 0


def test_stopping_now_saves_nothing_however_fast_the_steps_are(queue):
    job = queue.add(steps=5000, seconds=0.001)
    queue.until(lambda: queue.get(job).step >= 1)
    actions.stop_job(queue.services, job.id, "now")
    stopped = queue.until_status(job, "stopped")
    assert (stopped.exit_code, stopped.reason) == (130, "stopped at once, without saving")
    assert not (queue.run_folder(job) / "commands" / "abort").exists()


def test_a_stop_can_be_made_harder_until_nothing_is_left(queue):
    job = queue.add(steps=5000, ignore=True)
    queue.until(lambda: queue.get(job).step >= 1)
    actions.stop_job(queue.services, job.id, "save")
    with pytest.raises(Exception, match="already"):
        actions.stop_job(queue.services, job.id, "save")
    actions.stop_job(queue.services, job.id, "kill")
    stopped = queue.until_status(job, "stopped")
    assert stopped.exit_signal == signal.SIGKILL and "on request" in stopped.reason


def test_a_run_that_stands_still_is_ended_after_the_grace_time(queue, monkeypatch):
    monkeypatch.setattr("web.queue.stopping._AFTER_GRACE", ((0.0, "terminate"), (0.5, "kill")))
    job = queue.add(steps=2, seconds=120, ignore=True)
    queue.until(lambda: queue.get(job).phase == "training")
    actions.stop_job(queue.services, job.id, "save")
    assert queue.until_status(job, "stopped").exit_signal == signal.SIGKILL


def test_a_job_returns_to_the_queue_and_runs_again(queue):
    job = queue.add(steps=60, seconds=0.03)
    queue.until(lambda: queue.get(job).step >= 1)
    queue.services.lanes.stop("cpu:0")
    actions.stop_job(queue.services, job.id, "save", requeue=True)
    waiting = queue.until_status(job, "queued")
    assert waiting.position == job.position and not waiting.requeue and waiting.stop_mode is None
    queue.services.supervisor.tick()
    assert queue.get(job).status == "queued"
    queue.services.lanes.start("cpu:0")
    assert queue.until_status(job, "completed").attempt == 2


def test_save_and_sample_reach_the_run(queue):
    job = queue.add(steps=500)
    with pytest.raises(Exception, match="does not run"):
        actions.command_job(queue.services, job.id, "save")
    queue.until(lambda: queue.get(job).step >= 1)
    actions.command_job(queue.services, job.id, "save")
    actions.command_job(queue.services, job.id, "sample")
    queue.until(lambda: {path.name.split("_")[0] for path in queue.run_folder(job).glob("sa*_*.txt")}
                >= {"save", "sample"})  # fmt: skip
    assert {"save asked for", "sample asked for"} <= set(reasons(queue, job))


def test_what_is_asked_for_while_a_run_starts_is_not_lost(queue):
    job = queue.add(steps=3)
    queue.until_status(job, "completed")
    (queue.run_folder(job) / "step.txt").unlink()
    actions.enqueue_job(queue.services, job.id)
    queue.services.supervisor.tick()
    assert queue.get(job).status == "starting"
    actions.command_job(queue.services, job.id, "save")
    queue.until_status(job, "completed")
    assert list(queue.run_folder(job).glob("save_*.txt"))


def test_another_server_adopts_what_runs_and_knows_how_it_ends(queue):
    job, other = queue.add("one", steps=30), queue.add("two", steps=90, devices=("gpu:0",))
    queue.until(lambda: queue.get(job).step >= 1 and queue.get(other).step >= 1)
    before = queue.folder(job).owners()
    queue.restart()
    queue.services.supervisor.tick()
    assert queue.get(job).status == "running" and queue.folder(job).owners() == before
    actions.stop_job(queue.services, other.id, "save")
    assert queue.until_status(other, "stopped").exit_code == 3
    assert queue.until_status(job, "completed").attempt == 1


def test_what_ended_while_no_server_looked_is_known(queue):
    job = queue.add(steps=3, exit=1)
    queue.until_status(job, "running")
    end = time.monotonic() + 20
    while queue.folder(job).exit() is None and time.monotonic() < end:
        time.sleep(0.02)
    queue.restart()
    queue.services.supervisor.tick()
    assert (queue.get(job).status, queue.get(job).exit_code) == ("failed", 1)


def test_a_program_whose_shim_was_killed_is_followed_to_its_end(queue):
    job = queue.add(steps=25)
    queue.until(lambda: queue.get(job).step >= 1)
    owners = queue.folder(job).owners()
    os.kill(owners.shim.pid, signal.SIGKILL)
    queue.until(lambda: owners.shim.is_running() is False)
    queue.services.supervisor.tick()
    assert queue.get(job).status == "running" and queue.services.lanes.all()[2].job_id == job.id
    done = queue.until_status(job, "completed", "lost", "failed")
    assert (done.status, done.step) == ("completed", 25)


def test_what_vanished_is_lost_and_its_lane_moves_on(queue):
    job, following = queue.add("one", steps=500), queue.add("two", steps=1)
    queue.until(lambda: queue.get(job).step >= 1)
    owners = queue.folder(job).owners()
    os.kill(owners.shim.pid, signal.SIGKILL)
    os.kill(owners.child.pid, signal.SIGKILL)
    lost = queue.until_status(job, "lost")
    assert "vanished" in lost.reason
    queue.until_status(following, "completed")
    actions.enqueue_job(queue.services, job.id)  # and it can go on
    queue.until(lambda: queue.get(job).step > lost.step)


def test_a_start_that_was_given_up_never_happens(queue, tmp_path):
    """A server dies between claiming a job and its shim's first breath: the job waits again, once."""
    job = queue.add(steps=2)
    claimed = queue.services.lanes.claim()
    assert claimed.id == job.id
    queue.restart()
    queue.services.supervisor.tick()  # nobody has begun: it goes back, and starts as the next attempt
    assert queue.get(job).attempt == 2
    folder = AttemptFolder(queue.settings.jobs_root, job.id, 1)
    assert folder.owners().revoked
    from web.launchers import shim

    assert shim.main([str(folder.root), job.id, "1", "--", "touch", str(tmp_path / "ran")]) == 1
    assert not (tmp_path / "ran").exists()
    assert queue.until_status(job, "completed").attempt == 2
    assert "the server ended before it had begun; it waits again" in reasons(queue, job)


def test_of_two_that_claim_a_start_one_wins(tmp_path):
    folder = AttemptFolder(tmp_path, "j", 1)
    folder.path.mkdir(parents=True)
    assert folder.claim(Owners(revoked=True)) and not folder.claim(Owners())
    assert folder.owners().revoked


def test_another_process_with_the_same_number_is_not_taken_for_the_job(queue):
    job = queue.add(steps=500)
    queue.until_status(job, "running")
    folder = queue.folder(job)
    owners = folder.owners()
    queue.services.supervisor.launcher.signal(folder, "kill")
    queue.until(lambda: folder.exit() is not None)
    folder.exit_path.unlink()
    mine = identity_of(os.getpid())
    folder.write_owners(
        Owners(shim=replace(owners.shim, pid=mine.pid), child=replace(owners.child, pid=mine.pid))
    )
    assert queue.until_status(job, "lost").status == "lost"


def test_after_a_reboot_nothing_is_taken_for_running(queue):
    job = queue.add(steps=500)
    queue.until_status(job, "running")
    folder = queue.folder(job)
    mine = identity_of(os.getpid())
    queue.services.supervisor.launcher.signal(folder, "kill")
    queue.until(lambda: folder.exit() is not None)
    folder.exit_path.unlink()
    folder.write_owners(Owners(shim=replace(mine, boot_id="another"), child=replace(mine, boot_id="another")))
    assert "restarted" in queue.until_status(job, "lost").reason


def test_only_one_of_two_servers_schedules(queue):
    queue.services.supervisor.tick()
    second = make_services(queue.settings)
    job = queue.add(steps=1)
    second.supervisor.tick()
    assert second.store.get(job.id).status == "queued"
    queue.until_status(job, "completed")
    queue.services.supervisor._lock.release()
    other = queue.add("other", steps=1)
    second.supervisor.tick()
    assert second.store.get(other.id).status == "starting"
    queue.until(lambda: second.supervisor.tick() or second.store.get(other.id).status == "completed")
    second.supervisor.stop()
    second.database.close()


def test_a_job_on_two_devices_waits_for_both_and_is_not_overtaken(queue):
    long = queue.add("long", devices=("gpu:0",), steps=15)
    queue.until_status(long, "running")
    pair = queue.add("pair", devices=("gpu:0", "gpu:1"), steps=1)
    late = queue.add("late", devices=("gpu:1",), steps=1)
    free = queue.add("free", devices=("cpu:0",), steps=1)
    queue.services.supervisor.tick()
    assert [queue.get(job).status for job in (pair, late, free)] == ["queued", "queued", "starting"]
    queue.until_status(late, "completed")
    began = [queue.get(job).started_at for job in (long, pair, late)]
    assert began == sorted(began) and queue.get(pair).status == "completed"


def test_the_environment_of_a_job_holds_its_devices_and_no_secret(queue, monkeypatch, tmp_path):
    monkeypatch.setenv("AI_TOOLKIT_AUTH", "the-secret")
    monkeypatch.setenv("MY_PASSWORD", "another-secret")
    queue.services.preferences.set("hf_token", "hub-secret")
    told = tmp_path / "told.json"
    program = f"import os, json; open({str(told)!r}, 'w').write(json.dumps(dict(os.environ)))"
    queue.settings = replace(queue.settings, command=(sys.executable, "-c", program))
    queue.restart()
    job = queue.until_status(queue.add(devices=("gpu:1", "gpu:0")), "completed")
    environment = json.loads(told.read_text())
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,1" and environment["HF_TOKEN"] == "hub-secret"
    assert environment["AI_TOOLKIT_AUTH"] == "" and "another-secret" not in environment.values()
    for path in [*queue.folder(job).path.rglob("*"), *Path(job.run_folders[0]).rglob("*")]:
        assert not path.is_file() or b"secret" not in path.read_bytes()


def test_names_are_never_taken_for_commands(queue, tmp_path):
    for number, name in enumerate(
        ["-rf", "$(touch x)", ";id", "`id`", "a\nb", "../up", "..", ".", "", "CON", "x."]
    ):
        with pytest.raises(Exception, match="name|config"):
            actions.create_job(queue.services, f"job: train\nconfig: {{name: {json.dumps(name)}}}", name=None)
        assert number >= 0
    assert queue.jobs() == []


def test_accelerate_is_put_before_the_program(queue):
    job = queue.add(launcher={"accelerate": 2})
    queue.settings = replace(queue.settings, command=("/python", "run.py"))
    queue.restart()
    seen = []
    queue.services.supervisor.launcher.submit = seen.append
    queue.services.supervisor.tick()
    folder = queue.folder(job)
    assert seen[0].argv == ["/python", "-m", "accelerate.commands.launch", "--num_processes", "2", "run.py",
                            str(folder.config_path), "--name=one"]  # fmt: skip


def test_under_accelerate_a_run_ends_as_it_says_itself(settings, config, tmp_path):
    program = tmp_path / "program.py"  # accelerate starts files only
    program.write_text(
        f"import runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"runpy.run_path({str(ROOT / 'testing/torture/stand_in.py')!r}, run_name='__main__')\n"
    )
    queue = Queue(replace(settings, command=(sys.executable, str(program))), config)
    try:
        job = queue.add(launcher={"accelerate": 1}, steps=5000, seconds=0.02)
        fails = queue.add("fails", devices=("gpu:0",), launcher={"accelerate": 1}, steps=1, exit=2)
        queue.until(lambda: queue.get(job).step >= 2, seconds=60)
        queue.services.lanes.stop("cpu:0")
        actions.stop_job(queue.services, job.id, "save", requeue=True)
        assert queue.until_status(job, "queued", "failed").status == "queued"
        failed = queue.until_status(fails, "failed")
        assert (failed.exit_code, failed.reason) == (2, "it was told to fail")
    finally:
        queue.close()


@pytest.mark.slow
def test_a_real_training_saves_stops_and_goes_on(settings, config):
    queue = Queue(settings, config)
    try:
        text = config("real", steps=400) + "      save: {save_every: 1000}\n"
        job = actions.create_job(queue.services, text, devices=["cpu:0"])
        actions.enqueue_job(queue.services, job.id)
        queue.until(lambda: queue.get(job).step >= 3, seconds=300)
        actions.command_job(queue.services, job.id, "save")
        queue.until(lambda: list(queue.run_folder(job).glob("real_0*.safetensors")), seconds=120)
        actions.stop_job(queue.services, job.id, "save")
        queue.until(lambda: queue.get(job).status == "stopped", seconds=120)
        stopped = queue.get(job)
        assert stopped.exit_code == 3 and stopped.loss > 0 and stopped.total_steps == 400
        shorter = text.replace("steps: 400", f"steps: {stopped.step + 2}")
        actions.edit_job(queue.services, job.id, shorter)
        actions.enqueue_job(queue.services, job.id)
        queue.until(lambda: queue.get(job).status in ("completed", "failed", "lost"), seconds=300)
        done = queue.get(job)
        assert (done.status, done.step, done.attempt) == ("completed", stopped.step + 2, 2), done.reason
        assert (queue.run_folder(job) / "real.safetensors").exists()
    finally:
        queue.close()

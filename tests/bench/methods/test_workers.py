"""Stopping a comparison: whatever ends it, its processes end, trainings are saved, and the same command goes on."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import DRAWN, command_of, jobs_of, read_records, run_job, tiny_suite

PATIENCE = 120  # seconds, on a machine that is busy
EPOCHS, STEPS = 12, 36
PART = replace(DRAWN, overrides=(*DRAWN.overrides, "train.batch_size=12", f"train.epochs={EPOCHS}"))
SUITE = tiny_suite("csq", "dcdh", "opqn", part=PART, bits=(24,))  # two are trained at a time, and one waits in line

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc").is_dir(), reason="counts processes by /proc")]


def qualities(records):
    return {
        (record["entry"], protocol): report["mean_average_precision"]
        for record in records
        for protocol, report in record["rows"][0]["protocols"].items()
    }


def steps_of(out):
    """Steps behind the trainings that are not over: name -> steps."""
    found = {}
    for path in out.glob("runs/*/*/checkpoint/state.json"):
        try:
            found[path.parent.parent.name] = json.loads(path.read_bytes())["progress"]["step"]
        except OSError:  # another one takes its place just now
            continue
    return found


def in_session(number, what=b""):
    """Processes of a session whose command has a word; the dead that nobody has taken note of do not count."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == number and state not in "ZX" and what in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:  # it has just ended
                continue
    return found


def wait_for(what, is_there):
    """Wait until something is the case, and say how long that took."""
    began = time.monotonic()
    while not is_there():
        assert time.monotonic() - began < PATIENCE, f"waited in vain: {what}"
        time.sleep(0.02)
    return time.monotonic() - began


class Started:
    """The verb in a session of its own, as in a terminal."""

    def __init__(self, command, out, jobs):
        self.out = out
        self.jobs = jobs
        self.before = steps_of(out)
        self.process = subprocess.Popen(
            [*command, "--jobs", str(jobs)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in in_session(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()

    def workers(self):
        return in_session(self.process.pid, b"spawn_main")

    def is_importing(self):
        """Whether a worker is at its imports, which take seconds."""
        with suppress(OSError):
            return any("libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in self.workers())
        return False

    def is_training(self):
        """Whether as many trainings as run at a time have gone on since this began."""
        return sum(steps > self.before.get(name, 0) for name, steps in steps_of(self.out).items()) >= self.jobs

    def end(self):
        """Wait for the verb and all its processes; return its status, what it printed, and how long the last took."""
        out, err = self.process.communicate(timeout=PATIENCE)
        seconds = wait_for("the end of all processes", lambda: not in_session(self.process.pid))
        assert "Traceback" not in err
        return self.process.returncode, out, err, seconds


def to_all(number):
    return lambda started: os.killpg(started.process.pid, number)


def to_parent(number):
    return lambda started: started.process.send_signal(number)


def to_a_worker(number):
    return lambda started: os.kill(started.workers()[0], number)


STOPPED = "opqn: stopped; what was measured and where trainings were is kept, the same command goes on"
KILLED = "opqn: a training's process was killed, perhaps for want of memory; try --jobs 1. The same command goes on"


def stopped(command, out, jobs, is_time, stop):
    """Start the verb, stop it when it is time, and return the status, the last line, and the steps of all trainings."""
    with Started(command, out, jobs) as started:
        wait_for("the time to stop", lambda: is_time(started))
        stop(started)
        status, printed, told, seconds = started.end()
    assert printed == ""
    assert seconds < 30
    after = steps_of(out)
    assert all(after.get(name, STEPS) >= steps for name, steps in started.before.items())  # nothing was lost
    return status, told.splitlines()[-1], after


def test_whatever_stops_a_comparison_its_processes_end_and_the_same_command_goes_on(data, tmp_path):
    out = tmp_path / "out"
    command = command_of(tmp_path / "program.py", SUITE, data, out)
    status, last, after = stopped(command, out, 2, Started.is_training, to_all(signal.SIGINT))  # Ctrl-C
    assert (status, last) == (130, STOPPED)
    assert len(after) == 2  # what waited in line was not begun
    status, last, _ = stopped(command, out, 1, Started.is_training, to_parent(signal.SIGTERM))
    assert (status, last) == (130, STOPPED)
    status, _, after = stopped(command, out, 1, Started.is_training, to_parent(signal.SIGKILL))
    assert status == -signal.SIGKILL
    assert after
    with Started(command, out, 2) as started:
        status, printed, told, _ = started.end()
    assert (status, steps_of(out)) == (0, {}), told
    assert json.loads(printed)["complete_cells"] == 2
    expected = [record for job in jobs_of(SUITE, data, tmp_path / "uninterrupted") for record in run_job(job)]
    assert qualities(read_records(out)) == qualities(expected)


def test_a_comparison_ends_in_good_order_while_it_starts_and_when_a_process_of_it_is_killed(data, tmp_path):
    out = tmp_path / "out"
    command = command_of(tmp_path / "program.py", SUITE, data, out)
    assert stopped(command, out, 1, Started.is_importing, to_all(signal.SIGINT)) == (130, STOPPED, {})
    status, last, after = stopped(command, out, 2, Started.is_training, to_a_worker(signal.SIGKILL))
    assert (status, last) == (1, KILLED)
    assert len(after) >= 2

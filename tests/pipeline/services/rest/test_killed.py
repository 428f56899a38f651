"""The server as users start it: killed in the middle of several jobs, stopped, started twice on one spool."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest

from tests.pipeline.services.rest.conftest import form
from tests.scans.pictures import save
from tumorlens.data.phantom import phantom_slice

pytestmark = pytest.mark.slow
PATIENCE_S = 240  # a busy machine


@pytest.fixture
def start(tmp_path):
    """Start a server on one spool; what is left of it at the end is killed."""
    servers = []

    def start():
        servers.append(Server(tmp_path))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.communicate()


class Server:
    """A `tumorlens serve`; `ask` sends it a request."""

    def __init__(self, folder):
        self.errors = (folder / "errors.txt").open("a+")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tumorlens.pipeline.cli.app", "serve", "--port", "0", "--no-browser"),
                *("--device", "cpu", "--spool", str(folder / "spool")),
            ],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.line = self.process.stdout.readline()
        found = re.search(r"http://([\d.]+):(\d+)", self.line)
        self.place = (found[1], int(found[2])) if found else None

    def ask(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection(*self.place, timeout=120)
        try:
            connection.request(method, f"/v1{path}", body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def submit(self, content):
        status, text = self.ask("POST", "/scans", *form(content))
        assert status == 202, text
        return json.loads(text)["id"]

    def states(self):
        return {job["id"]: job["state"] for job in json.loads(self.ask("GET", "/scans")[1])["jobs"]}

    def until(self, is_true):
        ends = time.monotonic() + PATIENCE_S
        while not is_true(states := self.states()):
            assert time.monotonic() < ends, states
            time.sleep(0.05)
        return states


def pictures(folder, n):
    for k in range(n):
        path = folder / f"{k}.png"
        save(path, phantom_slice(60 + k, "meningioma", size=96 + k, pixel_mm=1.7).image)
        yield path.read_bytes()


def results(tmp_path):
    """Of each job, the inode of its result: it is another one where the job ran again."""
    return {
        file.parts[-4]: file.stat().st_ino for file in (tmp_path / "spool" / "jobs").glob("*/results/1/result.json")
    }


def done_jobs(tmp_path):
    """The ids of the jobs that are done, read from a copy of a spool that nobody has open."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (tmp_path / "spool").glob("jobs.sqlite*"):
        shutil.copy(file, copy)
    with closing(sqlite3.connect(copy / "jobs.sqlite")) as database:
        return {id for (id,) in database.execute("SELECT id FROM jobs WHERE state = 'done'")}


def test_a_kill_in_the_middle_costs_no_job_and_runs_none_twice(start, tmp_path):
    server = start()
    ids = [server.submit(content) for content in pictures(tmp_path, 24)]
    bad = server.submit(b"no picture")
    server.until(lambda states: "done" in states.values())
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    finished, done = results(tmp_path), done_jobs(tmp_path)
    assert done and len(done) < len(ids), "it was in the middle"
    server = start()
    assert set(server.states()) == {*ids, bad}, "every accepted job is there"
    states = server.until(lambda states: not {"waiting", "running"} & set(states.values()))
    assert states == {**dict.fromkeys(ids, "done"), bad: "failed"}
    again = results(tmp_path)
    assert all(again[f"rest.{id}"] == finished[f"rest.{id}"] for id in done), "none ran twice"
    sizes = [json.loads(server.ask("GET", f"/scans/{id}/files/result.json")[1])["scan"]["shape"] for id in ids]
    assert sizes == [[96 + k, 96 + k] for k in range(24)], "each has its own result"


def test_a_stop_leaves_what_runs_for_the_next_start_and_a_second_server_is_refused(start, tmp_path):
    server = start()
    second = start()
    assert second.process.wait(PATIENCE_S) == 2
    second.errors.seek(0)
    assert re.search(r"another run \(process \d+\) writes here; .* choose another --spool\n$", second.errors.read())
    ids = [server.submit(content) for content in pictures(tmp_path, 16)]  # only now: a fast machine needs two seconds
    server.until(lambda states: {"running", "done"} & set(states.values()))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 143
    server = start()
    assert server.until(lambda states: set(states.values()) == {"done"}) == dict.fromkeys(ids, "done")
    server.errors.seek(0)
    assert str(tmp_path) not in server.errors.read().replace(f"{tmp_path / 'spool'}: another run", "")

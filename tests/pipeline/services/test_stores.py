"""Scans behind URLs: local folders that stand for them, and what comes back."""

from __future__ import annotations

import functools
import re
import shutil
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest

from tests.scans.pictures import save
from tests.scans.studies import SICK, series
from tumorlens.data.errors import InputError
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline.batch.inputs import collect
from tumorlens.pipeline.services.stores import mirror
from tumorlens.pipeline.services.stores.mirror import mirror_inputs
from tumorlens.pipeline.services.stores.output import Output
from tumorlens.pipeline.services.stores.parcel import parcel_of
from tumorlens.pipeline.services.stores.store import Store


@pytest.fixture
def memory():
    """A store in memory, empty at the beginning."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    return store


@pytest.fixture
def hospital_in_memory(memory, hospital):
    save(hospital / "picture.png", phantom_slice(1, "no_tumor").image)
    for file in hospital.rglob("*"):
        if file.is_file():
            memory.pipe_file(f"/hospital/{file.relative_to(hospital)}", file.read_bytes())
    return "memory://hospital"


@pytest.mark.parametrize("head", [2**18, 400], ids=["whole headers", "cut headers"])
def test_scans_of_a_url_are_those_of_the_folder(head, hospital_in_memory, hospital, tmp_path, monkeypatch):
    """Names, series, and the choice among them, also where a header is longer than what is read of it at first."""
    monkeypatch.setattr(mirror, "_HEAD", head)
    inputs = mirror_inputs([hospital_in_memory], tmp_path / "urls", None)
    found = collect(inputs.paths, tmp_path / "out", tmp_path, (), inputs.origins)
    known = collect([str(hospital)], tmp_path / "out", tmp_path)
    assert [job.name for job in found.jobs] == [job.name for job in known.jobs]
    assert [(name, c.chosen, c.reason) for name, c in found.candidates] == [
        (name, c.chosen, c.reason) for name, c in known.candidates
    ]
    assert {job.place for job in found.jobs} == {
        "memory://hospital/study/IMAGES",
        "memory://hospital/picture.png",
    }


def test_another_process_fetches_the_very_files(hospital_in_memory, hospital, tmp_path):
    inputs = mirror_inputs([hospital_in_memory], tmp_path / "urls", None)
    for job in collect(inputs.paths, tmp_path / "out", tmp_path, (), inputs.origins).jobs:
        parcel = parcel_of(job, inputs.remote)
        moved = parcel.open_in(tmp_path / "elsewhere")
        parcel.fetch(tmp_path / "elsewhere")
        for file in moved.files or (moved.path,):
            source = hospital / file.relative_to(tmp_path / "elsewhere")
            assert file.read_bytes() == source.read_bytes()
        assert moved.place == job.place and moved.name == job.name


def test_series_that_differ_beyond_their_headers_are_two_scans(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "_HEAD", 2000)  # less than the pixels
    for path in series(tmp_path / "s", SICK):
        data = path.read_bytes()
        memory.pipe_file(f"/x/a/{path.name}", data)
        memory.pipe_file(f"/x/b/{path.name}", data[:-1] + bytes([data[-1] ^ 1]))
    inputs = mirror_inputs(["memory://x/a", "memory://x/b"], tmp_path / "urls", None)
    work = collect(inputs.paths, tmp_path / "out", tmp_path, ("all",), inputs.origins)
    assert len(work.jobs) == 2 and not work.copies


def test_one_file_and_unusual_names(memory, tmp_path):
    picture = save(tmp_path / "1.png", phantom_slice(1, "no_tumor").image).read_bytes()
    for name in ("/b/one [1].png", "/b/../up.png", "/b/.hidden.png", "/b/deep/two.png"):
        memory.store[name] = fsspec.implementations.memory.MemoryFile(memory, name, picture)
    single = mirror_inputs(["memory://b/one [1].png"], tmp_path / "1", None)
    (job,) = collect(single.paths, tmp_path / "out", tmp_path, (), single.origins).jobs
    assert (job.name, job.place) == ("one [1].png", "memory://b/one [1].png")
    inputs = mirror_inputs(["memory://b"], tmp_path / "2", None)
    work = collect(inputs.paths, tmp_path / "out", tmp_path, (), inputs.origins)
    assert [job.name for job in work.jobs] == ["one [1].png", "deep/two.png"]
    assert [job.name for job in inputs.problems] == ["../up.png"] and "rename it" in inputs.problems[0].error
    assert not list(tmp_path.rglob("up.png"))


def test_results_of_an_earlier_run_are_no_scans(memory, tmp_path):
    for name in ("scan.png", "out/scan/overlay.png", "out/results.csv", "outer.png"):
        memory.pipe_file(f"/c/{name}", b"x")
    inputs = mirror_inputs(["memory://c"], tmp_path / "urls", "memory://c/out")
    work = collect(inputs.paths, tmp_path / "out", tmp_path, (), inputs.origins)
    assert [job.name for job in work.jobs] == ["outer.png", "scan.png"]


def test_a_store_follows_its_folder(memory, tmp_path):
    for name, data in {
        "a/result.json": b"{}",
        "a/mask.png": b"12345",
        "a/mine.txt": b"x",
        "results.csv": b"old",
    }.items():
        memory.pipe_file(f"/out/{name}", data)
    out = Output.at("memory://out", tmp_path)
    out.pull(content=True)
    assert (out.folder / "a" / "result.json").read_bytes() == b"{}"
    assert (out.folder / "a" / "mask.png").stat().st_size == 5
    out.push()
    assert memory.cat_file("/out/a/mask.png") == b"12345"  # what is only sketched here is not written back
    (out.folder / "a" / "mask.png").unlink()
    (out.folder / "results.csv").write_text("newer")
    out.push()
    assert memory.cat_file("/out/results.csv") == b"newer"
    assert {name.removeprefix("/out/") for name in memory.find("/out")} == {
        "a/result.json",
        "a/mine.txt",
        "results.csv",
    }


def test_a_store_that_denies_access_says_so(memory, monkeypatch):
    def deny(*args, **options):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(memory), "find", deny)
    with pytest.raises(InputError, match="memory://d: the store denies access"):
        Store("memory://d").list()


def test_every_input_of_one_folder_is_fetched(memory, tmp_path):
    """Two single files and a folder below, all of one store."""
    for number, name in enumerate(("a.png", "b.png", "deep/c.png")):
        picture = save(tmp_path / "s" / f"{number}.png", phantom_slice(number, "glioma").image)
        memory.pipe_file(f"/one/{name}", picture.read_bytes())
    urls = ["memory://one/a.png", "memory://one/b.png", "memory://one/deep"]
    inputs = mirror_inputs(urls, tmp_path / "urls", None)
    jobs = collect(inputs.paths, tmp_path / "out", tmp_path, (), inputs.origins).jobs
    assert len(jobs) == 3
    for n, job in enumerate(jobs):
        parcel = parcel_of(job, inputs.remote)
        parcel.fetch(tmp_path / str(n))
        path = parcel.open_in(tmp_path / str(n)).path
        assert path.read_bytes() == memory.cat_file(job.place.removeprefix("memory:/"))


def test_a_file_that_cannot_be_read_does_not_stop_the_others(memory, tmp_path, monkeypatch):
    for path in series(tmp_path / "s", SICK):
        memory.pipe_file(f"/x/a/{path.name}", path.read_bytes())
    memory.pipe_file("/x/bad.dcm", b"x")
    cat = type(memory).cat_file

    def denied(self, path, *args, **options):
        if path.endswith("bad.dcm"):
            raise PermissionError("Access Denied")
        return cat(self, path, *args, **options)

    monkeypatch.setattr(type(memory), "cat_file", denied)
    inputs = mirror_inputs(["memory://x"], tmp_path / "urls", None)
    assert len(collect(inputs.paths, tmp_path / "out", tmp_path, (), inputs.origins).jobs) == 1
    (problem,) = inputs.problems
    assert problem.name == "bad.dcm"
    assert problem.with_path(problem.error).startswith("memory://x/bad.dcm: the store denies access")


def test_results_beside_the_scans_are_refused_by_one_sentence(memory, tmp_path):
    memory.pipe_file("/c/scan.png", b"x")
    with pytest.raises(InputError, match="-o memory://c: this is an input, too"):
        mirror_inputs(["memory://c"], tmp_path / "urls", "memory://c/")


@pytest.fixture
def web(tmp_path):
    """The address of a server of the folder ``web``, whose lists have no sizes."""
    handler = type("Handler", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=tmp_path / "web")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_scans_of_a_web_server_are_those_of_its_folder(web, hospital, tmp_path):
    shutil.copytree(hospital, tmp_path / "web" / "some scans")
    save(tmp_path / "web" / "some scans" / "one two.png", phantom_slice(1, "no_tumor").image)
    with zipfile.ZipFile(tmp_path / "web" / "some scans" / "study.zip", "w") as archive:
        for path in series(tmp_path / "s", SICK):
            archive.write(path, path.name)
    inputs = mirror_inputs([f"http://{web}/some%20scans/"], tmp_path / "urls", None)
    found = collect(inputs.paths, tmp_path / "out", tmp_path, (), inputs.origins)
    known = collect([str(tmp_path / "web" / "some scans")], tmp_path / "out", tmp_path / "known")
    assert [(job.name, job.error) for job in found.jobs] == [(job.name, job.error) for job in known.jobs]
    for n, job in enumerate(found.jobs):
        parcel = parcel_of(job, inputs.remote)
        parcel.fetch(tmp_path / str(n))
        moved = parcel.open_in(tmp_path / str(n))
        assert all(file.stat().st_size > 1000 for file in moved.files or (moved.path,))


def test_what_opens_a_store_is_not_shown(web, tmp_path):
    save(tmp_path / "web" / "a b.png", phantom_slice(1, "no_tumor").image)
    inputs = mirror_inputs([f"http://me:secret@{web}/a%20b.png?signature=x/y%2Bz"], tmp_path / "urls", None)
    (job,) = collect(inputs.paths, tmp_path / "out", tmp_path, (), inputs.origins).jobs
    assert (job.name, job.place) == ("a b.png", f"http://{web}/a b.png")
    parcel = parcel_of(job, inputs.remote)
    parcel.fetch(tmp_path / "there")
    assert (tmp_path / "there" / "a b.png").read_bytes() == (tmp_path / "web" / "a b.png").read_bytes()
    with pytest.raises(InputError) as error:
        mirror_inputs([f"http://me:secret@{web}/none?signature=x/y%2Bz"], tmp_path / "urls2", None)
    assert "secret" not in str(error.value) and "signature" not in str(error.value)


def test_a_folder_of_a_web_server_is_not_listed_by_a_signature(web, tmp_path):
    save(tmp_path / "web" / "scans" / "a.png", phantom_slice(1, "no_tumor").image)
    sentence = f"http://{web}/scans: a folder cannot be listed by a URL with a query; name its files"
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        mirror_inputs([f"http://{web}/scans/?signature=x"], tmp_path / "urls", None)


@pytest.mark.parametrize("end", ["", "/"])
def test_a_web_server_that_does_not_answer_is_no_missing_file(tmp_path, end):
    with pytest.raises(InputError, match=r"^http://127.0.0.1:9/scans: the store cannot be used \(Cannot connect"):
        mirror_inputs([f"http://127.0.0.1:9/scans{end}"], tmp_path / "urls", None)

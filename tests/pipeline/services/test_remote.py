"""Scans behind URLs: local folders that stand for them, and what comes back."""

from __future__ import annotations

import fsspec
import pytest

from tests.scans.pictures import save
from tests.scans.studies import SICK, series
from tumorlens.data.errors import InputError
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline.batch.inputs import collect
from tumorlens.pipeline.services import remote
from tumorlens.pipeline.services.remote import Output, mirror_inputs, parcel_of
from tumorlens.pipeline.services.stores import Store


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
    monkeypatch.setattr(remote, "_HEAD", head)
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
    monkeypatch.setattr(remote, "_HEAD", 2000)  # less than the pixels
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

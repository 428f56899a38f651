"""Dockerfile and compose.yaml name commands, options, extras and files that exist, and run nothing as root."""

from __future__ import annotations

import json
import re
import tomllib
from fnmatch import fnmatch

import click
import pytest
import yaml

from tests.conftest import REPOSITORY
from tumorlens.pipeline.cli.app import app

COMPOSE = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
EXTRAS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def instructions(word):
    """The arguments of each instruction of one kind, in order, with continued lines joined."""
    lines = re.sub(r"\\\n\s*", "", DOCKERFILE).splitlines()
    return [line.removeprefix(word).strip() for line in lines if line.startswith(f"{word} ")]


def check_call(arguments):
    """Let click parse a call of ours, without running it."""
    context = click.Context(app)
    command = app.get_command(context, arguments[0])
    assert command is not None, arguments
    command.make_context(arguments[0], list(arguments[1:]), parent=context)


def test_the_image_calls_a_command_that_exists():
    assert json.loads(instructions("ENTRYPOINT")[-1]) == ["tumorlens"]
    check_call(json.loads(instructions("CMD")[-1]))


OURS = [name for name, service in COMPOSE["services"].items() if service["image"] == "tumorlens"]


def test_one_service_builds_the_image_of_the_others():
    (builder,) = [name for name in OURS if "build" in COMPOSE["services"][name]]
    assert len(OURS) > 1
    assert all(builder in COMPOSE["services"][name]["depends_on"] for name in OURS if name != builder)


@pytest.mark.parametrize("name", OURS)
def test_a_service_calls_a_command_that_exists(name):
    check_call(COMPOSE["services"][name]["command"])


def test_a_wrong_option_would_be_found():
    with pytest.raises(click.UsageError):
        check_call(["serve", "--no-such-option"])


def test_the_image_does_not_run_as_root():
    last = DOCKERFILE.rindex("\nFROM ")
    user = DOCKERFILE.index("\nUSER tumorlens\n", last)
    assert user < DOCKERFILE.index("\nENTRYPOINT ", last)
    assert "\nUSER " not in DOCKERFILE[user + 1 :]
    assert any(line.startswith("useradd ") and line.endswith(" tumorlens") for line in instructions("RUN"))


def test_the_image_is_asked_for_its_health_where_it_listens():
    (check,) = instructions("HEALTHCHECK")
    port = json.loads(instructions("CMD")[-1])[-1]
    assert f"http://127.0.0.1:{port}/v1/health" in check
    python, option, code = json.loads(check.split("CMD ")[1])
    assert (python, option) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")


def test_the_extras_exist():
    (install,) = [line for line in instructions("RUN") if "pip install" in line]
    (extras,) = re.findall(r"'\.\[(.*)\]'", install)
    assert set(extras.split(",")) <= set(EXTRAS)


def test_the_builder_gets_what_an_installation_needs():
    rules = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    needed |= {folder.split("/")[0] for folder in project["tool"]["setuptools"]["package-dir"].values()}

    def goes(name):
        return [rule for rule in rules if fnmatch(name, rule.removeprefix("!"))][-1].startswith("!")

    present = {path.name for path in REPOSITORY.iterdir()}
    assert {name for name in present if goes(name)} == needed


def test_orthanc_sends_to_the_node_and_the_node_back():
    environment = COMPOSE["services"]["orthanc"]["environment"]["ORTHANC_JSON"]
    orthanc = json.loads(re.sub(r"\$\{\w+:\?[^}]*\}", "secret", environment))
    title, host, port = orthanc["DicomModalities"]["tumorlens"]
    node = COMPOSE["services"][host]["command"]
    assert (title, port) == ("TUMORLENS", 11112)  # what `dicom-node` listens to, if nothing else is said
    assert node[node.index("--caller") + 1] == orthanc["DicomAet"]
    assert node[node.index("--send-to") + 1] == f"{orthanc['DicomAet']}@orthanc:{orthanc['DicomPort']}"
    (mounted,) = COMPOSE["services"]["orthanc"]["configs"]
    assert orthanc["LuaScripts"] == [mounted["target"]]
    assert "/modalities/tumorlens/store" in COMPOSE["configs"][mounted["source"]]["content"]


def test_ports_are_open_to_this_machine_alone():
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))

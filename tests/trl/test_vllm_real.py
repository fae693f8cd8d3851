"""vLLM itself, on a CPU (`make test-vllm`): TRL's server and colocate modes, decoding processors, a judge, engines.

What stands in for a GPU is in `vllm_on_cpu`; besides, vLLM runs eagerly, and one engine serves all colocate runs.
Figures are printed; `-s` shows them.
"""

import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
if importlib.util.find_spec("vllm") is not None:
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # engines live in this process: they start sooner
pytest.importorskip("vllm.v1", reason="vLLM lives in an environment of its own: make test-vllm")
sys.path.insert(0, str(HERE))

import vllm_on_cpu as cpu  # noqa: E402

from autotelic import functional as F  # noqa: E402
from autotelic.cli.main import main  # noqa: E402
from autotelic.cli.train import train  # noqa: E402
from autotelic.controls.entropy_control import EntropyControlWarning  # noqa: E402
from autotelic.lm.engines import open_engine  # noqa: E402
from autotelic.lm.load import load_model  # noqa: E402
from autotelic.lm.sampling import sample  # noqa: E402
from autotelic.tasks import model_path  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1800)]
warnings.simplefilter("ignore", EntropyControlWarning)
PROMPTS = ["1+1=?", "12+7-5=?", "9-4+3=?", "30-8=?"]
METHODS = {
    "clip_cov": ("grpo", {"entropy_control": "clip_cov,fraction=0.1,low=0.01,high=99", "learning_rate": 2e-3}),
    "kl_cov": ("grpo", {"entropy_control": "kl_cov,fraction=0.1", "learning_rate": 2e-3}),
    "empo": (
        "empo",
        {"importance_sampling_level": "token", "epsilon": 0.2, "learning_rate": 2e-3},
    ),
    "one_shot_em": ("one_shot_em", {"learning_rate": 2e-4}),
}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def serve(model, length):
    """Start `trl vllm-serve`; yield its address once it answers."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "trl"), "vllm-serve", "--model", str(model), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--max_model_len", str(length), "--enforce_eager", "true"]
    command += ["--worker-extension-cls", "vllm_on_cpu.Worker"]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    log = Path(os.environ.get("TMPDIR", "/tmp")) / f"vllm-serve-{port}.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environ, stdout=out, stderr=out)
    url, started = f"http://127.0.0.1:{port}", time.monotonic()
    try:
        while True:
            assert process.poll() is None and time.monotonic() - started < 900, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(2)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        log.unlink()


@pytest.fixture(scope="module")
def server():
    yield from serve(model_path("any_pair"), 64)


@pytest.fixture(scope="module")
def engine():
    """TRL builds the engine of the first colocate run, and the others get it: a start takes a minute."""
    from trl.generation import vllm_generation

    real, kept = vllm_generation.LLM, {}

    def build(**settings):
        if not kept:
            kept["engine"] = real(**settings | {"enforce_eager": True})
        return kept["engine"]

    vllm_generation.LLM = build
    yield
    vllm_generation.LLM = real


def run(folder, method, mode, url=None, model="any_pair", **more):
    """Train two rollouts of two updates each with the command; return the rows of its metrics."""
    name, settings = METHODS[method]
    settings = {
        "model_name_or_path": model,
        "dataset": "chain_sums:train",
        "dataset_limit": 64,
        "output_dir": folder,
        "num_generations": 8,
        "per_device_train_batch_size": 16,
        "steps_per_generation": 2,
        "max_completion_length": 16,
        "max_steps": 4,
        "save_strategy": "no",
        "use_vllm": "true",
        "vllm_mode": mode,
        "quiet": "true",
        **({"vllm_max_model_length": 64} if url is None else {"vllm_server_base_url": url}),
        **({} if url is None else {"vllm_group_port": free_port()}),
        **settings,
        **more,
    }
    summary = train(name, [text for key, value in settings.items() for text in (f"--{key}", str(value))])
    assert summary["finished"] and summary["step"] == settings["max_steps"]
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def said(title, rows):
    """Print the mismatch of each rollout; return it."""
    found = [{name: row[name] for name in row if name.startswith("sampler/")} for row in rows if "sampler/k3" in row]
    print(title, *(" ".join(f"{name[8:]} {value:.2g}" for name, value in row.items()) for row in found), sep="; ")
    return found


def check_training(method, rows, folder):
    """Two rollouts in step with the policy, tokens chosen, weights moved."""
    mismatches = said(method, rows)
    assert len(mismatches) == 2
    for row in mismatches:
        assert 0 < row["sampler/k3"] < 0.01 and abs(row["sampler/k1"]) < 0.02 and row["sampler/max"] < 1.0
        assert row["sampler/cut"] < 0.2
    if "cov" in method:
        assert all(row["selected/realised"] > 0 for row in rows if "selected/realised" in row)
    before, after = load_model("any_pair")[0], load_model(folder)[0]
    moved = max(float((a - b).abs().max()) for a, b in zip(after.parameters(), before.parameters(), strict=True))
    assert moved > 1e-4


def test_a_server_samples_from_the_model(server):
    """Its samples' surprisal, less the exact entropy at the same places, has mean 0: temperature 1, nothing cut off."""
    asked = open_engine(server, str(model_path("any_pair")))
    got = sample(asked, asked.tokenizer, PROMPTS, k=64, max_new_tokens=24, seed=5)
    assert got.done.all() and all(got.tokens) and len(set(got.texts)) > 20
    model, tokenizer = load_model("any_pair")
    differences = []
    for p, prompt in enumerate(PROMPTS):
        start = tokenizer(prompt)["input_ids"]
        for tokens in got.tokens[p * 64 : (p + 1) * 64]:
            with torch.no_grad():
                logits = model(torch.tensor([[*start, *tokens]])).logits[0, len(start) - 1 : -1].float()
            surprisal = -logits.log_softmax(-1)[range(len(tokens)), tokens]
            differences.append(float((surprisal - F.token_entropy(logits)).sum()))
    found = torch.tensor(differences)
    z = float(found.mean() / (found.std() / math.sqrt(len(found))))
    print(f"server: surprisal less entropy {float(found.mean()):.4f} nats a response, z = {z:.2f}")
    assert abs(z) < 4


def test_eval_and_select_against_a_server(server, tmp_path, capsys):
    model = str(model_path("any_pair"))
    sampling = ["--limit", "12", "--max-new-tokens", "24", "--seed", "1", "--json"]
    assert main(["eval", model, "--engine", server, "--k", "16", *sampling]) == 0
    out, err = capsys.readouterr()
    served = json.loads(out)
    assert main(["eval", model, "--k", "16", *sampling]) == 0
    ours = json.loads(capsys.readouterr().out)
    assert "no entropy" in err and "entropy" not in served and served["settings"]["engine"] == server
    assert abs(served["mean@16"]["value"] - ours["mean@16"]["value"]) < 0.15
    assert abs(served["length"]["value"] - ours["length"]["value"]) < 1.0
    ranked = tmp_path / "ranked.jsonl"
    source = ["select", "chain_sums:train", "--model", model, "--engine", server, "--k", "8"]
    assert main([*source, *sampling, "--output", str(ranked)]) == 0
    assert len(ranked.read_text().splitlines()) == 12


@pytest.mark.parametrize("method", METHODS)
def test_server_mode(server, method, tmp_path, monkeypatch):
    cpu.send_through_the_store(monkeypatch)
    check_training(method, run(tmp_path / "run", method, "server", server), tmp_path / "run")


@pytest.mark.parametrize("method", METHODS)
def test_colocate_mode(engine, method, tmp_path):
    check_training(method, run(tmp_path / "run", method, "colocate"), tmp_path / "run")


def test_without_synchronisation_the_mismatch_shows(engine, tmp_path, monkeypatch):
    """The check of the checks: the second rollout comes from weights that are two updates old."""
    from trl.generation.vllm_generation import VLLMGeneration

    fast = {"learning_rate": 1e-2}
    good = said("in step", run(tmp_path / "good", "clip_cov", "colocate", **fast))
    real, calls = VLLMGeneration.sync_weights, []

    def once(self):
        if not calls:
            real(self)
        calls.append(1)

    monkeypatch.setattr(VLLMGeneration, "sync_weights", once)
    stale = said("out of step", run(tmp_path / "stale", "clip_cov", "colocate", **fast))
    assert len(calls) > 1 and stale[1]["sampler/k3"] > 5 * good[1]["sampler/k3"]


def lengths(completions, **kwargs):
    """A reward that differs within every group."""
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_selection_by_the_samplers_log_probabilities(engine, temperature, make_trainer):
    """No correction, one update a rollout: tokens are chosen without a pass of ours. Against the policy's own numbers.

    At temperature 0.5 the same agreement says that both sides divide by it once.
    """
    from autotelic.trl import ClipCov, with_entropy_control

    model, tokenizer = load_model("any_pair")
    trainer = make_trainer(
        with_entropy_control,
        model=model,
        prompts=PROMPTS,
        reward_funcs=lengths,
        entropy_control=ClipCov(fraction=0.1, low=0.01, high=99.0),
        use_vllm=True,
        vllm_mode="colocate",
        vllm_max_model_length=64,
        vllm_importance_sampling_correction=False,
        temperature=temperature,
        per_device_train_batch_size=32,
        num_generations=8,
        steps_per_generation=1,
        max_completion_length=16,
    )
    assert trainer.processing_class.get_vocab() == tokenizer.get_vocab()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps, trainer._step = 1, 0
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert inputs.get("old_per_token_logps") is None
    mask = inputs["completion_mask"].bool()
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    with torch.no_grad():
        ours = trainer._get_per_token_logps_and_entropies(trainer.model, ids, attention, mask.shape[1])[0]
    theirs, plan = inputs["sampling_per_token_logps"], inputs["plan"]
    off = (ours - theirs)[mask].abs()
    expected = F.token_covariance(ours, inputs["advantages"].unsqueeze(1).expand(mask.shape), mask)
    apart = (plan.covariance - expected)[mask].abs()
    assert float(expected[mask].max()) > 0.01
    largest = float(off.max() * inputs["advantages"].abs().max())
    inside = (expected > 0.01) == (plan.covariance > 0.01)
    print(
        f"temperature {temperature}: |ln r| mean {float(off.mean()):.2g}, max {float(off.max()):.2g}; covariance apart "
        f"by mean {float(apart.mean()):.2g}, max {float(apart.max()):.2g} of {float(expected[mask].max()):.2g}; "
        f"the same side of the lower bound: {float(inside[mask].float().mean()):.3f}"
    )
    assert float(off.mean()) < 0.03 and float(apart.max()) < 2 * largest + 1e-4
    assert bool(plan.selected.any()) and float(inside[mask].float().mean()) > 0.95


def test_decoding_processors(monkeypatch):
    """Both inside vLLM, one after the other: a batch is its rows, the likeliest token stays, entropy falls."""
    from autotelic.decoding import vllm as processors

    seen: dict[str, list] = {}

    def watched(cls):
        apply = cls.apply

        def keep(self, logits):
            before, started = logits.clone(), time.perf_counter()
            after = apply(self, logits)
            seen.setdefault(cls.__name__, []).append((before, after.clone(), time.perf_counter() - started))
            return after

        monkeypatch.setattr(cls, "apply", keep)

    settings = {
        "entropy_minimizer": {"floor": 0.1, "num_steps": 10},
        "adaptive_temperature": {"alpha": 0.5, "floor": 0.05},
    }
    classes = {"entropy_minimizer": processors.EntropyMinimizerVLLM}
    classes["adaptive_temperature"] = processors.AdaptiveTemperatureVLLM
    for cls in classes.values():
        watched(cls)
    names = [f"autotelic.decoding.vllm:{cls.__name__}" for cls in classes.values()]
    ours = open_engine(
        "vllm", "any_pair", {"max_model_len": 64, "logits_processors": names, "additional_config": settings}
    )
    got = sample(ours, ours.tokenizer, PROMPTS, k=16, temperature=1.5, max_new_tokens=16)
    assert got.done.all() and set(seen) == {cls.__name__ for cls in classes.values()}
    for key, cls in classes.items():
        calls = seen[cls.__name__]
        moved = 0
        for before, after, _ in calls:
            assert torch.equal(before.argmax(-1), after.argmax(-1))
            assert bool((F.token_entropy(after) <= F.token_entropy(before) + 1e-4).all())
            alone = torch.cat([cls.function(row[None], **settings[key]) for row in before])
            torch.testing.assert_close(after, alone, rtol=1e-4, atol=1e-4)
            moved += int((F.token_entropy(after) < F.token_entropy(before) - 1e-3).sum())
        rows = sum(len(before) for before, _, _ in calls)
        cost = 1e6 * sum(seconds for _, _, seconds in calls) / rows
        print(f"{cls.__name__}: {rows} tokens, {moved} changed, {cost:.0f} us a token in vLLM (18 words)")
        assert moved > 0
    seen.clear()
    greedy = sample(ours, ours.tokenizer, PROMPTS, temperature=0, max_new_tokens=16)
    model, tokenizer = load_model("any_pair")
    assert greedy.texts == sample(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=16).texts
    assert not seen  # a greedy request does not pay


def test_eval_with_vllm(capsys):
    """The command by itself, in a process of its own as a user has it."""
    command = [sys.executable, "-m", "autotelic", "eval", "any_pair", "--engine", "vllm,max_model_len=64"]
    command += ["--limit", "20", "--k", "16", "--max-new-tokens", "24", "--json"]
    environ = {key: value for key, value in os.environ.items() if key != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout)
    assert main([*command[3:5], *command[7:]]) == 0
    ours = json.loads(capsys.readouterr().out)
    print("eval:", {name: (theirs[name]["value"], ours[name]["value"]) for name in ("mean@16", "greedy", "length")})
    assert theirs["greedy"]["value"] == ours["greedy"]["value"]
    assert abs(theirs["mean@16"]["value"] - ours["mean@16"]["value"]) < 0.12


def test_smollm2(tmp_path, monkeypatch, capsys):
    """A language model of 135 M parameters behind TRL's server: as a judge, sampled by `eval`, and trained."""
    model = str(model_path("smollm2"))
    for url in serve(model, 256):
        rows = tmp_path / "samples.jsonl"
        texts = ["The answer is Paris.", "The answer is the city of Paris.", "The answer is Lyon."]
        rows.write_text(json.dumps({"prompt": "What is the capital of France?", "responses": texts}) + "\n")
        judge = f"judge,url={url}/v1,model={model},cache={tmp_path / 'verdicts.jsonl'},retries=0,timeout=300"
        assert main(["score", str(rows), "--equivalence", judge, "--json"]) == 0
        scored, kept = json.loads(capsys.readouterr().out), tmp_path / "verdicts.jsonl"
        decided = len(kept.read_text().splitlines()) if kept.exists() else 0
        sampling = ["--problems", "word_sums:train", "--limit", "2", "--k", "4", "--max-new-tokens", "48", "--json"]
        assert main(["eval", model, "--engine", url, *sampling]) == 0
        assert json.loads(capsys.readouterr().out)["length"]["value"] > 1
        cpu.send_through_the_store(monkeypatch)
        more = {"dataset": "word_sums:train", "num_generations": 4, "per_device_train_batch_size": 4}
        more |= {"learning_rate": 1e-5, "max_steps": 4, "max_completion_length": 32, "optim": "sgd"}
        rows = run(tmp_path / "run", "clip_cov", "server", url, model, **more)
        with capsys.disabled():
            print(f"judge: {decided} of 3 pairs decided; {scored}")
            found = said("smollm2", rows)
        assert len(found) == 2 and all(0 < row["sampler/k3"] < 0.05 for row in found)

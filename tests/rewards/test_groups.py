"""A group that lies on several processes has the rewards it has on one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autotelic import rewards
from autotelic.errors import UserError
from autotelic.rewards import Row, form_groups
from autotelic.rewards.groups import prompt_key

WORKER = """
import json, sys
import torch.distributed as dist
sys.path.insert(0, sys.argv[5])
from test_groups import score
rank, size, port, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
rows = json.load(open(path))
share = len(rows) // size
print(json.dumps(score(rows[rank * share : (rank + 1) * share])))
dist.destroy_process_group()
"""


def score(rows):
    """Rewards of one process's rows."""
    prompts, texts = [row[0] for row in rows], [row[1] for row in rows]
    vote, chance = rewards.MajorityVote(num_generations=8), rewards.RandomReward(num_generations=8)
    functions = {
        "empo": rewards.EMPO(num_generations=8),
        "unknown size": rewards.EMPO(),
        "random": chance,
        "vote": vote,
        "co": rewards.CoRewardingI(rephrased={"p0": "p1", "p2": "p0"}, num_generations=8),
        "mixed": rewards.MixedReward([(vote, 1.0), (chance, 0.5)], num_generations=8),
    }
    return {name: function(prompts, texts) for name, function in functions.items()}


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(size, path):
    arguments = [str(size), str(free_port()), str(path), str(Path(__file__).parent)]
    running = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), *arguments], stdout=subprocess.PIPE, text=True)
        for rank in range(size)
    ]
    outputs = [json.loads(process.communicate(timeout=180)[0]) for process in running]
    return {name: [value for output in outputs for value in output[name]] for name in outputs[0]}


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_agree_with_one_process(size, tmp_path: Path):
    """Three groups of 8 on 2 or 4 processes (12 or 6 rows each): groups are split, rewards are bit-equal."""
    answers = ["1", "1.0", "2", "x", "1", "3", "3", "2", "5", "5", "5", "5", "5", "5", "6", "6", *"12345677"]
    samples = [[f"p{i // 8}", f"= {answer}"] for i, answer in enumerate(answers)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(samples))
    assert run(size, path) == score(samples)


def rows(*prompts):
    return [Row(prompt, "", None) for prompt in prompts]


def test_form_groups():
    assert [len(g.rows) for g in form_groups(rows("a", "a", "b", "b", "b"), None)] == [2, 3]
    assert [g.first for g in form_groups(rows("a", "a", "a", "a"), 2)] == [0, 2]  # one prompt drawn twice: two groups
    with pytest.raises(UserError, match="do not form groups"):
        form_groups(rows("a", "a", "a"), 2)
    with pytest.raises(UserError, match="should answer one prompt"):
        form_groups(rows("a", "b"), 2)
    assert form_groups([], None) == []


def test_the_same_prompt_twice_is_two_groups_when_g_is_known():
    texts = ["1", "1", "2", "3"]
    assert rewards.EMPO(num_generations=2, low=-1.0, high=2.0)(["q"] * 4, texts) == [1.0, 1.0, 0.5, 0.5]


def test_a_picture_is_known_by_its_pixels_not_by_its_place_in_memory():
    """Copies of one image make one group, whether G is known or not; another image makes another."""
    from PIL import Image

    def prompt(colour):
        image = Image.new("RGB", (4, 4), colour)
        return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "area?"}]}]

    prompts = [prompt("red"), prompt("red"), prompt("blue"), prompt("blue")]
    texts = [r"\boxed{1}", r"\boxed{1}", r"\boxed{2}", r"\boxed{3}"]
    for known in (2, None):
        reward = rewards.EMPO(num_generations=known, low=-1.0, high=2.0)
        assert reward(prompts, texts) == [1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize("make", [lambda: b"\0\1", lambda: torch.ones(2), lambda: {"x": torch.ones(2).numpy()}])
def test_whatever_a_prompt_holds_has_one_name_for_equal_content(make):
    assert prompt_key([{"content": make()}]) == prompt_key([{"content": make()}])

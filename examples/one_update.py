"""One update of EMPO with Clip-Cov, from the functions alone: no trainer, no TRL.

    python examples/one_update.py --max-steps 1

Sample, cluster, reward, advantages, Clip-Cov, loss, step, on the carried model; a few seconds on a CPU. Each line is an
equation of `autotelic.functional`; a test holds the gradient against that of `autotelic train empo`'s trainer.
"""

import argparse
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from autotelic import functional as F
from autotelic.answers import cluster, extract
from autotelic.tasks import load_problems, model_path

PROMPTS, GROUP, LENGTH = 8, 8, 32


def sample(model, tokenizer, prompts):
    """Return token ids (B, L), their attention mask, and the mask of the responses (B, T), G rows for each prompt."""
    repeated = [prompt for prompt in prompts for _ in range(GROUP)]
    inputs = tokenizer(repeated, return_tensors="pt", padding=True, padding_side="left")
    ids, attention = inputs["input_ids"], inputs["attention_mask"]
    sampling = {"do_sample": True, "top_k": 0, "max_new_tokens": LENGTH, "pad_token_id": tokenizer.pad_token_id}
    whole = model.generate(input_ids=ids, attention_mask=attention, **sampling)
    ends = (whole[:, ids.shape[1] :] == tokenizer.eos_token_id).long()
    mask = ends.cumsum(1) - ends == 0  # the end token counts
    return whole, torch.cat([attention, mask.long()], 1), mask


def loss_of(model, tokenizer, ids, attention, mask, step=0):
    """Return the loss of one update, and what it was computed from."""
    responses = ids[:, -mask.shape[1] :]
    texts = tokenizer.batch_decode(torch.where(mask, responses, tokenizer.pad_token_id), skip_special_tokens=True)
    answers = [extract(text) for text in texts]
    clusters = torch.tensor([cluster(answers[i : i + GROUP]) for i in range(0, len(answers), GROUP)])  # (P, G)

    rewards = F.consensus_reward(clusters)  # the share of the group that agrees
    advantages = F.group_advantages(rewards, eps=1e-4).float().view(-1, 1).expand(mask.shape)  # (B, T)

    logits = model(input_ids=ids, attention_mask=attention).logits[:, -mask.shape[1] - 1 : -1]
    logprobs = F.token_logprobs(logits, responses)
    old = logprobs.detach()  # one update per rollout: the policy is the one that sampled

    covariance = F.token_covariance(old, advantages, mask)
    places = (torch.arange(len(ids)), F.response_positions(mask))
    priority = F.hash_uniform(0, step, *places)  # the draw, by seed and place
    rewritten, selected = F.clip_cov(advantages, covariance, mask, fraction=0.05, low=0.1, high=9.0, priority=priority)
    per_token = F.clipped_surrogate(logprobs, old, rewritten, clip_low=0.2, clip_high=0.2, mask=mask)
    loss = F.sequence_means(per_token, mask).mean()  # EMPO's: a mean over responses of their token means
    entropy = F.masked_mean(F.token_entropy(logits.detach()), mask)
    return loss, {"reward": rewards.mean(), "entropy": entropy, "selected": selected.sum(), "tokens": mask.sum()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-steps", type=int, default=1, help="updates (default: %(default)s)")
    steps = parser.parse_args().max_steps
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(model_path("any_pair"), dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(model_path("any_pair"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    problems = load_problems("chain_sums:train", limit=PROMPTS * steps)
    for step in range(steps):
        prompts = [row["prompt"] for row in problems[step * PROMPTS : (step + 1) * PROMPTS]]
        loss, found = loss_of(model, tokenizer, *sample(model, tokenizer, prompts), step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        print(", ".join(f"{name} {value.item():.4g}" for name, value in found.items()), f"| loss {loss.item():.4g}")
    print(f"{steps} updates")


if __name__ == "__main__":
    main()

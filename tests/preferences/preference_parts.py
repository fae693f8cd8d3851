"""Pairs, runs and batches that the tests of preferences share."""

import json


def pairs(count=16, **columns):
    """Rows whose chosen response is longer or shorter than the rejected one, by turns."""
    rows = []
    for i in range(count):
        good, bad = f"{i + 3}={2 * i}", f"{i}"
        rows.append({"prompt": f"{i}+{i + 1}=?", "chosen": good, "rejected": bad} | {"row": i + 1})
        rows[-1] |= {"chosen_policy_id": "ab"[i % 2], "rejected_policy_id": "ab"[i % 3 == 0]} | columns
    return rows


def load(path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path)


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def loss_and_gradient(trainer, batch=None):
    batch = first_batch(trainer) if batch is None else batch
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), trainer.model.model.layers[0].mlp.up_proj.weight.grad


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_time(rows):
    clocks = ("runtime", "per_second", "step_time")
    return [{key: value for key, value in row.items() if not key.endswith(clocks)} for row in rows]

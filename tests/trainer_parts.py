"""Tiny models and micro-batches that the trainers' tests share."""

import torch
from torch import nn

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


def random_model(name, **settings):
    """A tiny random model of a transformers class, with distributions that differ from place to place."""
    import transformers

    torch.manual_seed(1)
    shape = SHAPE | settings
    if name.startswith("GPT2"):
        of_others = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        of_others += ("num_key_value_heads", "head_dim")
        shape = {key: value for key, value in (SHAPE | GPT2 | settings).items() if key not in of_others}
        shape["n_positions"] = shape.pop("max_position_embeddings")
    config = getattr(transformers, name.replace("ForCausalLM", "Config").replace("LMHeadModel", "Config"))
    model = getattr(transformers, name)(config(**shape))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20.0)  # as initialised, every distribution is uniform
    return model


class Counting(nn.Module):
    """Adds the number of tokens of the call before each place: a state outside attention, which no setting tells of."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden):
        return self.inner(hidden) + 0.01 * torch.arange(hidden.shape[1])[:, None]


def micro_batches(trainer, seed=3):
    """Return the micro-batches of the first rollout, as the trainer buffers them."""
    torch.manual_seed(seed)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer._step = 0
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    return [dict(part) for part in trainer._buffered_inputs]

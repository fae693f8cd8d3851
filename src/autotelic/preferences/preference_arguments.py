"""What `autotelic train ppl` is told beside DPOConfig and ModelConfig; importing it loads no engine."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from autotelic.runs.method_settings import Spec, make, read
from autotelic.trl.arguments import CommonArguments, Sampling, option

if TYPE_CHECKING:
    from autotelic.preferences.labels import LabelSettings
    from autotelic.preferences.objective import PPL
    from autotelic.preferences.online_pairs import OnlineSettings


@dataclass
class PreferenceArguments(CommonArguments):
    """What `autotelic train ppl` is told beside DPOConfig and ModelConfig."""

    objective: Spec = option(
        "ppl",
        "control",
        "ppl | ppl_d | dpo | cpl | repo | repo_det | auto, with settings: ppl,future=expected,bias=0.5",
    )
    behavior_policies: str | None = option(
        None, "data", "YAML or JSON: policy id -> {model, temperature, top_k, top_p}"
    )
    policy_labels: Spec = option(
        "known", "control", "known | estimated | pooled | shuffled | wrong, with settings: estimated,clone_steps=100"
    )
    heldout_dataset: str | None = option(None, "data", "held-out pairs, .jsonl or .parquet")
    heldout_fraction: float = option(
        0.2, "data", "share of the prompts whose pairs are kept aside, without heldout_dataset"
    )
    heldout_steps: int = option(20, "guards", "updates between held-out measurements")
    max_completion_length: int = option(
        256, "control", "longest response in validation, online, and of future=expected"
    )
    online: Spec = option(
        "off", "data", "on: pairs from the policy itself, judged by reward; dataset holds prompts; on,buffer=4"
    )

    def ppl(self) -> "PPL":
        """Return the objective."""
        from autotelic.preferences.objective import read_objective

        return read_objective(self.objective)

    def labels(self) -> "LabelSettings":
        """Return how the labels are made."""
        from autotelic.preferences.labels import read_labels

        return read_labels(self.policy_labels)

    def sampling(self, training_args: Any) -> Sampling:
        """Return what these options say: DPOConfig samples nothing."""
        online = self.online_settings()
        return Sampling(online.generations if online else 1, self.max_completion_length)

    def online_settings(self) -> "OnlineSettings | None":
        """Return how pairs are collected; None where they exist already."""
        from autotelic.preferences.online_pairs import OnlineSettings

        spec = "on" if str(self.online).lower() == "true" else self.online
        if str(spec).lower() in ("off", "false"):
            return None
        given = read(spec, "online")[1]
        limit = {} if "max_new_tokens" in given else {"max_new_tokens": self.max_completion_length}
        return replace(make("online", spec, {"on": OnlineSettings}), **limit)

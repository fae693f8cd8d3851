"""One table of controls: whatever names a control reads it, and its page is current."""

from pathlib import Path

import pytest

from autotelic.controls.table import METHODS, NAMES, intervention, methods, read_control, to_markdown
from autotelic.errors import UserError
from autotelic.report.method_styles import method_of, style_of

NEEDED = {
    "repo": ",coef=0.1",
    "entropic": ",target=0.1,threshold=0.9",
    "entropy_bonus": ",coef=1e-3",
    "entropy_band": ",coef=linear:0.01:0",
    "estr": ",tau=0.1",
}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_a_control_with_a_label(name):
    control = read_control(name + NEEDED.get(name, ""))
    assert (None if control is None else control.name) == (None if name == "none" else name)
    assert control is None or (control.label and (control.paper or name == "observe"))


def test_settings_that_had_no_option_can_be_reached():
    stare = read_control("stare,positive_weight=1.2,negative_weight=0.8,variant=C2")
    assert (stare.positive_weight, stare.negative_weight, stare.variant) == (1.2, 0.8, "C2")
    assert read_control({"name": "repo", "coef": 0.1, "rescale": False}).rescale is False
    assert read_control("entropic,target=0.1,threshold=0.9,integral=0.5").integral == 0.5
    with pytest.raises(UserError, match="did you mean 'fraction'"):
        read_control("clip_cov,fractoin=0.1")


def test_one_source_for_interventions():
    """CISPO, GSPO and one-shot EM act on entropy, `observe` does not: live, in `forecast` and in the report."""
    assert intervention("grpo", "cispo") == "CISPO" and intervention("grpo", "gspo") == "GSPO"
    assert intervention("one_shot_em", "none") == "entropy minimisation"
    assert intervention("grpo", "none") is None and intervention("empo", "observe") is None
    assert {name for name, control in methods().items() if not control.intervenes} == {"observe"}


def test_report_names_controls_by_the_table():
    for written in ("kl_cov", "kl_cov,fraction=0.1", {"name": "kl_cov", "fraction": 0.1}):
        assert method_of({"method": "grpo", "config": {"run": {"entropy_control": written}}}, "folder") == "kl_cov"
    assert [style_of(name, 0).label for name in ("clip_cov", "cispo")] == ["Clip-Cov", "CISPO"]
    both = style_of("empo+kl_cov", 5)
    assert both.label == "EMPO + KL-Cov"
    assert (both.color, both.dash) == (style_of("empo", 0).color, style_of("kl_cov", 0).dash)
    looks = [(style_of(name, 0).color, style_of(name, 0).dash) for name in methods()]
    assert len(set(looks)) == len(looks)


def test_verl_takes_every_control_that_its_engines_can_serve():
    from autotelic.verl.loss_methods import UNSUPPORTED, method_names

    assert set(METHODS) - set(UNSUPPORTED) < set(method_names())


def test_the_page_of_controls_is_current():
    page = Path(__file__).parents[2] / "docs" / "controls.md"
    assert page.read_text() == to_markdown(), "regenerate: python -m autotelic.controls.table > docs/controls.md"

"""The plug-in for verl: policy losses, advantage estimators and the live entropy law, by name.

    actor_rollout_ref.actor.policy_loss.loss_mode=autotelic_clip_cov     exact over the mini-batch of all ranks
    algorithm.adv_estimator=autotelic_empo                               rewards from the group, no label read

verl finds it by itself, through the entry-point group ``verl.plugins``. Where that is switched off,
``VERL_USE_EXTERNAL_MODULES=autotelic.verl.plugin`` loads it. Nothing here imports verl before verl imports the module
that a part belongs to, and without verl nothing happens. `autotelic doctor` says whether it loaded.
"""

PREFIX = "autotelic_"

"""Settings of an online run: mistakes are reported together."""

from __future__ import annotations

import pytest

from trainer.learning.online.config import LearnerConfig, TrainingConfigError, online_config


def test_config_reports_every_mistake() -> None:
    """All wrong values of a config are reported together."""
    with pytest.raises(TrainingConfigError) as caught:
        LearnerConfig(hidden_count=0, target_rate=2.0, replay_capacity=1)
    assert len(caught.value.problems) == 3


def test_negative_anchor_is_refused() -> None:
    """An anchor below 0 would push away."""
    with pytest.raises(TrainingConfigError, match="anchor"):
        LearnerConfig(anchor=-1.0)


def test_services_learn_with_an_anchor() -> None:
    """The learner of the services is held by what it starts from and knows what was promised."""
    config = online_config(
        hidden_count=8,
        replay_capacity=1000,
        deadline_s=0.2,
        patience_s=5.0,
        min_transitions=16,
        seed=0,
    )
    assert config.learner.anchor > 0.0
    assert config.promise is not None
    assert config.feature_names[config.promise.quality_column] == "quality"
    assert config.feature_names[config.promise.on_time_column] == "on_time_probability"

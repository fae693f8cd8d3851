"""Small data for control: episodes of two linear behaviours on point-reach, and preferences over them."""

import numpy as np
import pytest

from autotelic.control.episodes import collect
from autotelic.control.point_reach import LinearBehavior, PointReach
from autotelic.control.settings import DataSettings

POINTS = {
    "env": "point-reach",
    "actions": "tanh",
    "policies": ("linear:3:0.6:0.6", "linear:-1:0:0.8"),
    "episodes": 16,
    "horizon": 20,
    "segment_length": 8,
    "segments": 60,
    "critic": "simulated",
}


@pytest.fixture
def points():
    """Settings of a data set that takes half a second."""
    return DataSettings(**POINTS)


@pytest.fixture
def episodes():
    """Eight episodes of two behaviours, tanh actions."""
    behaviors = (LinearBehavior(gain=3.0, drift=0.6, std=0.6), LinearBehavior(gain=-1.0, std=0.8))
    return [e for i, b in enumerate(behaviors) for e in collect(PointReach(4, 20), b, 4, 0, True, i)]


@pytest.fixture
def generator():
    return np.random.default_rng(0)

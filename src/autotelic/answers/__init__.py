r"""Answers by meaning: extract them, compare them, cluster them. Importing this starts and imports nothing heavy.

>>> extract(r"So the answer is \boxed{\frac{1}{2}}.")
'\\frac{1}{2}'
>>> equivalent("50\\%", "0.5")
True
>>> cluster(["1/2", "0.5", None, "2"])
[0, 0, -1, 1]
"""

from autotelic.answers.backends import equivalence
from autotelic.answers.clustering import LINKAGES, Clustering, cluster, cluster_group, equivalent, warm_up
from autotelic.answers.compare import Equivalence, FunctionEquivalence, MathEquivalence
from autotelic.answers.extraction import METHODS, extract, last_boxed, last_number
from autotelic.answers.fast import as_fraction
from autotelic.answers.pool import Pool, PoolStats, default_pool

__all__ = [
    "LINKAGES",
    "METHODS",
    "Clustering",
    "Equivalence",
    "FunctionEquivalence",
    "MathEquivalence",
    "Pool",
    "PoolStats",
    "as_fraction",
    "cluster",
    "cluster_group",
    "default_pool",
    "equivalence",
    "equivalent",
    "extract",
    "last_boxed",
    "last_number",
    "warm_up",
]

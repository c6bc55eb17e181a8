"""The contract of regularizers, objectives and networks, run on anybody's: one call, a table of what was checked.

    import toolkit.testing
    toolkit.testing.check_regularizer(Mine(weight=0.3))

A violation raises and names the check; everything runs on a few random pictures and volumes on the CPU, in less than a
minute. Two processes are children of this one, so a script needs no main guard.
"""

from toolkit.testing.checks import check_network, check_objective, check_regularizer, without_weight
from toolkit.testing.short_runs import Violation

__all__ = ["Violation", "check_network", "check_objective", "check_regularizer", "without_weight"]

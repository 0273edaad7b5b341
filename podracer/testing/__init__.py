"""For tests: the conformance check of an environment, a chain MDP, and probe environments.

The check is for environments of your own too. A probe has a step or two and known values, so that
which probe fails tells what is wrong: a reward, a bootstrap, a discount, a sign, or a memory.
"""

from .conformance import check_environment, check_types, random_action, random_course
from .probes import (
  TERMINATE,
  TRUNCATE,
  chain_environment,
  probe_action,
  probe_constant,
  probe_continuous,
  probe_discount,
  probe_memory,
  probe_observation,
  probe_policy,
  probe_truncation,
)

__all__ = [
  "TERMINATE",
  "TRUNCATE",
  "chain_environment",
  "check_environment",
  "check_types",
  "probe_action",
  "probe_constant",
  "probe_continuous",
  "probe_discount",
  "probe_memory",
  "probe_observation",
  "probe_policy",
  "probe_truncation",
  "random_action",
  "random_course",
]

"""The student's hyper-parameters by family of environments: those of IMPALA, learning from teachers alone.

Each is a starting point. `podracer distill --kickstart` adds `config.KICKSTART`.
"""

from podracer.agents.impala import presets

PRESETS = presets.PRESETS

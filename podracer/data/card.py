"""The dataset card: the README.md of a collection, made from what is in it."""

import os
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from . import layout, schema, scores, store

_CARD = """\
---
license: apache-2.0
task_categories: [reinforcement-learning]
tags: [rlds, reinforcement-learning, expert-data]
---
# Expert data recorded with podracer

RLDS episodes as `tf.train.Example` records in ArrayRecord, format version {version}; one TFDS dataset a task.

| task | episodes | steps | return | random | expert | teachers | policy |
|---|---|---|---|---|---|---|---|
{rows}

Returns are sums of raw rewards, mean ± standard deviation. Random and expert scores were measured by whole
episodes; `scores.json` tells how many and with which seeds. "steps" are transitions.

## Reading

```python
import podracer.data

collection = podracer.data.open("<this directory>")
dataset = collection["{task}"].filter("norm80")  # a view: nothing is deleted
episode = dataset.episode(0)  # steps: field -> [T+1, ...]
```

`tfds.builder_from_directory("<this directory>/{task}/{version}").as_data_source()` reads the same files, with or
without TensorFlow, and so does Grain's `ArrayRecordDataSource`. A record is a *segment* of at most 256 steps: episodes
that are longer have several, told by `segment_index` and `num_segments`.

## Fields of a step

The reward and discount of a step follow its action. An episode of T transitions has T+1 steps; the last, `is_last`,
has the final observation only. It was truncated where `is_last` and not `is_terminal`.

{fields}
"""


def finalise(root: str | os.PathLike[str]) -> None:
  """Makes a collection readable, see `store.finalise`, and writes its card."""
  store.finalise(root)
  write(root)


def write(root: str | os.PathLike[str]) -> None:
  """Writes README.md of a collection, from the manifests of its shards."""
  tasks = layout.tasks(root)
  all_scores = scores.read(root)
  rows, fields = [], []
  for task in tasks:
    folder = layout.task_dir(root, task)
    episodes = [row for manifest in layout.read_manifests(folder) for row in manifest.episodes]
    if episodes:
      rows.append(_row(task, episodes, all_scores.get(task, {})))
      fields.append(_fields(task, layout.read_schema(folder)))
  text = _CARD.format(
    version=schema.FORMAT_VERSION,
    rows="\n".join(rows),
    task=tasks[0] if tasks else "<task>",
    fields="\n\n".join(fields),
  )
  layout.write_bytes(pathlib.Path(root) / layout.README, text.encode())


def _row(task: str, episodes: Sequence[dict[str, Any]], found: dict[str, Any]) -> str:
  returns = [row["episode_return"] for row in episodes]
  mean = sum(returns) / len(returns)
  std = (sum((value - mean) ** 2 for value in returns) / len(returns)) ** 0.5
  cells = [
    f"`{task}`",
    f"{len(episodes):,}",
    f"{sum(row['episode_length'] for row in episodes):,}",
    f"{mean:.2f} ± {std:.2f}",
    *(
      f"{found[who]['mean']:.2f} (n = {found[who]['n']})" if who in found else "not measured"
      for who in (scores.RANDOM, scores.EXPERT)
    ),
    _counts(row["teacher_algo"] for row in episodes),
    _counts(f"{row['phase']}, {row['policy_mode']}" for row in episodes),
  ]
  return f"| {' | '.join(cells)} |"


def _counts(values: Any) -> str:
  counts = Counter(values)
  return ", ".join(
    name if len(counts) == 1 else f"{name} ({count:,})" for name, count in counts.most_common()
  )


def _fields(task: str, found: schema.Schema) -> str:
  lines = [f"`{task}`:", "", "| field | shape | dtype |", "|---|---|---|"]
  lines += [f"| `{f.name}` | {list(f.shape) or 'scalar'} | {f.dtype} |" for f in found.fields]
  return "\n".join(lines)

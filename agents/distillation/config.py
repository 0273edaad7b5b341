"""Hyper-parameters of distillation; free of JAX."""

import dataclasses
from typing import Literal, Self

from podracer import config
from podracer.agents import impala

KICKSTART = {
  "reinforcement_cost": 1.0,
  "distillation_schedule": "linear",
}
"""What kickstarting (Schmitt et al. 2018) changes: it also learns from reward, and the teacher fades."""


@dataclasses.dataclass(frozen=True)
class DistillationConfig(impala.ImpalaConfig, config.StudentConfig):
  """A student, which is an IMPALA agent, learns from teachers.

  Policy distillation (Rusu et al. 2015), kickstarting (Schmitt et al. 2018), and the forms compared by
  Czarnecki et al. (2019). The loss is `reinforcement_cost` times IMPALA's and, for each teacher k, a
  weight lambda_k times `policy_loss`.
  """

  policy_loss: Literal["kl", "reverse_kl", "reverse_cross_entropy", "nll", "mse", "none"] = "kl"
  """Between teacher and student: `kl` KL(teacher || student), whose gradient is that of the cross-entropy;
  `reverse_kl` KL(student || teacher); `reverse_cross_entropy` the same without the student's entropy;
  `nll` of the teacher's best action; `mse` of the logits less their mean (Rusu's of Q-values)."""
  temperature: float = 1.0
  """Of the teacher's policy: below 1 sharpens it (Rusu et al. 2015), above 1 softens it."""
  value_loss: Literal["mse", "none"] = "none"
  """`mse` learns the teacher's value too. Teacher and student should have the same `discount` and
  `reward_clip`, or the two are worth different things; where values are large, `popart` keeps their
  errors from drowning the policy's."""
  value_distillation_cost: float = 0.5
  """Weight of `value_loss`; it too is multiplied by lambda_k."""
  reinforcement_cost: float = 0.0
  """Weight of IMPALA's loss; 0 learns from the teachers alone."""
  expected_entropy: bool = False
  """Also take the policy loss in the states that follow from the reward, so that the gradient is that of
  its expected sum: with `reverse_cross_entropy` this is expected entropy regularised distillation
  (Czarnecki et al. 2019). `reinforcement_cost` then weighs the environment's reward."""
  value_gate: bool = False
  """Learn only where the teacher's value is above the student's, for teachers that err."""
  distillation_cost: float = 1.0
  """Lambda, the weight of what the teachers teach, at the start."""
  distillation_schedule: Literal["constant", "linear", "cosine", "until_passed"] = "constant"
  """How lambda falls to 0 over `distillation_steps`. `until_passed` ends teacher k by itself once the
  student does better than it: once r_t + gamma V_k(x_t) - V_k(x_{t-1}), V_k the teacher's value, is above
  0 on average over the student's own steps. By the performance difference lemma (Kakade & Langford
  2002) this mean is the student's advantage over the teacher, whatever the student's own value."""
  distillation_steps: int = 10_000
  """Gradient steps of the schedule; of `until_passed` those that are averaged over."""
  control: Literal["student", "teacher", "mixture"] = "student"
  """Who acts in training. `mixture` draws at each step, the teacher with a probability that falls from
  1 to 0 over `control_steps` (DAgger, Ross et al. 2011)."""
  control_steps: int = 10_000
  """Gradient steps over which control goes over to the student (`mixture`)."""
  teacher_inference: Literal["auto", "actor", "learner", "none"] = "auto"
  """Where teachers are asked: on the `actor` beside the student, step by step, or by the `learner`, whole
  unrolls at once. `auto` takes the learner unless the actor is needed: for teachers that act or have
  recurrent state. `none` learns from what recorded data says of the teachers."""

  def __post_init__(self) -> None:
    super().__post_init__()
    config.check_positive(
      temperature=self.temperature,
      distillation_steps=self.distillation_steps,
      control_steps=self.control_steps,
    )
    config.check_at_least(
      0,
      value_distillation_cost=self.value_distillation_cost,
      reinforcement_cost=self.reinforcement_cost,
      distillation_cost=self.distillation_cost,
    )
    self._check_what_is_learnt()
    config.check(
      self.control == "student" or self.distillation_schedule != "until_passed",
      "distillation_schedule=until_passed judges the student by its own steps: control must be student, "
      f"got {self.control}",
    )
    config.check(
      self.control == "student" or self.teacher_inference in ("auto", "actor"),
      f"control={self.control} asks the teachers on the actor: teacher_inference must be auto or actor, "
      f"got {self.teacher_inference}",
    )

  def _check_what_is_learnt(self) -> None:
    config.check(
      self.policy_loss != "none" or self.value_loss != "none" or self.reinforcement_cost > 0,
      "nothing is learnt: policy_loss and value_loss are none and reinforcement_cost is 0",
    )
    config.check(
      not self.value_gate or self.reinforcement_cost > 0 or self.value_loss != "none",
      "value_gate compares the teacher's value with the student's, which nothing trains: "
      "reinforcement_cost must be above 0, or value_loss=mse",
    )
    config.check(
      not self.expected_entropy
      or self.policy_loss in ("kl", "reverse_kl", "reverse_cross_entropy"),
      "expected_entropy needs policy_loss=reverse_cross_entropy (or kl, reverse_kl), got "
      f"{self.policy_loss}",
    )
    config.check(
      not self.expected_entropy or (self.value_loss == "none" and not self.value_gate),
      "expected_entropy changes the reward, so that the student's value is not comparable with the "
      "teacher's: value_loss must be none and value_gate off",
    )

  @property
  def needs_vtrace(self) -> bool:
    """True where the loss of IMPALA is a part of the student's."""
    return self.reinforcement_cost > 0 or self.expected_entropy

  def recorded_fields(self) -> tuple[str, ...]:
    """See `LearnerConfig`: V-trace needs the behaviour policy, most losses the teacher's logits."""
    fields = super().recorded_fields() if self.needs_vtrace else ()
    if self.policy_loss not in ("nll", "none"):
      fields += ("policy_logits",)
    if self.value_loss != "none" or self.value_gate:
      fields += ("value",)
    return fields

  def warnings(self) -> tuple[str, ...]:
    """Returns a line where minibatches ask the teachers several times."""
    lines = list(super().warnings())
    if self.num_epochs > 1 and self.teacher_inference == "learner":
      lines.append(
        f"teacher_inference=learner asks the teachers {self.num_epochs} times for each unroll, once an "
        "epoch; actor asks once"
      )
    return tuple(lines)

  def for_evaluation(self) -> Self:
    """Returns the configuration of a student that acts alone: its teachers are not asked."""
    return dataclasses.replace(self, control="student", teacher_inference="none")

  def for_recording(self) -> Self:
    """Returns the configuration that says at each step what the teachers would do."""
    return dataclasses.replace(self, teacher_inference="actor" if self.teachers else "none")

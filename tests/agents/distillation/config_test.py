import pytest

from podracer import config as config_lib
from podracer.agents import distillation

CASES = [
  ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
  ({"distillation_steps": 0}, "distillation_steps must be above 0"),
  ({"reinforcement_cost": -1.0}, "reinforcement_cost must be at least 0"),
  ({"policy_loss": "none", "value_loss": "none"}, "nothing is learnt"),
  ({"value_gate": True, "value_loss": "none"}, "which nothing trains"),
  ({"expected_entropy": True, "policy_loss": "nll"}, "expected_entropy needs policy_loss"),
  ({"expected_entropy": True, "value_loss": "mse"}, "value_loss must be none"),
  ({"control": "teacher", "teacher_inference": "learner"}, "must be auto or actor, got learner"),
  ({"control": "mixture", "distillation_schedule": "until_passed"}, "control must be student"),
  ({"discount": 2.0}, "discount must be between 0 and 1"),
]


@pytest.mark.parametrize(("values", "message"), CASES, ids=lambda x: str(x)[:40])
def test_what_does_not_fit_is_one_line(values, message):
  with pytest.raises(config_lib.InputError, match=message) as caught:
    distillation.DistillationConfig(**values)
  assert "\n" not in str(caught.value)


def test_kickstarting_is_a_configuration():
  from podracer.agents.distillation import config

  made = distillation.DistillationConfig(**config.KICKSTART)
  assert made.reinforcement_cost == 1.0 and made.distillation_schedule == "linear"


def test_a_student_that_plays_asks_no_teacher_and_one_that_is_recorded_does():
  made = distillation.DistillationConfig(teachers=("runs/a",), control="mixture")
  played = made.for_evaluation()
  assert (played.control, played.teacher_inference) == ("student", "none")
  recorded = played.for_recording()
  assert (recorded.control, recorded.teacher_inference) == ("student", "actor")
  # A run that records while it trains is controlled as before.
  assert made.for_recording().control == "mixture"
  assert distillation.DistillationConfig().for_recording().teacher_inference == "none"


def test_what_is_learnt_says_what_recorded_data_must_have():
  fields = {
    (): ("policy_logits",),
    (("policy_loss", "nll"),): (),
    (("value_loss", "mse"),): ("policy_logits", "value"),
    (("reinforcement_cost", 1.0),): ("behaviour_log_prob", "policy_logits"),
  }
  for values, expected in fields.items():
    assert distillation.DistillationConfig(**dict(values)).recorded_fields() == expected

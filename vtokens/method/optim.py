"""The optimiser of the table."""

import optax

from vtokens import config


def make_schedule(settings: config.Optim, num_steps: int) -> optax.Schedule:
  """Makes the learning rate by step: linear warm-up, then a decay."""
  peak, warmup = settings.learning_rate, settings.warmup_steps
  decay = num_steps - warmup
  after = {
    'cosine': optax.cosine_decay_schedule(peak, decay),
    'linear': optax.linear_schedule(peak, 0.0, decay),
    'constant': optax.constant_schedule(peak),
  }[settings.schedule]
  # Starts above 0, so that no step has rate 0.
  ramp = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
  return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(
  settings: config.Optim, num_steps: int
) -> optax.GradientTransformation:
  """Makes the optimiser: clipping by the global norm, then Adam.

  There is no weight decay: it would move rows that no example of a batch uses.
  """
  steps = [optax.clip_by_global_norm(settings.clip_norm)]
  if not settings.clip_norm:
    steps = []
  schedule = make_schedule(settings, num_steps)
  return optax.chain(
    *steps,
    optax.adam(schedule, b1=settings.b1, b2=settings.b2, eps=settings.eps),
  )

"""A tiny run: 12 steps on the random model in base/."""

from vtokens import config


def get_config() -> config.Config:
  """Paths are relative: run it in the directory of this file."""
  return config.Config(
    workdir='run',
    base=config.Base(path='base', dtype='float32'),
    virtual_tokens=config.VirtualTokens(
      num_virtual_tokens=4, init_text='Answer.'
    ),
    templates=config.Templates(
      prompt='Q {question} A', instruction='Do {question}'
    ),
    data=config.Data(
      train=('train.jsonl',),
      validation=('validation.jsonl',),
      test=('test.jsonl',),
      passages=config.Passages(number=(1, 2), depth=2),
      batch_size=4,
      max_prefix_tokens=48,
      max_suffix_tokens=32,
      max_answer_tokens=4,
      shapes=((24, 32), (48, 32)),
      window_batches=6,
    ),
    optim=config.Optim(learning_rate=0.05, warmup_steps=2),
    train=config.Train(num_steps=12, validate_every=6, checkpoint_every=3),
    eval=config.Eval(
      conditions=('closed_book', 'prompt'),
      batch_size=4,
      num_passages=2,
      shuffle_passages=True,
      max_new_tokens=3,
      num_active=(1, 4),
    ),
    tracking=config.Tracking(tensorboard=False),
  )

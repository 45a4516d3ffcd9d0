"""Hyperparameters that several configs share."""

from vtokens import config
from vtokens.host import errors
from vtokens.recipes import spring_data

VARIANTS = ('', 'paper')

# Training questions of the paper's eight sets (arXiv 2405.19670v3, table 5).
PAPER_QUESTIONS = 441_976
# As configs/retrieve/wiki_paper.py calls it.
PAPER_RETRIEVER = 'e5-large'


def spring(base: str, variant: str = '', *, chat: bool = True) -> config.Config:
  """Virtual tokens for a base of some billion parameters.

  `paper` has the hyperparameters of arXiv 2405.19670, the same for every
  base: batch 256, Adam at 1e-4 with 10 % warm-up, 3 epochs of 441,976
  questions, 1 to 5 passages while training and 3 in the tests. What it does
  not say (schedule, clipping) is that of the released code: linear decay, 1.0.

  The default takes over from the quickstart, on SmolLM2-135M-Instruct, a
  learning rate of 1e-2, cosine decay, and k drawn more often small. Neither
  that nor its batch of 64 and its steps were tried on a larger base.

  Weights lie over all devices, and the suffix is recomputed for the gradient:
  sixteen chips of 16 GB hold the step of a base of seven billion; see
  `vtokens.plan`.

  Args:
    base: for `base.path`.
    variant: '' or 'paper'.
    chat: whether the base has a chat template, to be scored with.

  Returns:
    A config whose data files, under data/, are yours to put there; with
    `paper`, the datasets that configs/data/ builds.

  Raises:
    errors.UserError: another variant.
  """
  if variant not in VARIANTS:
    raise errors.UserError(
      f'--config: no variant {variant!r} of this config; there is '
      f'{", ".join(repr(v) for v in VARIANTS)}'
    )
  cfg = config.Config(
    workdir=f'runs/{base.split("/")[-1]}',
    base=config.Base(path=base, dtype='bfloat16'),
    data=config.Data(
      train=('data/train.jsonl.gz',),
      validation=('data/validation.jsonl.gz',),
      test=('data/test.jsonl.gz',),
      passages=config.Passages(number=(1, 5)),
      examples_per_row=4,
      max_prefix_tokens=1280,
    ),
    eval=config.Eval(
      num_passages=3,
      max_new_tokens=50,
      max_validation=512,
      conditions=tuple(
        name for name in config.CONDITIONS if chat or name != 'chat_prompt'
      ),
    ),
    # Weights over all devices: seven billion do not fit every one.
    mesh=config.Mesh(shape=(1, -1, 1)),
  )
  if variant == 'paper':
    steps = 3 * PAPER_QUESTIONS // 256
    cfg.workdir += '-paper'
    cfg.data.train, cfg.data.test = spring_data.paper_mix()
    cfg.data.validation = ()
    # The records may have those of other retrievers too.
    cfg.data.passages.retrievers = (PAPER_RETRIEVER,)
    cfg.eval.retriever = PAPER_RETRIEVER
    cfg.data.batch_size = 256
    cfg.optim = config.Optim(
      learning_rate=1e-4, warmup_steps=steps // 10, schedule='linear'
    )
    cfg.train = config.Train(num_steps=steps, remat=True)
  else:
    cfg.data.batch_size = 64
    cfg.virtual_tokens = config.VirtualTokens(draw='power')
    cfg.optim = config.Optim(learning_rate=1e-2, warmup_steps=50)
    cfg.train = config.Train(num_steps=3000, remat=True)
  return cfg

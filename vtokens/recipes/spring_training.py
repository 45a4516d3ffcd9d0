"""Hyperparameters that several configs share."""

from vtokens import config
from vtokens.host import errors
from vtokens.recipes import spring_data

VARIANTS = ('', 'paper')

# Training questions of the paper's eight sets (arXiv 2405.19670v3, table 5).
PAPER_QUESTIONS = 441_976
# Name of the retriever in configs/retrieve/wiki_paper.py.
PAPER_RETRIEVER = 'e5-large'


def spring(base: str, variant: str = '', *, chat: bool = True) -> config.Config:
  """Config of virtual tokens for a base of some billion parameters.

  The variant `paper` has the hyperparameters of arXiv 2405.19670, the same for
  every base: batch 256, Adam at 1e-4 with 10 % warm-up, 3 epochs of 441,976
  questions, 1 to 5 passages in training and 3 in tests. The paper does not
  state schedule and clipping; the released code has linear decay and 1.0.

  The default trains each example with all tokens and with few, which answered
  best with SmolLM2-135M-Instruct (docs/quality.md). Its cosine decay from 1e-2
  is that of the quickstart's variant `long`. These, the batch of 64 and the
  number of steps were not tried on a larger base.

  Weights are sharded over all devices, and the suffix is recomputed for the
  gradient. The step of a base of seven billion parameters fits sixteen chips of
  16 GB; see `vtokens.plan`.

  Args:
    base: value of `base.path`.
    variant: '' or 'paper'.
    chat: whether the base has a chat template, which scoring then uses.

  Returns:
    A config. You have to provide its data files under data/; with `paper`,
    configs/data/ builds them.

  Raises:
    errors.UserError: unknown variant.
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
    # Weights are sharded: seven billion do not fit one device.
    mesh=config.Mesh(shape=(1, -1, 1)),
  )
  if variant == 'paper':
    steps = 3 * PAPER_QUESTIONS // 256
    cfg.workdir += '-paper'
    cfg.data.train, cfg.data.test = spring_data.paper_mix()
    cfg.data.validation = ()
    # The records may have passages of other retrievers, too.
    cfg.data.passages.retrievers = (PAPER_RETRIEVER,)
    cfg.eval.retriever = PAPER_RETRIEVER
    cfg.data.batch_size = 256
    cfg.optim = config.Optim(
      learning_rate=1e-4, warmup_steps=steps // 10, schedule='linear'
    )
    cfg.train = config.Train(num_steps=steps, remat=True)
  else:
    cfg.data.batch_size = 64
    cfg.virtual_tokens = config.VirtualTokens(
      draws_per_example=2, always_all=True, draw='power', draw_exponent=1.0
    )
    cfg.optim = config.Optim(learning_rate=1e-2, warmup_steps=50)
    cfg.train = config.Train(num_steps=3000, remat=True)
  return cfg

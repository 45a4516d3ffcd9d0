r"""Shows what training sees: `python -m vtokens.data.inspect --config FILE`.

Prints the examples of one step, piece by piece; then counts and weights of the
datasets, lengths, shapes, and what was cut. Needs the base's tokenizer, not its
weights. Training later reuses the tokenised data that this makes.
"""

from vtokens import config
from vtokens.data.inspect import inspect_command
from vtokens.settings import flags

if __name__ == '__main__':
  flags.run_config(
    inspect_command.main,
    config.Config,
    config.validate,
    'configs/quickstart.py',
  )

r"""Lists the supported models, or says what a directory or file is.

    vtokens models
    vtokens models /models/gemma-3-4b-it

Without a path: the model types that load, what each has beyond Llama 2, the
largest difference between our logits and transformers', and whether its GGUF
files load; then multimodal models, and formats of quantised weights. With the
path of a base: what it is, whether it loads and why not, its parameters, how it
is quantised, and how much memory its weights take. Weights are not loaded.
Exits with 1 if the base does not load.
"""

import sys
from collections.abc import Sequence

import jax
from absl import flags as absl_flags

from vtokens.host import writers
from vtokens.models import supported
from vtokens.settings import flags


def main(argv: Sequence[str]) -> None:
  """Entry point."""
  # Nothing is computed, so devices are left alone.
  jax.config.update('jax_platforms', 'cpu')
  if len(argv) > 1:
    lines, loads = supported.describe(argv[1])
    writers.say('\n'.join(lines))
    if not loads:
      sys.exit(1)
    return
  tables = supported.families(), supported.multimodal(), supported.quantised()
  if absl_flags.FLAGS.markdown:
    writers.say('\n\n'.join(table.markdown() for table in tables))
    return
  decoders, multimodal, quantised = (
    table.text().replace('`', '') for table in tables
  )
  writers.say(
    f'{decoders}\n\nmultimodal models, for text:\n\n{multimodal}\n\n'
    f'quantised weights, of all of these:\n\n{quantised}'
  )


if __name__ == '__main__':
  absl_flags.DEFINE_bool('markdown', False, 'Tables in Markdown, for docs.')
  flags.run(main, arguments=1)

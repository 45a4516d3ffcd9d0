"""Language models, their weights and their tokenizers."""

import typing

# The cards of earlier exports import an earlier name.
if not typing.TYPE_CHECKING:
  from vtokens.host import old_names

  __getattr__ = old_names.aliases(
    __name__, {'gguf_tokenizer': 'vtokens.models.tokenizers.gguf_tokenizer'}
  )

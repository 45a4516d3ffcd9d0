"""`--to gguf`: a base in GGUF with the virtual tokens in its vocabulary."""

from vtokens.exports import card_recipes
from vtokens.exports.export_format import ExportJob, Format, Placement, Usage
from vtokens.exports.gate import Check
from vtokens.exports.gguf import gguf_file, llama_gate
from vtokens.exports.trained_table import Source
from vtokens.serving.artifact import Meta

_RECIPE = """
# llama-server --model model.gguf --port 8080
import json, urllib.request
from vtokens import plug
from vtokens.models.tokenizers import gguf_tokenizer

table = plug.load('.')
tokenizer = gguf_tokenizer.read_tokenizer('model.gguf')
{ids}
body = {{'prompt': ids, 'n_predict': 16, 'temperature': 0, 'stop': ['\\n']}}
request = urllib.request.Request(
  'http://127.0.0.1:8080/completion',
  json.dumps(body).encode(),
  {{'Content-Type': 'application/json'}},
)
answer = json.load(urllib.request.urlopen(request))['content'].strip()
"""
_NOTE = (
  'llama.cpp reads the names in every prompt that is text, passages included. '
  'Ollama takes the file (`FROM ./model.gguf` in a Modelfile) and text alone: '
  'send it `plug.prompt_text`, with `"raw": true` (from documentation).'
)


class GGUFFormat(Format):
  """`model.gguf`, read by llama.cpp."""

  name = 'gguf'
  library = 'gguf'
  consumers = ('xllamacpp',)

  def place(self, source: Source, base_path: str) -> Placement:
    """Ids after the last token; see `gguf_file`."""
    return gguf_file.place(source.table, source.base, base_path)

  def write(self, job: ExportJob) -> None:
    """The file, a tensor at a time."""
    file = job.directory / gguf_file.FILE
    gguf_file.write(file, job.exported, job.placement, job.base_path)

  def check(self, job: ExportJob) -> list[Check]:
    """The file in llama.cpp, beside the base."""
    return llama_gate.check(job)

  def usage(self, meta: Meta, dtype: str) -> Usage:
    """llama-server with ids."""
    return Usage(card_recipes.fill(_RECIPE, meta), notes=(_NOTE,))

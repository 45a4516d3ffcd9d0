"""`--to spring-pt`: the file that SPRING's own code and FlashRAG read."""

from vtokens.exports import shared_checks, spring_file
from vtokens.exports.export_format import ExportJob, Usage
from vtokens.exports.formats.vtokens_format import VtokensFormat
from vtokens.exports.gate import Check
from vtokens.serving.artifact import Meta


class SpringFormat(VtokensFormat):
  """`virtual_tokens.pt`, beside the table, which is checked as always."""

  name = 'spring-pt'
  kinds = ('table',)

  def write(self, job: ExportJob) -> None:
    """A tensor of shape [n, D], float32."""
    spring_file.write(job.directory / spring_file.FILE, job.exported.table)

  def check(self, job: ExportJob) -> list[Check]:
    """The checks of `--to vtokens`, and that the file has the same numbers."""
    read = spring_file.read(str(job.directory / spring_file.FILE))
    return [*super().check(job), shared_checks.same_values(read, job)]

  def usage(self, meta: Meta, dtype: str) -> Usage:
    """As with `--to vtokens`."""
    recipe = super().usage(meta, dtype).recipe
    return Usage(
      f"{recipe}\n# SPRING's own code and FlashRAG read virtual_tokens.pt."
    )

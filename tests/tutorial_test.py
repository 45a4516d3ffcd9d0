"""The tutorial notebook does what it says."""

import pathlib

import nbclient
import nbformat
import pytest

_DOCS = pathlib.Path(__file__).parents[1] / 'docs'


@pytest.mark.slow
def test_the_tutorial():
  book = nbformat.read(_DOCS / 'tutorial.ipynb', as_version=4)
  assert not any(cell.get('outputs') for cell in book.cells)
  client = nbclient.NotebookClient(
    book,
    timeout=900,
    kernel_name='python3',
    resources={'metadata': {'path': str(_DOCS)}},
  )
  client.execute()
  said = [
    ''.join(
      output.get('text', '') or output.get('data', {}).get('text/plain', '')
      for output in cell.outputs
    )
    for cell in book.cells
    if cell.cell_type == 'code'
  ]
  assert '353 passages' in said[1]
  assert 'recall@5' in said[2]
  assert "'em'" in said[4]
  assert 'closed_book' in said[5] and 'tokens' in said[5]
  assert said[7].startswith('EM ') and said[7].strip().endswith('n 10')
  assert 'gate.json' in said[8]

"""Recall: the share of questions whose first k passages contain an answer.

`vtokens.data.containment` defines what contains an answer.
"""

from collections.abc import Mapping, Sequence

RANKS = (1, 5, 20, 100)


def table(
  datasets: Sequence[str],
  ranks: Mapping[str, Sequence[int]],
  top_k: int,
) -> dict[str, dict[str, dict[str, float]]]:
  """Computes recall by dataset, retriever and number of passages.

  Args:
    datasets: dataset of each question.
    ranks: for each retriever, the result of `Matcher.first` for each question.
    top_k: number of passages searched for an answer.

  Returns:
    dataset -> retriever -> {'n': questions, 'recall@k': fraction}, for the
    `RANKS` up to `top_k`; datasets in the order of their first question.
  """
  result: dict[str, dict[str, dict[str, float]]] = {}
  for dataset in dict.fromkeys(datasets):
    result[dataset] = {}
    for retriever, found in ranks.items():
      own = [r for r, d in zip(found, datasets, strict=True) if d == dataset]
      row: dict[str, float] = {'n': len(own)}
      for k in RANKS:
        if k <= top_k:
          row[f'recall@{k}'] = sum(0 < r <= k for r in own) / len(own)
      result[dataset][retriever] = row
  return result


def format_table(
  recall: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> str:
  """Formats the table as text, in percent."""
  rows = [
    (dataset, retriever, values)
    for dataset, by_retriever in recall.items()
    for retriever, values in by_retriever.items()
  ]
  if not rows:
    return ''
  columns = [name for name in rows[0][2] if name != 'n']
  widths = [
    max(len(row[i]) for row in (*rows, ('dataset', 'retriever')))
    for i in (0, 1)
  ]
  head = '  '.join(
    ['dataset'.ljust(widths[0]), 'retriever'.ljust(widths[1]), f'{"n":>7}']
    + [name.rjust(10) for name in columns]
  )
  lines = [head]
  for dataset, retriever, values in rows:
    cells = [f'{100 * values[name]:10.1f}' for name in columns]
    lines.append(
      '  '.join(
        [
          dataset.ljust(widths[0]),
          retriever.ljust(widths[1]),
          f'{values["n"]:7,}',
          *cells,
        ]
      )
    )
  return '\n'.join(lines)

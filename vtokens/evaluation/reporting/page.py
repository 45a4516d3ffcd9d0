"""The report page: one HTML file without links to others."""

import base64
import dataclasses
import hashlib
import importlib.resources
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from vtokens.data import containment
from vtokens.data.records import Passage
from vtokens.evaluation.asking.cells import Cell, CellResult, Results
from vtokens.evaluation.conditions import CONDITIONS
from vtokens.evaluation.reporting import columns as columns_lib
from vtokens.evaluation.reporting import report_tables
from vtokens.evaluation.reporting.report_tables import ReportTable
from vtokens.evaluation.reporting.summary import Summary

_FILES = importlib.resources.files('vtokens.evaluation.reporting')


@dataclasses.dataclass(frozen=True)
class Exhibits:
  """What report.md and report.html show beside the answers.

  Attributes:
    main_tables: tables that the page shows at once.
    more_tables: tables that the page shows folded.
    pictures: title and PNG by base name; see `report_plots.draw`.
    about: JSON object of settings and versions, shown folded.
  """

  main_tables: Sequence[ReportTable]
  more_tables: Sequence[ReportTable]
  pictures: Mapping[str, tuple[str, bytes]]
  about: dict[str, Any]


def render(
  summary: Summary, results: Results, exhibits: Exhibits, max_questions: int
) -> str:
  """Renders the page.

  The page sends no request; its Content-Security-Policy forbids all. Text
  reaches the page as JSON, in which `<` is escaped, and becomes text nodes.

  Args:
    summary: summary of the results.
    results: the results.
    exhibits: tables, plots and settings.
    max_questions: most questions to embed, see `chosen`; the page says so if
      there are more.

  Returns:
    HTML.
  """
  mains = summary.main_columns
  data = {
    'facts': _facts(summary),
    'cards': _cards(summary),
    'tables': [_table(table) for table in exhibits.main_tables],
    'more': [_table(table) for table in exhibits.more_tables],
    'pictures': [
      {
        'text': text,
        'src': f'data:image/png;base64,{base64.b64encode(png).decode()}',
      }
      for text, png in exhibits.pictures.values()
    ],
    'conditions': list(summary.conditions.items()),
    'settings': json.dumps(exhibits.about, indent=2, ensure_ascii=False),
    'columns': columns_lib.labels(mains),
    'pair': _pair(summary, mains),
    'total': sum(summary.datasets.values()),
    **_questions(results, mains, max_questions),
  }
  style = (_FILES / 'page.css').read_text(encoding='utf-8')
  script = (_FILES / 'page.js').read_text(encoding='utf-8')
  environment = jinja2.Environment(autoescape=True)
  environment.policies['json.dumps_kwargs'] = {'separators': (',', ':')}
  template = environment.from_string(
    (_FILES / 'page.html').read_text(encoding='utf-8')
  )
  return template.render(
    style=style,
    script=script,
    style_hash=_csp_hash(style),
    script_hash=_csp_hash(script),
    data=data,
  )


def chosen(sizes: Mapping[str, int], most: int) -> dict[str, int]:
  """How many of the first questions of each dataset to embed.

  Each dataset gets the same number, or all of its questions if it has fewer.

  Args:
    sizes: number of questions by dataset.
    most: most questions of all datasets together.
  """
  numbers = dict.fromkeys(sizes, 0)
  left = min(most, sum(sizes.values()))
  # The smallest first: the larger ones get what they leave.
  for i, name in enumerate(sorted(sizes, key=lambda name: sizes[name])):
    numbers[name] = min(sizes[name], left // (len(sizes) - i))
    left -= numbers[name]
  return numbers


def _questions(
  results: Results, mains: Sequence[Cell], most: int
) -> dict[str, Any]:
  """Questions with all answers to them, and a pool of passages."""
  sizes = {name: len(records) for name, records in results.records.items()}
  numbers = chosen(sizes, most)
  pool: dict[tuple[str, str, str], int] = {}
  questions = []
  for name, records in results.records.items():
    cells = [
      results.cells.get(dataclasses.replace(column, dataset=name))
      for column in mains
    ]
    for i, record in enumerate(records[: numbers[name]]):
      matcher = containment.Matcher(record.answers)

      def passage(
        shown: Passage, matcher: containment.Matcher = matcher
      ) -> dict[str, Any]:
        key = shown.id, shown.title, shown.text
        return {
          'passage': pool.setdefault(key, len(pool)),
          'answer': matcher.contains(shown.text),
        }

      questions.append(
        {
          'id': record.id,
          'dataset': name,
          'question': record.question,
          'answers': record.answers,
          'said': [cell and _said(cell, i) for cell in cells],
          'shown': [
            {
              'columns': columns,
              'passages': [
                {'rank': rank + 1, **passage(record.ranked(retriever)[rank])}
                for rank in ranks
              ],
            }
            for (retriever, ranks), columns in _shown(cells, i).items()
          ],
        }
      )
  return {
    'questions': questions,
    'passages': list(pool),
    'numbers': [[name, numbers[name], sizes[name]] for name in sizes],
  }


def _shown(
  cells: Sequence[CellResult | None], i: int
) -> dict[tuple[str, tuple[int, ...]], list[int]]:
  """The columns that showed a question the same passages.

  Returns:
    Numbers of columns by retriever and ranks of the passages.
  """
  shown: dict[tuple[str, tuple[int, ...]], list[int]] = {}
  for column, result in enumerate(cells):
    if result is not None and result.cell.applies('num_passages'):
      key = result.cell.retriever, result.answers[i].shown
      shown.setdefault(key, []).append(column)
  return shown


def _said(result: CellResult, i: int) -> dict[str, Any]:
  answer = result.answers[i]

  def value(name: str) -> float:
    # Of a question without an answer the refusal is right.
    found = float(result.values[name][i])
    return float(result.refused[i]) if math.isnan(found) else found

  return {
    'text': answer.text,
    'tokens': answer.num_tokens,
    'stop': answer.stop,
    'confidence': answer.confidence,
    'right': value('em') == 1,
    'f1': 100 * value('f1'),
    'others': {
      report_tables.METRICS[name]: 100 * value(name)
      for name in report_tables.METRICS
      if name in result.values and name not in ('em', 'f1')
    },
  }


def _pair(summary: Summary, mains: Sequence[Cell]) -> list[int]:
  """Numbers of the columns compared at first: reference and tokens."""
  if len(mains) < 2:
    return []
  firsts = [
    i for i, column in enumerate(mains) if column.condition == summary.reference
  ]
  first = [*firsts, 0][0]

  def fitness(i: int) -> tuple[bool, ...]:
    return (
      i != first,
      mains[i].applies('table'),
      mains[i].applies('num_passages'),
      mains[i].model == mains[first].model,
    )

  return [first, max(range(len(mains)), key=fitness)]


def _facts(summary: Summary) -> list[tuple[str, str]]:
  main = summary.main
  questions = sum(summary.datasets.values())
  models = dict.fromkeys(column.model for column in summary.columns)
  facts = [
    ('model', ', '.join(filter(None, models))),
    (
      'virtual tokens',
      ', '.join(f'{t} (k = {k})' for t, k in main.num_active.items()),
    ),
    (
      'questions',
      f'{questions:,}: '
      + ', '.join(f'{name} {n:,}' for name, n in summary.datasets.items()),
    ),
    ('passages', f'{main.num_passages} {main.retriever}'.strip()),
  ]
  return [(name, text) for name, text in facts if text]


def _cards(summary: Summary) -> list[dict[str, Any]]:
  """Averages of tokens and reference, for the top of the page."""
  labels = columns_lib.main_labels(summary)
  cards = []
  for comparison in summary.comparisons:
    a, b = comparison.a, comparison.b
    if (
      comparison.dataset
      or b.condition != summary.reference
      or not CONDITIONS[a.condition].tokens
      # Without passages it cannot compete with a reference that has them.
      or a.applies('num_passages') != b.applies('num_passages')
    ):
      continue
    ours = columns_lib.find(summary, a, columns_lib.AVERAGE)
    theirs = columns_lib.find(summary, b, columns_lib.AVERAGE)
    if ours is None or theirs is None:
      continue
    difference = comparison.metrics['em']
    cards.append(
      {
        'label': labels[a],
        'em': f'{ours.metrics["em"].mean:.1f}',
        'f1': f'{ours.metrics["f1"].mean:.1f}',
        'difference': f'EM {report_tables.signed_interval(difference)}, '
        f'p {report_tables.p_equals(report_tables.p_text(difference.p_value))}',
        'reference': f'compared with {labels[b]}, '
        f'EM {theirs.metrics["em"].mean:.1f}, '
        f'F1 {theirs.metrics["f1"].mean:.1f}',
      }
    )
  return cards


def _table(table: ReportTable) -> dict[str, Any]:
  return {
    'title': table.title,
    'header': table.header,
    'rows': table.rows,
    'labels': table.num_labels,
    'note': table.note,
  }


def _csp_hash(text: str) -> str:
  """The hash of an inline script or style in a Content-Security-Policy."""
  digest = hashlib.sha256(text.encode()).digest()
  return f'sha256-{base64.b64encode(digest).decode()}'

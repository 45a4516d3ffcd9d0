"""A small corpus and questions for tests of retrieval, made from a seed."""

import json
import pathlib
import random

# The first words are common and the last rare, as in a language.
_WORDS = [
  a + b + c
  for a in ('ka', 'mo', 'ri', 'te', 'zu', 'lan')
  for b in ('ber', 'dal', 'fin', 'gor', 'hus')
  for c in ('', 'ing', 'on', 's', 'ville')
]
_WEIGHTS = [1 / (i + 1) for i in range(len(_WORDS))]


def passages(count: int, seed: int = 0) -> list[dict[str, str]]:
  rng = random.Random(seed)
  return [
    {
      'id': f'p{i}',
      'title': f'Title {i % 17}' if i % 5 else '',
      'text': ' '.join(
        rng.choices(_WORDS, _WEIGHTS, k=rng.randint(3, 40))
      ).capitalize()
      + '.',
    }
    for i in range(count)
  ]


def questions(
  corpus: list[dict[str, str]], count: int, seed: int = 1
) -> list[dict]:
  """Each is three words of a passage; the answer is that passage's last."""
  rng = random.Random(seed)
  result = []
  for i in range(count):
    words = rng.choice(corpus)['text'].rstrip('.').split()
    result.append(
      {
        'id': f'q{i}',
        'dataset': ('one', 'two')[i % 2],
        'question': f'Where is {" ".join(rng.sample(words, 3))}?',
        'answers': [words[-1]],
      }
    )
  return result


def write(path: pathlib.Path, rows: list[dict]) -> str:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(
    ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows),
    encoding='utf-8',
  )
  return str(path)

"""The tables of arXiv 2405.19670 for a run with `:paper`'s settings.

    python -m vtokens.evaluate --config configs/eval/paper.py \
      --config.runs="('runs/Mistral-7B-Instruct-v0.1-paper',)" \
      --config.workdir=runs/Mistral-7B-Instruct-v0.1-paper-eval

Main results with and without retrieval (table 1), number of tokens, number of
passages and retrievers, over the twelve test sets that configs/data/ builds
from what configs/retrieve/wiki_paper.py found.
"""

from vtokens import config, recipes
from vtokens.evaluation import eval_config
from vtokens.recipes import spring_data


def get_config() -> eval_config.Config:
  """Three passages of E5-large and all tokens; varies one axis at a time."""
  _, test = spring_data.paper_mix()
  return eval_config.Config(
    workdir='runs/paper-eval',
    runs=('runs/Mistral-7B-Instruct-v0.1-paper',),
    data=eval_config.Data(sources=test, max_prefix_tokens=1280),
    conditions=('concat', 'prompt', 'tokens'),
    num_active=(50, 1, 2, 3, 4, 5, 10, 20, 30, 40),
    num_passages=(3, 0, 1, 2, 4, 5),
    retrievers=(recipes.PAPER_RETRIEVER, 'bm25', 'bge-base', 'e5-base'),
    # The paper's answers have up to 50 tokens; it names no end except eos.
    decode=config.Decode(
      batch_size=64, max_new_tokens=50, stop_at_newline=False
    ),
    report=eval_config.Report(char_f1=True),
  )

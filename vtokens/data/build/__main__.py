"""Builds a dataset of records: python -m vtokens.data.build --config FILE.

`vtokens/data/build/build_config.py` documents the fields of FILE, docs/data.md
the dataset.
"""

from vtokens.data.build import build_command, build_config
from vtokens.settings import flags

if __name__ == '__main__':
  flags.run_config(
    build_command.main,
    build_config.Config,
    build_config.validate,
    'configs/data/example.py',
  )

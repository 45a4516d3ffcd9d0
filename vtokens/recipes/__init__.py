"""Settings that several configs share."""

from vtokens.recipes.spring_training import (
  PAPER_QUESTIONS,
  PAPER_RETRIEVER,
  VARIANTS,
  spring,
)

__all__ = ['PAPER_QUESTIONS', 'PAPER_RETRIEVER', 'VARIANTS', 'spring']

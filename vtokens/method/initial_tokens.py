"""Embeddings that virtual tokens start as, for every kind of them."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from vtokens import config
from vtokens.data import initial_texts
from vtokens.data.mixture import TrainingMixture
from vtokens.devices import distributed
from vtokens.models.decoder import Decoder
from vtokens.models.tokenizers.tokenizer import Tokenizer


def embeddings(
  settings: config.VirtualTokens,
  decoder: Decoder,
  tokenizer: Tokenizer,
  rng: np.random.Generator,
  mixture: TrainingMixture | None,
) -> Float[np.ndarray, 'P D']:
  """Chooses ordinary tokens for virtual tokens to start as.

  Args:
    settings: `init` is text, vocab, passages or answers.
    decoder: the base, whose embeddings are copied. A virtual token starts as
      one token, or with `answers` as the mean of an answer's tokens.
    tokenizer: of the base.
    rng: of all draws.
    mixture: training data, for passages and answers.

  Returns:
    Array of shape [P, D], float32.

  Raises:
    errors.UserError: the training data have no passages or answers to draw.
  """
  number = settings.num_virtual_tokens
  if settings.init == 'answers':
    answers = initial_texts.answer_ids(_needed(mixture), number, rng)
    starts = np.cumsum([0, *map(len, answers[:-1])])
    sums = np.add.reduceat(_embed(decoder, np.concatenate(answers)), starts)
    lengths = np.asarray([len(ids) for ids in answers], np.float32)
    return sums / lengths[:, None]
  if settings.init == 'passages':
    ids = initial_texts.passage_ids(_needed(mixture), number, rng)
  elif settings.init == 'text':
    # Without bos, which belongs before the passages.
    sentence = tokenizer.encode(settings.init_text)
    ids = np.resize(np.asarray(sentence, np.int32), number)
  else:
    ids = rng.choice(np.asarray(tokenizer.ordinary_ids, np.int32), number)
  return _embed(decoder, ids)


def _needed(mixture: TrainingMixture | None) -> TrainingMixture:
  if mixture is None:
    raise ValueError('init=passages and answers need the training data')
  return mixture


def _embed(
  decoder: Decoder, ids: Int[np.ndarray, 'T']
) -> Float[np.ndarray, 'T D']:
  return np.asarray(
    distributed.fetch(decoder.embed(jnp.asarray(ids))), np.float32
  )

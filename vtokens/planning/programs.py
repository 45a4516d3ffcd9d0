"""Compiles the programs of a run for devices that are not here."""

from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp

from vtokens import config
from vtokens.data.batch import Batch
from vtokens.devices import partitioning
from vtokens.method import generate, kinds, optim, padding, steps
from vtokens.models.decoder import Decoder
from vtokens.models.decoder_config import DecoderConfig
from vtokens.planning import abstract_step, aot


def compile_programs(
  cfg: config.Config,
  base: DecoderConfig,
  mesh: jax.sharding.Mesh,
  target: aot.Target,
  *,
  decoding: bool = True,
) -> dict[str, dict[str, Any]]:
  """Compiles the programs of training and, optionally, of evaluation.

  Args:
    cfg: a validated config.
    base: the architecture of its base.
    mesh: the devices of the target.
    target: the slice or machine.
    decoding: whether to compile the programs of evaluation.

  Returns:
    Name of each program -> its figures; see `aot.compile_program`.

  Raises:
    errors.UserError: base, batch and mesh do not match.
  """
  rows = cfg.data.batch_size // cfg.data.examples_per_row
  partitioning.check_batch(mesh, rows // cfg.train.accumulation_steps)
  graph, params = abstract_step.base(
    base, jnp.dtype(cfg.base.dtype), mesh, cfg.base.quantize
  )
  lowered = _lower_train(cfg, base, graph, params, mesh)
  programs = {'training step': aot.compile_program(lowered, target)[1]}
  if decoding:
    programs |= _compile_decoding(cfg, base, graph, params, mesh, target)
  return programs


def row_shape(cfg: config.Config) -> tuple[int, int]:
  """Prefix and suffix tokens of the longest row, which needs most memory."""
  if cfg.data.shapes:
    return cfg.data.shapes[-1]
  per_row = cfg.data.examples_per_row
  prefix = per_row * cfg.data.max_prefix_tokens
  draws = cfg.virtual_tokens.draws_per_example
  suffix = per_row * draws * cfg.data.max_suffix_tokens
  if cfg.virtual_tokens.position == 'first':
    return (per_row, prefix + suffix)
  return prefix, suffix


def _lower_train(
  cfg: config.Config,
  base: DecoderConfig,
  graph: nnx.GraphDef[Decoder],
  params: nnx.State[str, Any],
  mesh: jax.sharding.Mesh,
) -> jax.stages.Lowered:
  optimizer = optim.make_optimizer(cfg.optim, cfg.train.num_steps)
  per_row = cfg.data.examples_per_row
  draws = cfg.virtual_tokens.draws_per_example
  trainable = kinds.trainable_of(cfg.virtual_tokens)
  state = abstract_step.state(
    optimizer, trainable.shapes(cfg.virtual_tokens, base), mesh, trainable
  )
  saved = cfg.train.distill.weight > 0 and cfg.train.distill.tokens == 'run'
  step = steps.jit_train_step(
    graph,
    optimizer,
    state,
    cfg.train,
    trainable,
    # It is taken to be of the same kind.
    teacher=trainable if saved else None,
  )
  lowered: jax.stages.Lowered = step.lower(
    state,
    params,
    abstract_step.batch(
      cfg.data.batch_size // per_row,
      row_shape(cfg),
      per_row * draws * cfg.data.max_answer_tokens,
      mesh,
      per_row=per_row,
      draws=draws,
      taught=cfg.train.distill.weight > 0,
      teacher=_teacher_batch(cfg, mesh),
      spans=0 if trainable.in_suffix else per_row * draws,
    ),
    *([state.trained] if saved else []),
  )
  return lowered


def teacher_shape(cfg: config.Config) -> tuple[int, int] | None:
  """Prefix and suffix tokens of the longest row of a teacher's own pass.

  It is taken to see as many tokens as the student. The prefix is 0 if it is the
  student's, the result None if there is no such pass.
  """
  distill = cfg.train.distill
  shared = distill.passages == 'shown'
  is_draw = (
    shared and distill.tokens == 'trained' and cfg.virtual_tokens.always_all
  )
  if not distill.weight or is_draw:
    return None
  prefix, suffix = row_shape(cfg)
  draws = cfg.virtual_tokens.draws_per_example
  return 0 if shared else prefix, suffix // draws


def _teacher_batch(cfg: config.Config, mesh: jax.sharding.Mesh) -> Batch | None:
  shape = teacher_shape(cfg)
  if shape is None:
    return None
  per_row = cfg.data.examples_per_row
  in_suffix = kinds.trainable_of(cfg.virtual_tokens).in_suffix
  return abstract_step.batch(
    cfg.data.batch_size // per_row,
    shape,
    per_row * cfg.data.max_answer_tokens,
    mesh,
    per_row=per_row,
    spans=0 if in_suffix else per_row,
  )


def answer_shape(cfg: config.Config) -> tuple[int, int]:
  """Finds the longest (prefix, suffix) of a row of answers, padded.

  With the virtual tokens first, the passages belong to the suffix.
  """
  first = cfg.virtual_tokens.position == 'first'
  prefix = 1 if first else cfg.data.max_prefix_tokens
  alone = cfg.data.max_suffix_tokens + first * cfg.data.max_prefix_tokens
  branches = len(set(cfg.eval.num_active))
  suffix = max(alone, min(branches * alone, padding.SUFFIX_BUDGET))
  return (
    prefix if first else padding.round_up(prefix, padding.ROUND[0]),
    padding.round_up(suffix, padding.ROUND[1]),
  )


def _compile_decoding(
  cfg: config.Config,
  base: DecoderConfig,
  graph: nnx.GraphDef[Decoder],
  params: nnx.State[str, Any],
  mesh: jax.sharding.Mesh,
  target: aot.Target,
) -> dict[str, dict[str, Any]]:
  """Compiles evaluation: it encodes passages once and answers for every k."""
  rows = partitioning.round_up_rows(mesh, cfg.eval.batch_size)
  branches = len(set(cfg.eval.num_active))
  trainable = kinds.trainable_of(cfg.virtual_tokens)
  batch = abstract_step.batch(
    rows,
    answer_shape(cfg),
    branches,
    mesh,
    per_row=2,
    spans=0 if trainable.in_suffix else branches,
  )
  lowered = generate.encode_prefix.lower(
    params, batch.prefix, batch.prefix_positions, graph=graph
  )
  compiled, encode = aot.compile_program(lowered, target)
  if compiled is None:
    return {'passages': encode}
  cache = jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    lowered.out_info,
    compiled.output_shardings,
  )
  of_vocab: Any = jax.ShapeDtypeStruct((base.vocab_size,), bool)
  eos_id: Any = jax.ShapeDtypeStruct((), jnp.int32)
  answer = generate.generate.lower(
    params,
    trainable.shapes(cfg.virtual_tokens, base),
    cache,
    generate.Suffixes(
      batch.suffix,
      batch.suffix_positions,
      batch.suffix_segments if branches > 1 else None,
      batch.targets,
      batch.spans,
    ),
    generate.Endings(eos_id, of_vocab, of_vocab, of_vocab),
    graph=graph,
    max_new_tokens=cfg.eval.max_new_tokens,
    trainable=trainable,
  )
  return {'passages': encode, 'answers': aot.compile_program(answer, target)[1]}

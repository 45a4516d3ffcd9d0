"""Finds the stored tensors of each parameter."""

import math
from collections.abc import Mapping
from typing import Any

import flax.nnx as nnx
import jax.numpy as jnp
from flax.typing import PathParts
from jaxtyping import Array

from vtokens.models import layer_runs, quantize
from vtokens.models.abstract import abstract_decoder
from vtokens.models.decoder_config import DecoderConfig
from vtokens.models.families import registry
from vtokens.models.families.tensor_names import Form
from vtokens.models.files.expert_weights import JoinedExperts, SplitExperts
from vtokens.models.files.weight_map import Weight


def weights_of(
  config: DecoderConfig, found: Mapping[str, tuple[int, ...]] | None = None
) -> dict[PathParts, tuple[Weight, nnx.Param[Array]]]:
  """Path -> stored tensors, and shape and axes, of every parameter.

  Args:
    config: the architecture.
    found: names and shapes of a source's tensors, which tell the form of its
      files if the family has several.
  """
  found = found or {}
  forms = [
    _weights_in(config, form) for form in _forms_with_names(config, found)
  ]
  fitting = [
    weights
    for weights in forms
    if all(
      found.get(name, weight.whole_shape()) == weight.whole_shape()
      for weight, _ in weights.values()
      for name in weight.names
    )
  ]
  return min(
    fitting or forms[:1],
    key=lambda weights: sum(
      name not in found
      for weight, _ in weights.values()
      for name in weight.names
    ),
  )


def _weights_in(
  config: DecoderConfig, form: Form
) -> dict[PathParts, tuple[Weight, nnx.Param[Array]]]:
  """`weights_of` in one form of the files."""
  _, params = nnx.split(abstract_decoder(config, jnp.dtype(jnp.float32)))
  stacks = layer_runs.stacks(config)
  # Path in the family's table -> its parameters, one for each stack.
  flat: dict[str, list[tuple[PathParts, Any, range | None]]] = {}
  for path, variable in nnx.to_flat_state(params):
    parts, numbers = [str(part) for part in path], None
    if parts[0] == 'layers':
      numbers = stacks[int(parts.pop(1)) if len(stacks) > 1 else 0]
    flat.setdefault('.'.join(parts), []).append((path, variable, numbers))
  family = registry.family_of(config)
  unknown = sorted(set(flat) - set(form.names))
  if unknown:
    raise AssertionError(f'{config.model_type}: no names for {unknown}')
  # The table's order is the order of rows in shared tensors.
  used = {path: name for path, name in form.names.items() if path in flat}
  first, totals = dict[PathParts, int](), dict[tuple[str, range | None], int]()
  for dotted, template in used.items():
    # Stacks of layers may differ in shape.
    for path, variable, numbers in flat[dotted]:
      first[path] = totals.get((template, numbers), 0)
      rows_of = (*_stored(variable, numbers), 0)[0]
      totals[template, numbers] = first[path] + rows_of
  weights = {}
  for dotted, template in used.items():
    number = form.row_groups.get(dotted) or family.row_groups(config, dotted)
    for path, variable, numbers in flat[dotted]:
      groups = number if variable.shape[1:] else 1
      rows = first[path], totals[template, numbers], groups
      weight = _weight(variable, numbers, template, form, rows)
      weights[path] = (weight, variable)
  return weights


def _forms_with_names(
  config: DecoderConfig, found: Mapping[str, Any]
) -> list[Form]:
  """The forms of a family's files whose names a source has."""
  family = registry.family_of(config)
  first, *others = family.forms(config)
  others.extend(family.gguf_forms(config))
  forms = []
  for form in others:
    # Names of tensors that the usual form does not have.
    own = set(form.names.values()) - set(first.names.values())
    if any(
      name.format(i, 0) in found
      for name in own
      for i in range(config.num_layers)
    ):
      forms.append(form)
  return forms or [first]


def _shape(variable: Any, numbers: range | None) -> tuple[int, ...]:
  """Shape of one layer's parameter."""
  return tuple(variable.shape if numbers is None else variable.shape[1:])


def _stored(variable: Any, numbers: range | None) -> tuple[int, ...]:
  """Shape of a parameter, or of one expert's, as outputs and inputs."""
  shape = _shape(variable, numbers)[quantize.matrix_outer(variable) :]
  inputs = quantize.matrix_inputs(variable)
  if variable.get_metadata().get('taps'):
    return shape[0], 1, shape[1]
  if inputs is None:
    return (math.prod(shape),) if shape else ()
  if inputs == 0:
    return shape
  return math.prod(shape[inputs:]), math.prod(shape[:inputs])


def _weight(
  variable: Any,
  numbers: range | None,
  template: str,
  form: Form,
  rows: tuple[int, int, int],
) -> Weight:
  """The stored tensors of one parameter.

  Args:
    variable: the parameter.
    numbers: its layers; None if it is not of a layer.
    template: name of its tensors.
    form: form of the files.
    rows: its first output in the tensor, the outputs of the tensor, and the
      groups of these; see `Weight.groups`.
  """
  shape = _shape(variable, numbers)
  stored = _stored(variable, numbers)
  first, total, groups = rows
  common: dict[str, Any] = {
    'stacked': numbers is not None,
    'shape': shape,
    'stored': stored,
    'inputs': quantize.matrix_inputs(variable) or 0,
    'first_row': first // groups,
    'groups': groups,
    'tensor_rows': total,
  }
  layers = numbers or range(1)
  if not quantize.matrix_outer(variable):
    names = tuple(template.format(i) for i in layers)
    return Weight(names=names, **common)
  count = shape[0]
  if template.count('{}') == 2:
    names = tuple(template.format(i, e) for i in layers for e in range(count))
    return SplitExperts(names=names, experts=count, **common)
  matrix = (total, *stored[1:])
  return JoinedExperts(
    names=tuple(template.format(i) for i in layers),
    input_rows=form.input_rows,
    step=total // stored[0] if form.interleaved else 1,
    tensor_shape=(count, *(matrix[::-1] if form.input_rows else matrix)),
    **common,
  )


def expected_shapes(
  config: DecoderConfig, found: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, tuple[int, ...]]:
  """Name -> shape of every tensor that a checkpoint must hold.

  Args:
    config: the architecture.
    found: see `weights_of`.
  """
  shapes: dict[str, tuple[int, ...]] = {}
  for weight, _ in weights_of(config, found).values():
    # A shared tensor gets its full number of rows from its last parameter.
    shapes.update(dict.fromkeys(weight.names, weight.whole_shape()))
  return shapes

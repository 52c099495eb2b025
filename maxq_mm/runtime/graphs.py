"""A traced graph as plain values, so that a file can hold it, and back; no code is in it.

Operators are named, those of torch that are on a list here and compute without changing anything;
tensors are named, all the model's own; what the graph does not hold for is said in comparisons of
sizes, which are parsed here. A graph with anything else has no such form, and is traced anew.

The form of an argument: None, booleans, numbers and strings as they are, lists and tuples of such,
and dicts of one item for the rest: ``{'node': place in the graph}``, ``{'dtype': 'float32'}``, ...
"""

import ast
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..utils.errors import InputError, first_line
from .fuse import fuse
from .trace import Trace, Value, no_guards

# Of ATen; only their overloads that change nothing.
_OPERATORS = '''
_adaptive_avg_pool2d _log_softmax _native_batch_norm_legit_no_training _softmax _to_copy
_unsafe_view abs adaptive_avg_pool2d add addmm alias amax amin arange avg_pool2d baddbmm bitwise_and
bitwise_not bitwise_or bmm cat ceil chunk clamp clamp_max clamp_min clone constant_pad_nd contiguous
conv1d conv2d conv_transpose2d convolution cos cumsum detach div elu eq exp expand flatten flip
floor full full_like ge gelu group_norm gt hardsigmoid hardswish hardtanh index index_select
layer_norm le leaky_relu linear log logical_and logical_not logical_or lt masked_fill matmul max
max_pool2d maximum mean min minimum mish mm mul native_group_norm native_layer_norm ne neg new_full
new_ones new_zeros ones ones_like pad permute pixel_shuffle pixel_unshuffle pow prelu reciprocal
relu relu6 remainder repeat reshape roll round rsqrt rsub scaled_dot_product_attention select
sigmoid silu sin slice softmax softplus split split_with_sizes sqrt squeeze stack sub sum sym_size
t tanh tile transpose unbind unflatten unsqueeze upsample_bilinear2d upsample_nearest2d var view
where zeros zeros_like
'''
_ATEN = frozenset(_OPERATORS.split())
_ON_NUMBERS = {f'operator.{f.__name__}': f for f in (
    operator.add, operator.eq, operator.floordiv, operator.ge, operator.getitem, operator.gt,
    operator.le, operator.lt, operator.mod, operator.mul, operator.ne, operator.neg, operator.sub,
    operator.truediv)}
_NAME_OF = {f: name for name, f in _ON_NUMBERS.items()}
# Settings of torch, by what str() makes of them.
_SETTINGS = {str(value): value for value in vars(torch).values()
             if isinstance(value, torch.dtype | torch.layout | torch.memory_format)}
_BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
           ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Eq: operator.eq,
           ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
           ast.GtE: operator.ge}
_OF_MODEL = 'model.'  # what the names of the model's tensors begin with
_SAID = 'Guard failed: '  # by torch, before the comparison


class NotPlain(Exception):
    """What of a graph has no plain form."""


class Guards(NamedTuple):
    """Comparisons that the sizes of a graph's arguments must satisfy, in Python's notation.

    They are made of whole numbers, ``+ - * // %`` and ``tensors_0.size()[1]``, of an argument by
    its place.
    """

    comparisons: tuple[str, ...]
    parsed: tuple[ast.expr, ...]

    @classmethod
    def parse(cls, comparisons: Sequence[str]) -> 'Guards':
        """Raises NotPlain for comparisons unlike these."""
        try:
            parsed = tuple(ast.parse(one, mode='eval').body for one in comparisons)
            for one in parsed:  # of any sizes, to see what they are made of
                _evaluated(one, [(7, ) * 8] * 64)
        except Exception as error:  # whatever the text is
            raise NotPlain(f'comparisons of sizes: {first_line(error)}') from error
        return cls(tuple(comparisons), parsed)

    def __call__(self, *tensors: Tensor) -> None:
        """Raises AssertionError for tensors of other sizes."""
        shapes = [tuple(x.shape) for x in tensors]
        for text, one in zip(self.comparisons, self.parsed, strict=True):
            if not _evaluated(one, shapes):
                raise AssertionError(text)


def _evaluated(node: ast.expr, shapes: list[tuple[int, ...]]) -> int:
    match node:
        case ast.Constant(int() as value):
            return value
        case ast.UnaryOp(ast.USub(), operand):
            return -_evaluated(operand, shapes)
        case (ast.BinOp(left, symbol, right) | ast.Compare(left, [symbol], [right])) if (
                type(symbol) in _BINARY):
            return _BINARY[type(symbol)](_evaluated(left, shapes), _evaluated(right, shapes))
        case ast.Subscript(ast.Call(ast.Attribute(ast.Name(name), 'size'), [], []),
                           ast.Constant(int() as axis)) if name.startswith('tensors_'):
            return shapes[int(name.removeprefix('tensors_'))][axis]
    raise NotPlain(f'the comparison {ast.unparse(node)}')


def to_plain(trace: Trace, model: nn.Module) -> dict | None:
    """The form of a trace of ``model`` as :func:`.trace` gives it; None if it has none."""
    try:
        places = {node: place for place, node in enumerate(trace.graph.nodes)}
        own = _tensors(model)
        for target, tensor in trace.tensors.items():
            if own.get(target) is not tensor:
                raise NotPlain(f'{target} is no tensor of the model')
        plain = dict(nodes=[
            (node.name, node.op, _name(node), _plain(node.args, places),
             [(key, _plain(value, places)) for key, value in node.kwargs.items()],
             _plain_value(node.meta.get('val'))) for node in trace.graph.nodes],
            guards=list(_guards(trace.guards).comparisons),
            results=pytree.treespec_dumps(trace.results))
        _restored(plain, model)
    except Exception:  # torch's structures may hold anything; what cannot be read is not stored
        return None
    return plain


def from_plain(plain: dict, model: nn.Module) -> Trace:
    """The trace of ``model`` that :func:`to_plain` was given, fused.

    Raises:
        InputError: it can never have been such a form, or was one of another model.
    """
    try:
        found = _restored(plain, model)
        fuse(found)
        return found
    except Exception as error:  # what is in a dict can be anything
        raise InputError(f'its graph is not sound ({type(error).__name__}: {first_line(error)})'
                         ) from error


def _restored(plain: dict, model: nn.Module) -> Trace:
    graph, nodes, tensors = fx.Graph(), [], {}
    own = _tensors(model)
    for name, op, target, args, kwargs, value in plain['nodes']:
        if op == 'get_attr':
            tensors[target] = own[target]
        elif op not in ('placeholder', 'call_function', 'output'):
            raise NotPlain(f'an operation {op!r}')
        node = graph.create_node(
            op, _operator(target) if op == 'call_function' else target, _made(args, nodes),
            {key: _made(item, nodes) for key, item in kwargs}, name)
        if node.name != name:
            raise NotPlain(f'two nodes {name!r}')
        if value is not None:
            dtype, shape, channels = value
            node.meta['val'] = Value(_SETTINGS[dtype], tuple(shape), channels)
        nodes.append(node)
    graph.lint()
    results = pytree.treespec_loads(plain['results'])
    if [*map(len, nodes[-1].args)] != [results.num_leaves] or nodes[-1].op != 'output':
        raise NotPlain('its results are others')
    return Trace(graph, tensors, Guards.parse(plain['guards']), results, stored=plain)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {f'{_OF_MODEL}{name}': tensor for named in (model.named_parameters, model.named_buffers)
            for name, tensor in named(remove_duplicate=False)}


def _guards(guards: Callable) -> Guards:
    """What torch's guards compare, as they say it when they fail."""
    if isinstance(guards, Guards):
        return guards
    said, functions, seen = [], [getattr(guards, 'forward', guards)], []
    while functions:
        function = functions.pop()
        seen.append(function)
        said += [text.removeprefix(_SAID) for text in function.__code__.co_consts
                 if isinstance(text, str) and text.startswith(_SAID)]
        functions += [cell.cell_contents for cell in function.__closure__ or ()
                      if hasattr(cell.cell_contents, '__code__')
                      and cell.cell_contents not in seen]
    if not said and guards is not no_guards:
        raise NotPlain('guards of a torch that says nothing of them')
    return Guards.parse(said)


def _name(node: fx.Node) -> str:
    if node.op != 'call_function':
        return node.target
    name = _NAME_OF.get(node.target) or str(node.target)
    _operator(name)
    return name


def _operator(name: str) -> Callable:
    if name in _ON_NUMBERS:
        return _ON_NUMBERS[name]
    space, packet, overload = (*name.split('.'), '', '')[:3]
    if space != 'aten' or packet not in _ATEN or not overload.isidentifier():
        raise NotPlain(f'the operator {name}')
    found = getattr(getattr(torch.ops.aten, packet), overload)
    if not isinstance(found, torch._ops.OpOverload) or found._schema.is_mutable:
        raise NotPlain(f'the operator {name}')
    return found


def _plain(value, places: dict):
    if isinstance(value, fx.Node):
        return {'node': places[value]}
    if isinstance(value, tuple):
        return tuple(_plain(item, places) for item in value)
    if isinstance(value, list):
        return [_plain(item, places) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    if str(value) in _SETTINGS:
        return {'torch': str(value)}
    if value == torch.device('cpu'):
        return {'device': 'cpu'}
    raise NotPlain(f'an argument {type(value).__name__}')


def _made(plain, nodes: list[fx.Node]):
    if isinstance(plain, list | tuple):
        return type(plain)(_made(item, nodes) for item in plain)
    if not isinstance(plain, dict):
        return plain
    (kind, value), = plain.items()
    read = {'node': nodes.__getitem__, 'torch': _SETTINGS.__getitem__, 'device': torch.device}
    return read[kind](value)


def _plain_value(value: Value | None) -> tuple | None:
    return None if value is None else (str(value.dtype), value.shape, value.channels)

"""Where each value of a program lies in memory, for inputs of one size.

The layout stands in csrc/runtime.h. A value is as wide as its map plus a border of zeros, as many
as the paddings of the layers that read it; those that a convolution of stride 1 reads and writes
have one border, so that pixels correspond one to one.
"""

from dataclasses import dataclass

from .arrange_int8 import NARROW
from .bands import Operator, Order, padded
from .kernels import PackedLayer
from .library import Library, View
from .quantization import ChannelQuantization, Quantization

Shape = tuple[int, int, int, int]
_LINE = 64  # bytes that values are aligned to


@dataclass(frozen=True)
class Node:
    """An operator and the value that it makes."""

    kind: str
    values: tuple[int, ...]  # that it reads
    channels: int
    relu: bool = False
    rows: bool = False
    like: int | None = None  # value whose height and width it takes
    layer: PackedLayer | None = None
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    # Of a value in uint8; None: float32.
    quantization: Quantization | ChannelQuantization | None = None


def make_views(nodes: list[Node], shapes: list[Shape], found: Library) -> list[View]:
    """Sizes of all values; where they lie is for :func:`place`."""
    width = found.width
    leader = list(range(len(nodes)))  # of values that share their border

    def find(value: int) -> int:
        while leader[value] != value:
            value = leader[value]
        return value

    border = [0] * len(nodes)
    for value, node in enumerate(nodes):
        if node.layer is None:
            continue
        source = node.values[0]
        border[source] = max(border[source], *node.padding)
        if node.stride == (1, 1) and shapes[source][2:] == shapes[value][2:]:
            leader[find(source)] = find(value)
        for residual in node.values[1:]:
            leader[find(residual)] = find(value)
    for value in range(len(nodes)):
        border[find(value)] = max(border[find(value)], border[value])
    views = []
    for value, (n, c, h, w) in enumerate(shapes):
        b = border[find(value)]
        pitch = w + b
        reach = b * pitch + b  # pixels before and behind a map that are read as zeros
        tiles = -(-h * pitch // width)
        margin = max(0, -(-(h * pitch + reach) // width) - tiles)
        quantization = nodes[value].quantization
        element = 4 if quantization is None else 1
        view = View(n=n, c=c, h=h, w=w, pitch=pitch, tiles=tiles, margin=margin, element=element,
                    zero=quantization.zero_point if isinstance(quantization, Quantization) else 0,
                    ring=-1)
        view.size = c
        if found.kernels.lanes_are == 'outputs':
            unit = NARROW if element == 1 and c <= NARROW else found.unit
            view.size = padded(c * element, unit) // element
        size = _tile_bytes(view, found)
        view.image, view.front = (tiles + margin) * size, -(-reach // width) * size
        views.append(view)
    return views


def place(nodes: list[Node], views: list[View], operators: list[Operator], order: Order,
          found: Library) -> int:
    """Give values that live at the same time memory of their own; returns how many bytes in all."""
    last = {}  # operator that ends with the last reader
    for number, operator in enumerate(operators):
        for value in (*operator.reads, *(() if operator.makes is None else (operator.makes, ))):
            last[value] = order.runs[number][1]
    taken: list[tuple[int, int, int]] = []  # begin, end, last reader
    total = 0
    for number, operator in enumerate(operators):
        value = operator.makes
        if value is None:
            continue
        view = views[value]
        taken = [entry for entry in taken if entry[2] >= order.runs[number][0]]
        front, tiles = view.front, view.n * (view.tiles + view.margin)
        if value in order.rings:  # has what is in front at its end
            front, tiles = _LINE, order.rings[value]
            view.ring = tiles - 1
        size = padded(front + tiles * _tile_bytes(view, found), _LINE)
        begin = 0
        for start, end, _ in sorted(taken):
            if begin + size <= start:
                break
            begin = max(begin, end)
        taken.append((begin, begin + size, last[value]))
        view.offset = begin + front
        total = max(total, begin + size)
    # Whole tiles are read behind a map, at every kernel position; what stands there is masked out.
    behind = max((((node.kernel[0] - 1) * node.dilation[0] * view.pitch + node.kernel[1]
                  * node.dilation[1] + 2 * found.width) * (view.c * view.element + found.unit)
                 for node in nodes for view in (views[value] for value in node.values)), default=0)
    return total + behind


def _tile_bytes(view: View, found: Library) -> int:
    return view.size * view.element * found.width

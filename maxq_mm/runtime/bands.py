"""In which order a plan's operators run: one after the other, or large ones in bands of rows.

Maps that are larger than the caches are written to memory and read again where each operator runs
over the whole of its map. So a run of consecutive operators with such maps goes depth first: an
operator makes a band as soon as what it reads is there, and the last that can goes first. A value
that only those operators read is then kept in part: its tiles take turns in a ring of memory.

Positions in a value are pixels of all images, counted with borders and margins as they lie in
memory, and exact: no pixel is computed twice, and each is computed as without bands.
"""

from dataclasses import dataclass, field

from .library import Library, View

# Bytes of a value that a run of operators in bands has at least, and of the largest one's bands,
# for each thread.
LARGE = 8 << 20
BAND = 2 << 20
_LEAST_ITEMS = 4  # of a band, for each thread


@dataclass
class Operator:
    """What of an operator its order depends on; shapes are those of its :class:`View` s."""

    is_layer: bool
    reads: tuple[int, ...]  # values
    makes: int | None  # value; None: an export
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    is_upsampling: bool = False
    block: int = 1  # rows that it makes of one


@dataclass
class Order:
    """Steps ``(operator, begin, end)``, in units of runtime.h.

    ``runs`` are the first and the last operator of the run that each belongs to; ``rings`` the
    tiles, a power of two, that are kept of values.
    """

    steps: list[tuple[int, int, int]] = field(default_factory=list)
    runs: list[tuple[int, int]] = field(default_factory=list)
    rings: dict[int, int] = field(default_factory=dict)


def make_order(operators: list[Operator], views: list[View], library: Library, threads: int
               ) -> Order:
    """The order that ``operators``, each after those whose values it reads, run in."""
    order = Order()
    first = 0
    while first < len(operators):
        end = first
        while end < len(operators) and _largest(operators[end], views) >= LARGE:
            end += 1
        if end - first < 2:
            end = first + 1
            units = _Place(operators[first], views, library).units
            order.steps.append((first, 0, units))
        else:
            _Run(operators, first, end, views, library, threads).add_to(order)
        order.runs += [(first, end - 1)] * (end - first)
        first = end
    return order


def _bytes(view: View) -> int:
    return view.n * view.h * view.w * view.c * view.element


def padded(size: int, unit: int) -> int:
    """Up to a multiple of ``unit``."""
    return -(-size // unit) * unit


def _largest(operator: Operator, views: list[View]) -> int:
    values = operator.reads if operator.makes is None else (*operator.reads, operator.makes)
    return max(_bytes(views[value]) for value in values)


class _Place:
    """Where an operator's units lie in the values that it makes and reads."""

    def __init__(self, operator: Operator, views: list[View], library: Library) -> None:
        self.operator = operator
        self.width = library.width
        self.out = views[operator.reads[0] if operator.makes is None else operator.makes]
        self.sources = [views[value] for value in operator.reads]
        # Else rows.
        self.in_tiles = operator.is_layer and library.kernels.lanes_are == 'pixels'
        self.each = self.out.tiles if self.in_tiles else self.out.h  # units of an image
        self.units = self.out.n * self.each

    def made(self, units: int) -> int:
        """The position that the value is made to, once so many units are."""
        image, unit = divmod(units, self.each)
        size = self.width if self.in_tiles else self.out.pitch
        return image * self._image(self.out) + unit * size

    def reads_from(self, number: int, unit: int) -> int:
        """The first position that this and later units read, of the value with this number."""
        image, unit = divmod(unit, self.each)
        return image * self._image(self.sources[number]) + self._reach(number, unit)[0]

    def reads_to(self, number: int, unit: int) -> int:
        """The position that this unit and those before read the value up to."""
        image, unit = divmod(unit, self.each)
        size = self._image(self.sources[number])
        # At least one: the zeros in front are made with the first.
        return image * size + max(1, min(self._reach(number, unit)[1], size))

    def _image(self, view: View) -> int:
        return (view.tiles + view.margin) * self.width

    def _reach(self, number: int, unit: int) -> tuple[int, int]:
        """First and last position that a unit reads, and one more, in its image."""
        operator, out, source = self.operator, self.out, self.sources[number]
        if not self.in_tiles:
            return self._reach_of_row(number, unit)
        begin = unit * self.width
        if number == 1:  # a residual
            return begin, begin + self.width
        top, left = (-p for p in operator.padding)
        bottom, right = (d * (k - 1) - p for k, d, p in zip(
            operator.kernel, operator.dilation, operator.padding, strict=True))
        if operator.stride == (1, 1) and source.pitch == out.pitch:
            return (begin + top * out.pitch + left,
                    begin + self.width + bottom * out.pitch + right)
        first, last = (min(pixel // out.pitch, out.h - 1) * operator.stride[0]
                       for pixel in (begin, begin + self.width - 1))
        return ((first + top) * source.pitch + left,
                (last + bottom) * source.pitch + (out.w - 1) * operator.stride[1] + right + 1)

    def _reach_of_row(self, number: int, row: int) -> tuple[int, int]:
        operator, source = self.operator, self.sources[number]
        first = last = row
        if number == 0 and operator.is_upsampling:
            near = row * source.h // self.out.h  # but for rounding
            first, last = near - 1, near + 1
        elif operator.block > 1:
            first = last = row // operator.block
        elif number == 0:
            first = row * operator.stride[0] - operator.padding[0]
            last = first + operator.dilation[0] * (operator.kernel[0] - 1)
        first, last = max(first, 0), min(last, source.h - 1)
        return first * source.pitch, last * source.pitch + source.w


class _Run:
    """Operators ``first`` to ``end`` in bands."""

    def __init__(self, operators: list[Operator], first: int, end: int, views: list[View],
                 library: Library, threads: int) -> None:
        self.operators = operators[first:end]
        self.first = first
        self.views = views
        self.width = library.width
        self.places = [_Place(operator, views, library) for operator in self.operators]
        self.maker = {operator.makes: number for number, operator in enumerate(self.operators)
                      if operator.makes is not None}
        self.readers: dict[int, list[tuple[int, int]]] = {value: [] for value in self.maker}
        for number, operator in enumerate(self.operators):
            for which, value in enumerate(operator.reads):
                if value in self.maker:
                    self.readers[value].append((number, which))
        largest = max(_largest(operator, views) for operator in self.operators)
        bands = -(-largest // (BAND * threads))
        self.band = [max(padded(max(1, -(-place.units // bands)), place.operator.block),
                         _LEAST_ITEMS * threads * place.in_tiles) for place in self.places]
        elsewhere = {value for number, operator in enumerate(operators) for value in operator.reads
                     if not first <= number < end}
        self.kept = ({} if library.kernels.lanes_are != 'pixels' else
                     dict.fromkeys(set(self.maker) - elsewhere, 0))  # tiles at once

    def add_to(self, order: Order) -> None:
        """Add the steps of these operators, and what is kept of their values."""
        done = [0] * len(self.operators)
        made = dict.fromkeys(self.maker, 0)
        needs = [None] * len(self.operators)  # of the next band: where it ends, and what it reads
        number = len(self.operators) - 1
        while number >= 0:
            place, operator = self.places[number], self.operators[number]
            if done[number] == place.units:
                number -= 1
                continue
            if needs[number] is None:
                end = min(done[number] + self.band[number], place.units)
                needs[number] = end, [(value, place.reads_to(which, end - 1))
                                      for which, value in enumerate(operator.reads)
                                      if value in self.maker]
            end, reads = needs[number]
            if any(made[value] < position for value, position in reads):
                number -= 1
                continue
            order.steps.append((self.first + number, done[number], end))
            if operator.makes is not None:
                made[operator.makes] = place.made(end)
                self._keep(operator.makes, done, made, done[number] == 0)
            done[number], needs[number] = end, None
            # Nothing behind its last reader can do more than before.
            number = max((reader for reader, _ in self.readers.get(operator.makes, ())),
                         default=number)
        assert all(count == place.units for count, place in zip(done, self.places, strict=True))
        for value, tiles in self.kept.items():
            view = self.views[value]
            ring = 1 << max(tiles - 1, 0).bit_length()
            if ring < view.n * (view.tiles + view.margin):
                order.rings[value] = ring

    def _keep(self, value: int, done: list[int], made: dict[int, int], is_first: bool) -> None:
        """Make room for what is made of a value and still to be read."""
        if value not in self.kept:
            return
        view = self.views[value]
        lowest = [self.places[reader].reads_from(which, done[reader])
                  for reader, which in self.readers[value]
                  if done[reader] < self.places[reader].units]
        if is_first:  # makes the zeros in front, too
            lowest.append(-view.front // (view.c * view.element))
        if lowest:
            tiles = -(-made[value] // self.width) - min(lowest) // self.width
            self.kept[value] = max(self.kept[value], tiles)

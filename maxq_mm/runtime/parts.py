"""Which parts of a model become programs: as large ones as can be traced."""

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field

import torch
from torch import Tensor, nn

from ..utils.errors import first_line
from .calls import FEATURES, Call, Recording, record, run, takes_images
from .compiled import Compiled
from .decisions import LayerDecision, PartDecision, Place, structure_of
from .partition import INT8_WAYS
from .place import function_at, name_of, trace_at
from .trace import Trace, Untraceable, flatten


@dataclass(frozen=True)
class Agreement:
    """How alike the results of two computations are, each by its worst result.

    ``difference``: the largest, as a share of the result's largest value; ``decibels``: of signal
    to noise.
    """

    difference: float
    decibels: float


@dataclass
class Part:
    """A place of ``model``, what is computed there, and what it was called with.

    ``samples`` are some calls that calibration made.
    """

    model: nn.Module
    place: Place
    calls: list[Call]
    trace: Trace
    samples: list[Call] = field(default_factory=list)

    @property
    def name(self) -> str:
        return name_of(self.model, self.place)

    @property
    def module(self) -> nn.Module:
        return self.model.get_submodule(self.place.module)

    @property
    def tensors(self) -> list[list[Tensor]]:
        """Flat arguments of each call."""
        return [flatten(call.args, call.kwargs)[0] for call in self.calls]

    @torch.no_grad()
    def agreement(self, compiled: Compiled, call: Call) -> Agreement:
        """How the compiled results of a call agree with the model's."""
        function = function_at(self.model, self.place)
        expected, _ = flatten((function(*call.args, **call.kwargs), ), {})
        results = compiled.run(flatten(call.args, call.kwargs)[0])
        pairs = [(a.double(), (a - b).double()) for a, b in zip(expected, results, strict=True)
                 if a.numel()]
        if not all(off.isfinite().all() for _, off in pairs):
            return Agreement(math.inf, -math.inf)
        return Agreement(
            max((float(off.abs().max() / a.abs().max().clamp(min=1e-12)) for a, off in pairs),
                default=0.),
            min((float(10 * (a.square().sum() / off.square().sum().clamp(min=1e-30)).log10())
                 for a, off in pairs if off.any()), default=math.inf))

    def decision(self, layers: tuple[LayerDecision, ...]) -> PartDecision:
        """What :mod:`.rebuild` needs to make it again."""
        leaves, arguments = flatten(self.calls[0].args, self.calls[0].kwargs)
        return PartDecision(self.place, structure_of(arguments),
                            tuple(tuple(leaf.shape) for leaf in leaves), layers,
                            self.trace.fingerprint, tuple(
                                (name, *astuple(found))
                                for name, found in self.trace.quantizations.items()
                                if any(layer.way in INT8_WAYS for layer in layers)),
                            self.trace.stored)


@dataclass
class Search:
    """The parts of ``model`` that can be traced and hold all of ``sparse``, layers, that can be.

    ``untraced`` tells why larger ones cannot; ``called`` has the modules that ran.
    """

    model: nn.Module
    args: tuple
    sparse: set[nn.Module]
    parts: list[Part] = field(default_factory=list)
    untraced: list[tuple[str, str]] = field(default_factory=list)
    called: set[nn.Module] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._names = {module: name for name, module in self.model.named_modules()}
        self._left = set(self.sparse)
        if not takes_images(self.model):
            recording = record(self.model, lambda: run(self.model, self.args), keep_within=True)
            self._descend(self.model, recording)
            return
        recording = self._detections(keep_within=False)
        if not self._trunk(recording) and self._left & recording.within:
            recording = self._detections(keep_within=True)
        for child in self.model.children():
            self._descend(child, recording)

    def _detections(self, keep_within: bool) -> Recording:
        """A run of the detector, and one that calls all its heads, if that did not."""
        found = record(self.model, lambda: run(self.model, self.args), keep_within)
        if len(self.args) == 1 and self._left - found.calls.keys() - found.within:
            # Without detections, mask heads are not called; in this mode they get proposals.
            try:
                every = record(self.model, lambda: run(self.model, self.args, 'tensor'),
                               keep_within)
            except Exception as error:  # not all detectors of mmdet have this mode
                self.untraced.append(("mode 'tensor'", first_line(error)))
            else:
                found.calls = {**every.calls, **found.calls}
        self.called |= found.within | {module for module in found.calls if module != FEATURES}
        return found

    def _trunk(self, recording: Recording) -> bool:
        """Trace what a detector does before its heads."""
        calls = recording.calls.get(FEATURES)
        if not calls or not self._left & recording.within:
            return False
        for head in (*self._first_heads(recording), None):
            name = None if head is None else self._names[head]
            if self._add(Place(is_trunk=True, head=name), calls):
                self._left -= recording.within
                return True
        return False

    def _first_heads(self, recording: Recording) -> Iterator[nn.Module]:
        """Children of a detector that are called with just what ``extract_feat`` returned."""
        features, _ = flatten((recording.calls[FEATURES][0].result, ), {})
        for child in self.model.children():
            for call in recording.calls.get(child, ())[:1]:
                leaves, _ = flatten(call.args, call.kwargs)
                if len(call.args) == 1 and not call.kwargs and len(leaves) == len(features) and all(
                        a is b for a, b in zip(leaves, features, strict=True)):
                    yield child

    def _descend(self, module: nn.Module, recording: Recording) -> None:
        """Trace ``module`` or, where that cannot be, what is in it."""
        if not self._left & {*module.modules()}:
            return
        calls = recording.calls.get(module)
        if calls and self._add(Place(self._names[module]), calls):
            return
        for child in module.children():
            self._descend(child, recording)

    def _add(self, place: Place, calls: list[Call]) -> bool:
        try:
            found = trace_at(self.model, place, calls[0].args, calls[0].kwargs)
        except Untraceable as error:
            self.untraced.append((name_of(self.model, place), str(error)))
            return False
        self.parts.append(Part(self.model, place, calls, found))
        whole = place.head if place.is_trunk else place.module
        if whole is not None:
            self._left -= {*self.model.get_submodule(whole).modules()}
        return True

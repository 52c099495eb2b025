"""Fading masks (progressive gradient flow, arXiv 2402.04744) to 2:4: pruned weights fade out."""
_base_ = './maxq_faster_rcnn_r50.py'

maxq = _base_.maxq
maxq.update(axes=())  # no queries: kept weights count as they are
# All blocks are N:M from the start; their pruned weights count ever less, and are 0 at the end.
maxq.ramp.update(fade=True)
custom_hooks = [maxq]

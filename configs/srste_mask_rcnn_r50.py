"""Baseline SR-STE (arXiv 2102.04010) to 2:4: a hard mask with decay, N:M from the start."""
_base_ = './maxq_mask_rcnn_r50.py'

maxq = _base_.maxq
maxq.update(
    axes=(),  # no queries: kept weights count as they are
    ramp=None)  # every block N:M from the first iteration
custom_hooks = [maxq]

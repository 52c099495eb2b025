"""Baseline STE to 2:4: SR-STE without its decay."""
_base_ = './srste_faster_rcnn_r50.py'

maxq = _base_.maxq
maxq.update(decay=0.)  # nothing pulls pruned weights
custom_hooks = [maxq]

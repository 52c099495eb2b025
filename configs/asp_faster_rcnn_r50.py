"""Baseline ASP (arXiv 2104.08378) to 2:4: prune the trained dense detector once, train it again."""
_base_ = './maxq_faster_rcnn_r50.py'

maxq = _base_.maxq
maxq.update(
    axes=(),  # no queries
    ramp=None,  # every block N:M from the first iteration
    decay=0.,  # pruned weights are zero and stay so
    fixed=True)  # the mask of the loaded weights, with its gradient masked
custom_hooks = [maxq]

load_from = 'work_dirs/dense_faster_rcnn_r50/epoch_12.pth'  # train the dense baseline first

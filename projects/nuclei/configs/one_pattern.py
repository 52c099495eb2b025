"""One pattern for all layers but the predicting ones, pruned first: to be timed beside plans."""
start = 'dense_mask_rcnn_r18.py'
config = 'maxq_mask_rcnn_r18.py'

methods = {'one pattern, pruned first': dict(include=(), ramp=None)}
runs = [dict(methods=list(methods), patterns=['2:4', '1:4', '1:8', '1:16'], seeds=[1], pruned=16,
             options={'optim_wrapper.optimizer.lr': 1e-3})]

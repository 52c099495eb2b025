"""The dense detectors that allocation.py needs plans of: six seeds, and nothing else."""
start = 'dense_mask_rcnn_r18.py'
config = 'maxq_mask_rcnn_r18.py'
methods = dict(dense=None)
runs = [dict(methods=[], patterns=[], seeds=[0, 1, 2, 3, 4, 5])]

"""The same as one_pattern.py for the detector of full width, with what it would be dense."""
start = 'dense_mask_rcnn_r50.py'
config = 'maxq_mask_rcnn_r50.py'

methods = {
    'dense': None,
    'one pattern, pruned first': dict(ramp=None),
}
runs = [
    dict(methods=['dense'], patterns=[], seeds=[0]),
    dict(methods=['one pattern, pruned first'], patterns=['1:8', '1:16', '1:4', '2:4'],
         seeds=[0], pruned=16),
]

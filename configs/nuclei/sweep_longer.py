"""The comparison of sweep_all_layers.py over 16 epochs in place of 8."""
start = 'dense_mask_rcnn_r18.py'
config = 'maxq_mask_rcnn_r18_16e.py'

everywhere = dict(include=())
plain = dict(everywhere, axes=(), ramp=None)
methods = {
    'dense, 16 epochs': None,
    'SR-STE, 16 epochs': plain,
    'MaxQ, 16 epochs': everywhere,
    'no ramp, 16 epochs': dict(everywhere, ramp=None),
}
runs = [
    dict(methods=['dense, 16 epochs', 'SR-STE, 16 epochs', 'MaxQ, 16 epochs'],
         patterns=['1:16'], seeds=[0, 1, 2]),
    dict(methods=['no ramp, 16 epochs'], patterns=['1:16'], seeds=[0]),
]

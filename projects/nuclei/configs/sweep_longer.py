"""The comparison of sweep_all_layers.py over 16 epochs in place of 8."""
start = 'dense_mask_rcnn_r18.py'
config = 'maxq_mask_rcnn_r18_16e.py'

everywhere = dict(include=(), predictors=True)
methods = {
    'dense, 16 epochs': None,
    'SR-STE, 16 epochs': dict(everywhere, axes=(), ramp=None),
    'MaxQ, 16 epochs': everywhere,
}
runs = [dict(methods=list(methods), patterns=['1:16'], seeds=[0, 1, 2])]

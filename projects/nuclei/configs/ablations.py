"""What each part of MaxQ is worth: sweep_all_layers.py's MaxQ at 1:16 but for one setting."""
start = 'dense_mask_rcnn_r18.py'
config = 'maxq_mask_rcnn_r18.py'

everywhere = dict(include=(), predictors=True)
plain = dict(everywhere, axes=(), ramp=None)


def ramp(kind, end=5):
    return dict(everywhere, ramp=dict(type=kind, begin=0, end=end, by_epoch=True))


methods = {
    'MaxQ, all layers': everywhere,
    'SR-STE, all layers': plain,  # neither query nor ramp
    'no query': dict(everywhere, axes=()),
    'no ramp': dict(everywhere, ramp=None),
    'no filter query': dict(everywhere, axes=('kernel', )),
    'no kernel query': dict(everywhere, axes=('filter', )),
    'linear ramp': ramp('linear'),
    'cosine ramp': ramp('cosine'),
    'short ramp, 2 epochs': ramp('cubic', 2),
    'long ramp, 7 epochs': ramp('cubic', 7),
    'largest stay dense': dict(everywhere, order='largest'),
    'random stay dense': dict(everywhere, order='random'),
    'no decay': dict(everywhere, decay=0.),
    'temperature 0.03': dict(everywhere, temperature=0.03),
    'temperature 0.1': dict(everywhere, temperature=0.1),  # of the scale of the weights
}
runs = [
    dict(methods=list(methods), patterns=['1:16'], seeds=[0]),
    dict(methods=['MaxQ, all layers', 'SR-STE, all layers', 'no query', 'no ramp',
                  'no filter query', 'no kernel query', 'temperature 0.1'],
         patterns=['1:16'], seeds=[1, 2]),
]
del ramp

"""The picture says what the numbers are."""

import matplotlib.image
import pytest
import torch

from maxq_mm import report, sparsify
from maxq_mm.engine import figure
from maxq_mm.engine.checkpoint import fold_checkpoint
from maxq_mm.functional.ramp import Ramp
from maxq_mm.utils.files import load_file

from .runs import Classifier, make_runner

HOOK = dict(type='MaxQHook', pattern='2:4', overrides={r'backbone\.3': '1:4'},
            ramp=dict(type='linear', begin=0, end=3))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('trained')
    make_runner(work_dir, [HOOK]).train()
    return work_dir


def load(checkpoint):
    model = Classifier()
    model.load_state_dict(checkpoint['state_dict'])
    patterns = {name: layer['pattern'] for name, layer in checkpoint['maxq']['layers'].items()}
    return figure.of_checkpoint(report(model, patterns=patterns), model, checkpoint)


def drawn_weights(axes):
    """How many weights the axes' first histogram counts."""
    return sum(bar.get_height() for bar in axes.containers[0])


def test_training_leaves_its_picture(trained):
    picture = matplotlib.image.imread(trained / 'maxq.png')
    assert picture.shape[0] >= 700
    assert picture.std() > 0.05
    assert not list(trained.glob('.maxq*'))


def test_picture_of_a_training_checkpoint(trained):
    checkpoint = load_file(trained / 'epoch_4.pth')
    kept, ramp, weights, masks = load(checkpoint).axes
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in kept.containers}
    assert widths == {'2:4': [0.5], '1:4': [0.25]}
    assert [text.get_text() for text in kept.get_yticklabels()] == ['backbone.0', 'backbone.3']
    assert ramp.lines[0].get_ydata().tolist() == [
        *[1.] * 4, *[1 - 1 / 3] * 4, *[1 - 2 / 3] * 4, *[0.] * 4]
    count = 16 * 8 * 9 // 2 + 16 * 16 // 4
    assert count * 0.98 <= drawn_weights(weights) <= count
    assert drawn_weights(masks) == count  # all between 1 and 3


def test_picture_of_a_folded_checkpoint(trained):
    _, ramp, _, masks = load(fold_checkpoint(load_file(trained / 'epoch_4.pth'))).axes
    steps, fractions = ramp.lines[0].get_data()
    assert fractions.tolist() == [Ramp('linear', 0, 3)(step) for step in steps]
    assert 'no raw weights' in masks.texts[0].get_text()
    assert not masks.containers


def test_layers_that_do_not_satisfy_are_named():
    model = Classifier()
    sparsify(model, '2:4', include=('backbone', ), ramp=dict(end=3))
    weights = figure.gather([model.backbone[0].effective], None)
    kept, ramp, *_ = figure.draw(report(model), weights, [], None).axes
    assert sum('not satisfied' in text.get_text() for text in kept.texts) == 2
    assert 'not in this file' in ramp.texts[0].get_text()


def test_many_weights_are_thinned_out():
    weights = figure.gather([torch.arange(3_000_000.), torch.zeros(2_000_000)], None)
    assert weights.effective[:3].tolist() == [0., 3., 6.]
    assert len(weights.effective) == 1_000_000 + 666_667


def test_files(tmp_path):
    model = Classifier()
    sparsify(model, '2:4', include=('backbone', ))
    drawn = figure.draw(report(model), figure.gather([model.backbone[0].effective], None), [], None)
    figure.save(drawn, tmp_path / 'a.svg')
    assert '<svg' in (tmp_path / 'a.svg').read_text()
    (tmp_path / 'a.xyz').write_text('precious')
    with pytest.raises(ValueError, match='xyz'):
        figure.save(drawn, tmp_path / 'a.xyz')
    assert (tmp_path / 'a.xyz').read_text() == 'precious'

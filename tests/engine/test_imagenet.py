
import pytest
import torch

from maxq_mm.engine.imagenet import import_classifier

# mmdet's name and the published code's, written out: one block that has every kind of weight.
NAMES = {
    'conv1.weight': 'conv1.weight',
    'bn1.weight': 'bn1.weight',
    'bn1.running_var': 'bn1.running_var',
    'bn1.num_batches_tracked': 'bn1.num_batches_tracked',
    'layer1.0.conv1.weight': 'layer1.0.convbn1.conv.weight',
    'layer1.0.bn1.weight': 'layer1.0.convbn1.scale.weight',
    'layer1.0.bn1.bias': 'layer1.0.convbn1.scale.bias',
    'layer1.0.bn1.running_mean': 'layer1.0.convbn1.scale.running_mean',
    'layer1.0.bn1.running_var': 'layer1.0.convbn1.scale.running_var',
    'layer1.0.bn1.num_batches_tracked': 'layer1.0.convbn1.scale.num_batches_tracked',
    'layer1.0.conv2.weight': 'layer1.0.convbn2.conv.weight',
    'layer1.0.bn2.weight': 'layer1.0.convbn2.scale.weight',
    'layer1.0.conv3.weight': 'layer1.0.convbn3.conv.weight',
    'layer1.0.bn3.weight': 'layer1.0.convbn3.scale.weight',
    'layer1.0.downsample.0.weight': 'layer1.0.downsample.conv.weight',
    'layer1.0.downsample.1.weight': 'layer1.0.downsample.scale.weight',
    'layer1.0.downsample.1.num_batches_tracked': 'layer1.0.downsample.scale.num_batches_tracked',
}
FIRST = 'layer1.0.convbn1.conv.weight'
PREFIXES = ['', 'module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.']


@pytest.fixture
def original():
    state = {}
    for name in NAMES:
        if name.endswith('num_batches_tracked'):
            state[name] = torch.randint(100, ())
        elif 'conv' in name or 'downsample.0' in name:
            state[name] = torch.randn(8, 4, 1, 1)
        else:
            state[name] = torch.randn(8)
    return state


@pytest.fixture
def shapes(original):
    return {name: value.shape for name, value in original.items()}


@pytest.fixture
def published(original):
    return {NAMES[name]: value for name, value in original.items()}


def refusal(checkpoint, shapes) -> str:
    with pytest.raises(ValueError) as error:
        import_classifier(checkpoint, shapes)
    return str(error.value)


@pytest.mark.parametrize('prefix', PREFIXES)
@pytest.mark.parametrize('names', [NAMES, dict.fromkeys(NAMES)])
def test_names_and_values(original, shapes, prefix, names):
    stored = {prefix + (names[name] or name): value for name, value in original.items()}
    for checkpoint in (stored, dict(state_dict=stored, epoch=3, arch='resnet50')):
        imported = import_classifier(checkpoint, shapes)
        assert list(imported.state_dict) == list(original)
        assert all(torch.equal(imported.state_dict[name], original[name]) for name in original)
        assert imported.masks == imported.head == []


def test_masks_and_head_are_left_out(original, shapes, published):
    masks = ['layer1.0.convbn1.mask', 'layer1.0.convbn2.conv.mask', 'layer1.0.downsample.mask',
             'layer1.0.conv3.mask', 'conv1.mask', 'layer1.0.downsample.conv.mask']
    head = ['fc.weight', 'fc.bias']
    for name in masks + head:
        published[name] = torch.full((2, ), torch.nan)
    imported = import_classifier(published, shapes)
    assert imported.masks == masks
    assert imported.head == head
    assert all(torch.equal(imported.state_dict[name], original[name]) for name in original)
    assert len(imported.state_dict) == len(original)


@pytest.mark.parametrize('key', [
    'mask', 'bn1.mask', 'layer1.0.mask', 'layer1.0.convbn4.mask', 'layer1.1.convbn1.mask',
    'layer1.0.convbn11.mask'])
def test_a_mask_of_no_convolution_is_unknown(shapes, published, key):
    published[key] = torch.ones(2)
    assert refusal(published, shapes) == f'1 unknown: {key}'


def test_batch_counts_may_be_missing(original, shapes, published):
    published = {key: value for key, value in published.items() if 'tracked' not in key}
    imported = import_classifier(published, shapes)
    assert set(original) - set(imported.state_dict) == {
        'bn1.num_batches_tracked', 'layer1.0.bn1.num_batches_tracked',
        'layer1.0.downsample.1.num_batches_tracked'}


@pytest.mark.parametrize(('stored', 'imported'), [
    (torch.float16, torch.float32), (torch.bfloat16, torch.float32),
    (torch.float32, torch.float32), (torch.float64, torch.float64)])
def test_types(shapes, published, stored, imported):
    published[FIRST] = published[FIRST].to(stored)
    value = import_classifier(published, shapes).state_dict['layer1.0.conv1.weight']
    assert value.dtype == imported
    assert torch.equal(value, published[FIRST].to(imported))


def test_the_result_stands_for_itself(shapes, published):
    weight = torch.nn.Parameter(torch.randn(2, 8, 4, 1, 1).transpose(1, 2)[0].transpose(0, 1))
    published[FIRST] = weight
    value = import_classifier(published, shapes).state_dict['layer1.0.conv1.weight']
    assert type(value) is torch.Tensor
    assert not value.requires_grad
    assert value.is_contiguous()
    assert value.untyped_storage().nbytes() == 4 * value.numel()
    assert torch.equal(value, weight)


@pytest.mark.parametrize('prefix', PREFIXES)
def test_all_that_does_not_fit_is_named_as_in_the_file(shapes, published, prefix):
    del published['layer1.0.convbn2.conv.weight'], published['layer1.0.downsample.scale.weight']
    published['layer1.0.convbn2.scale.gamma'] = torch.ones(8)
    published[FIRST] = torch.ones(8, 4, 3, 3)
    stored = {prefix + key: value for key, value in published.items()}
    assert refusal(stored, shapes) == (
        f'2 missing: {prefix}layer1.0.convbn2.conv.weight, '
        f'{prefix}layer1.0.downsample.scale.weight; '
        f'1 unknown: {prefix}layer1.0.convbn2.scale.gamma; '
        f'1 of another shape: {prefix}{FIRST} (8, 4, 3, 3) instead of (8, 4, 1, 1)')


def test_missing_in_mmdets_own_layout(original, shapes):
    del original['layer1.0.conv2.weight']
    assert refusal(original, shapes) == '1 missing: layer1.0.conv2.weight'


@pytest.mark.parametrize(('number', 'listed'), [
    (10, ', x8, x9'), (11, ', x8, x9 and 1 more'), (300, ', x8, x9 and 290 more')])
def test_long_lists_are_cut_after_ten(shapes, published, number, listed):
    published.update({f'x{i}': torch.ones(1) for i in range(number)})
    error = refusal(published, shapes)
    assert error.startswith(f'{number} unknown: x0, x1')
    assert error.endswith(listed)


def test_a_weight_that_is_there_twice(shapes, original, published):
    published['layer1.0.bn2.weight'] = original['layer1.0.bn2.weight']
    assert refusal(published, shapes) == (
        '1 given twice: layer1.0.convbn2.scale.weight and layer1.0.bn2.weight')
    original['module.conv1.weight'] = original['conv1.weight']
    assert refusal(original, shapes) == '1 given twice: conv1.weight and module.conv1.weight'


def test_layouts_may_mix_where_no_weight_is_there_twice(original, shapes, published):
    published['layer1.0.bn2.weight'] = published.pop('layer1.0.convbn2.scale.weight')
    imported = import_classifier(published, shapes)
    assert all(torch.equal(imported.state_dict[name], original[name]) for name in original)


@pytest.mark.parametrize('value', [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize('dtype', [torch.float16, torch.float32])
def test_numbers_that_are_none(shapes, published, value, dtype):
    for key in ('layer1.0.convbn2.conv.weight', 'layer1.0.convbn3.conv.weight'):
        published[key] = published[key].to(dtype)
        published[key][3, 2] = value
    assert refusal(published, shapes) == (
        'layer1.0.convbn2.conv.weight has values that are NaN or infinite')


def test_the_first_in_the_file_is_named(shapes, published):
    for key in ('layer1.0.convbn2.conv.weight', 'conv1.weight'):
        published[key] = published.pop(key) * torch.nan  # moves it to the end
    assert 'layer1.0.convbn2.conv.weight has' in refusal(published, shapes)


@pytest.mark.parametrize('value', [torch.ones(8, 4, 1, 1, dtype=torch.int8),
                                   torch.ones(8, 4, 1, 1, dtype=torch.complex64)])
def test_weights_of_other_types(shapes, published, value):
    published[FIRST] = value
    assert f'{FIRST} is of type {value.dtype}' in refusal(published, shapes)


@pytest.mark.parametrize('value', [torch.ones(8, 4, 1, 1).to_sparse(),
                                   torch.ones(8, 4, 1, 1, device='meta')])
def test_tensors_without_plain_numbers(shapes, published, value):
    published[FIRST] = value
    assert refusal(published, shapes) == f'{FIRST} is no tensor with plain numbers'


@pytest.mark.parametrize(('checkpoint', 'error'), [
    ({}, 'it holds no weights'),
    (dict(state_dict={}), 'it holds no weights'),
    (dict(state_dict=[torch.ones(1)]), 'its state_dict is a list'),
    (dict(model={}), "no state dict: it has 'model' with a dict"),
    (dict(state_dict={'conv1.weight': [1.0]}), "it has 'conv1.weight' with a list"),
    (dict(state_dict={3: torch.ones(1)}), 'it has 3 with a Tensor'),
])
def test_what_is_no_state_dict(shapes, checkpoint, error):
    assert error in refusal(checkpoint, shapes)

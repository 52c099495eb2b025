"""One line for what is the user's, a traceback for what is not."""

import errno
import re
import resource

import pytest

from maxq_mm import cli
from maxq_mm.utils.errors import InputError

from ..running import run_tool


def line(capsys, main) -> str:
    """What a tool says that refuses."""
    with pytest.raises(SystemExit) as exit:
        cli.run(main)
    assert exit.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith('error: ')
    assert printed.count('\n') == 1
    return printed.removeprefix('error: ').strip()


def raising(error):
    def main():
        raise error
    return main


def test_by_type(capsys):
    assert line(capsys, raising(InputError('pattern 5:4'))) == 'pattern 5:4'
    assert line(capsys, raising(InputError('of two\n  lines'))) == 'of two lines'
    assert line(capsys, raising(FileNotFoundError(2, 'x', 'a.pth'))) == 'file not found: a.pth'
    assert line(capsys, raising(OSError(errno.ENOSPC, 'No space left on device', 'a'))) == (
        'cannot write a: No space left on device')


def test_the_error_comes_last(tmp_path):
    tool = tmp_path / 'tool.py'
    tool.write_text('from maxq_mm import cli\n'
                    'def main():\n'
                    '    print("at work")\n'
                    '    raise cli.InputError("no")\n'
                    'cli.run(main)\n')
    assert run_tool(tool, code=2).splitlines() == ['at work', 'error: no']


@pytest.mark.parametrize('error', [
    ValueError('too many values to unpack'), KeyError('mask'), RuntimeError('x'),
    FileNotFoundError('of a socket'), OSError(errno.EIO, 'Input/output error')], ids=repr)
def test_others_are_bugs_and_keep_their_traceback(error):
    with pytest.raises(type(error)) as caught:
        cli.run(raising(error))
    assert caught.value is error


def test_a_value_error_inside_the_package_keeps_its_traceback(monkeypatch):
    from maxq_mm.functional.pattern import Pattern
    monkeypatch.setattr(Pattern, 'parse', classmethod(lambda cls, text: int('a bug')))
    with pytest.raises(ValueError, match='invalid literal'):
        cli.run(lambda: Pattern.parse('2:4'))


def test_errors_that_a_registry_raises_anew(capsys):
    def anew():
        try:
            raise InputError('pattern 5:4')
        except InputError as error:
            raise type(error)(f'class `MaxQHook` in maxq_hook.py: {error}')  # noqa: B904

    def other():
        try:
            raise InputError('one')
        except InputError:
            raise InputError('two')  # noqa: B904

    assert line(capsys, anew) == 'pattern 5:4'
    assert line(capsys, other) == 'two'


def test_a_registry_as_it_is_here(capsys):
    from mmengine.registry import HOOKS

    import maxq_mm  # noqa: F401
    assert '5:4' in line(capsys, lambda: HOOKS.build(dict(type='MaxQHook', pattern='5:4')))


def test_types_that_do_not_exist(capsys):
    from mmengine.registry import HOOKS
    assert re.fullmatch(  # of the scope that is the default at the time
        r'MaxHook is not in the \w+::hook registry: is its name right, and what defines it in '
        r'custom_imports\?', line(capsys, lambda: HOOKS.build(dict(type='MaxHook'))))


def test_errors_of_a_dataloaders_processes(capsys):
    from torch.utils.data import DataLoader
    loader = DataLoader(Broken(), num_workers=1)
    assert line(capsys, lambda: list(loader)) == 'image cannot be read: a.png'


class Broken:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise InputError('image cannot be read: a.png')


@pytest.mark.parametrize(('kind', 'text', 'good'), [
    (cli.positive, '3', True), (cli.positive, '0', False), (cli.positive, '-1', False),
    (cli.positive, '1.5', False), (cli.positive, 'x', False), (cli.positive, '', False),
    (cli.natural, '0', True), (cli.natural, '-1', False)])
def test_whole_numbers(kind, text, good):
    import argparse
    if good:
        assert kind(text) == int(text)
    else:
        with pytest.raises(argparse.ArgumentTypeError, match='must be a whole number of at least'):
            kind(text)


def test_outputs_that_would_take_the_place_of_something(tmp_path):
    source, link = tmp_path / 'a.pth', tmp_path / 'link.pth'
    source.write_text('precious')
    link.symlink_to(source)
    (tmp_path / 'hard.pth').hardlink_to(source)
    for out in (source, link, tmp_path / 'hard.pth', tmp_path / 'x/../a.pth'):
        (tmp_path / 'x').mkdir(exist_ok=True)
        with pytest.raises(InputError, match='is the input itself'):
            cli.check_outputs(out, inputs=[None, source])
    new = tmp_path / 'new.json'
    with pytest.raises(InputError, match='written twice'):
        cli.check_outputs(new, None, tmp_path / 'x/../new.json')
    cli.check_outputs(new, None, tmp_path / 'other.json', '/dev/null', '/dev/null',
                      inputs=[source, '/dev/null'], folders=[None, tmp_path / 'work'])
    assert source.read_text() == 'precious'
    assert not new.exists()


def test_a_full_disk_is_one_line(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(InputError, match=f'cannot write {tmp_path}/a.json: File too large'):
            cli.write_json(dict(a='x' * 5000), tmp_path / 'a.json')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_devices(capsys):
    cli.check_device('cpu')
    for name in ('gpu', 'cpu:x', '', 'meta'):
        with pytest.raises(InputError, match=f'--device {name}: '):
            cli.check_device(name)

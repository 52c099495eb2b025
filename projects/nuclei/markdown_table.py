"""Tables of the reports, in Markdown."""

from collections.abc import Iterable, Sequence


def markdown(head: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A table of ``rows`` under their ``head``, which has a word for each of their cells."""
    lines = ['| ' + ' | '.join(map(str, row)) + ' |' for row in (head, *rows)]
    return '\n'.join([lines[0], '|---' * len(head) + '|', *lines[1:]])

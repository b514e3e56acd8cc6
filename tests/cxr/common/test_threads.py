"""Items go through threads in their order, a few at a time."""

from collections.abc import Iterator

from cxr.common.threads import map_in_order


def test_results_keep_the_order_and_few_items_are_taken_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    ahead = [
        taken - number for number, found in enumerate(map_in_order(str, items(), workers=2)) if found == f"{number}"
    ]
    assert len(ahead) == 1000
    assert max(ahead) <= 2 * 16

"""Class names, in the order that every array, table and figure uses, and the tasks made of them."""

from typing import Literal, get_args

Label = Literal["normal", "viral", "bacterial", "covid"]
Task = Literal["three_way", "four_way"]

LABELS: tuple[Label, ...] = get_args(Label)

CLASSES: dict[Task, tuple[Label, ...]] = {
    "three_way": ("normal", "viral", "bacterial"),
    "four_way": LABELS,
}

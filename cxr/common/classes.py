"""Class names, in the order of every array, table and figure, and the classes of each task."""

from typing import Literal, get_args

Label = Literal["normal", "viral", "bacterial", "covid"]
Task = Literal[
    "three_way", "four_way", "viral_normal", "bacterial_normal", "covid_normal", "covid_viral", "viral_bacterial"
]

LABELS: tuple[Label, ...] = get_args(Label)

CLASSES: dict[Task, tuple[Label, ...]] = {
    "three_way": ("normal", "viral", "bacterial"),
    "four_way": LABELS,
    # The pairs of Ibrahim et al. 2020, and viral against bacterial of Nguyen et al. 2020.
    "viral_normal": ("normal", "viral"),
    "bacterial_normal": ("normal", "bacterial"),
    "covid_normal": ("normal", "covid"),
    "covid_viral": ("viral", "covid"),
    "viral_bacterial": ("viral", "bacterial"),
}

"""The engines that compute answers, by the names that commands and functions take."""

from typing import Literal, get_args

Engine = Literal["torch", "openvino"]
"""`torch`: bit for bit the answers of the evaluation. `openvino`: the exported network, several times faster."""

ENGINES: tuple[Engine, ...] = get_args(Engine)

"""Zero initialisation, so that a new part changes nothing in the network around it."""

from torch import nn


def zero_init(*layers: nn.Module) -> None:
    """Set every parameter of the layers to zero."""
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)

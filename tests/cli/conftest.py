"""Commands of Lightning that are set up but not run."""

import pytest
import torch
import yaml

from clipseg3d.cli.lightning_cli import CLIPSeg3DCLI, run_lightning
from clipseg3d.configs import config_path

PHANTOM = config_path("phantom_tiny")


@pytest.fixture
def only(monkeypatch):
    """Build the parser of one command only, which is most of the time of a command."""
    methods = CLIPSeg3DCLI.subcommands()
    return lambda name: monkeypatch.setattr(
        CLIPSeg3DCLI, "subcommands", staticmethod(lambda: {name: methods[name]})
    )


@pytest.fixture
def no_network(monkeypatch):
    """Build modules without their network."""
    monkeypatch.setattr(
        "clipseg3d.training.module.build_clipseg3d", lambda *_, **options: torch.nn.Module()
    )


@pytest.fixture
def parsed(monkeypatch, only, no_network):
    """Build module and data of a command, without the network, and run nothing."""

    def parse(*arguments, command="fit"):
        built = []
        only(command)
        monkeypatch.setattr(CLIPSeg3DCLI, "_run_subcommand", lambda self, name: built.append(self))
        run_lightning([command, *map(str, arguments)])
        return built[0]

    return parse


@pytest.fixture
def write(tmp_path):
    """Write the phantom configuration with a model of one's own."""

    def config(**model):
        values = yaml.safe_load(PHANTOM.read_text())
        values["model"] = {**values["model"], **model}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return config

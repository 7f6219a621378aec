"""Write the image path as a graph: ONNX for any runtime, torch.export for PyTorch."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.export import ExportedProgram

from clipseg3d import __version__
from clipseg3d.atomic_write import atomic_write
from clipseg3d.export.image_path import ImagePath, example_inputs
from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.networks.prediction_settings import PredictionSettings


def write_onnx(
    network: CLIPSeg3D, path: Path, settings: PredictionSettings, *, report: str = ""
) -> None:
    """Write :class:`ImagePath` as an ONNX graph for one crop, with the settings as metadata.

    Args:
        network: trained, on the CPU.
        path: file to write, ending in .onnx.
        settings: prediction settings; the graph takes crops of their ROI size.
        report: its embeddings are stored in the graph, together with those of the region prompts.

    Raises:
        ValueError: ``path`` has another ending; a report is given to a network that reads no text;
            or the graph is larger than 2 GB, the limit of ONNX files.
        ImportError: onnx or onnxscript, which are needed to make the graph, are not installed.
        OSError: the file cannot be written.
    """
    _require_ending(path, ".onnx")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'ONNX graphs are made by onnx and onnxscript: pip install "clipseg3d[export]"'
        ) from error
    traced = _trace(network, settings, report).run_decompositions(
        {
            torch.ops.aten.logaddexp.default: _logaddexp,
            torch.ops.aten.log_sigmoid.default: _log_sigmoid,
        }
    )
    with _quiet():
        exported = torch.onnx.export(traced, output_names=["logits"], dynamo=True, verbose=False)
    program = cast(torch.onnx.ONNXProgram, exported)  # None only without dynamo
    program.model.metadata_props.update(_metadata(network, settings, report))
    with atomic_write(path) as tmp:
        program.save(str(tmp))


def write_torch(
    network: CLIPSeg3D, path: Path, settings: PredictionSettings, *, report: str = ""
) -> None:
    """Write :class:`ImagePath` with :func:`torch.export.save`; arguments as for :func:`write_onnx`.

    Settings are stored inside as ``clipseg3d.json`` (``extra_files`` of torch.export.load).

    Raises:
        ValueError: ``path`` does not end in .pt2; or a report is given to a network that reads no
            text.
        OSError: the file cannot be written.
    """
    _require_ending(path, ".pt2")
    program = _trace(network, settings, report)
    metadata = json.dumps(_metadata(network, settings, report))
    content = BytesIO()  # torch ends the whole process if it cannot write to a file
    torch.export.save(program, content, extra_files={"clipseg3d.json": metadata})
    with atomic_write(path) as tmp:
        tmp.write_bytes(content.getbuffer())


def _trace(network: CLIPSeg3D, settings: PredictionSettings, report: str) -> ExportedProgram:
    """Return the image path as a graph of tensor operations."""
    return torch.export.export(
        ImagePath(network, report=report),
        (),
        kwargs=example_inputs(network, settings.roi_size),
        strict=False,
    )


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """Return log(e^a + e^b), where a or b is finite.

    ONNX has no such operation, and PyTorch's exporter writes the plain formula, which is infinite
    below -88.
    """
    return torch.maximum(a, b) + torch.log1p(torch.exp(-(a - b).abs()))


def _log_sigmoid(x: Tensor) -> Tensor:
    """Return log(sigmoid(x)); see :func:`_logaddexp`."""
    return x.clamp(max=0) - torch.log1p(torch.exp(-x.abs()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence logs and warnings about internals of the exporters, which users cannot act upon."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _metadata(network: CLIPSeg3D, settings: PredictionSettings, report: str) -> dict[str, str]:
    """Return what a user of the graph must know, as name -> text."""
    metadata = {
        "clipseg3d": __version__,
        "release": settings.release_name,
        "spacing_mm": f"{settings.spacing_mm:g}",
        "report": report,
        # for who runs the graph: it gives logits, and applies none
        "postprocessing": json.dumps(settings.postprocessing or {}),
        "encoders": json.dumps(network.encoder_identities()),
    }
    if network.config is not None:
        metadata |= {
            name: ",".join(getattr(network.config, name)) for name in ("sequences", "regions")
        }
    return metadata


def _require_ending(path: Path, ending: str) -> None:
    """Raise a ValueError for a file with another ending."""
    if path.suffix != ending:
        raise ValueError(f"{path}: does not end in {ending}; rename it")

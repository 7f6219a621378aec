"""Damaged, odd and hostile inputs over every public door of the library.

A door turns a seed into an input: files in a folder of its own, a call, and what may come of it.
Seed 0 is undamaged; what it gives is the right result of the door.
"""

import gzip
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from clipseg3d.cli.lightning_cli import CLIPSeg3DCLI
from clipseg3d.cli.main import main
from clipseg3d.clip import HuggingFaceCLIP, load_encoder
from clipseg3d.clip.text_bank import TextBank
from clipseg3d.data.cache import build_cache
from clipseg3d.data.cases import find_cases
from clipseg3d.data.releases import PHANTOM
from clipseg3d.data.splits import Splits
from clipseg3d.inference import batch_prediction  # noqa: F401
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.prediction_settings import PredictionSettings
from clipseg3d.phantom.write import write_phantoms
from clipseg3d.pretrained.formats import FORMAT
from clipseg3d.pretrained.reader import load_pretrained

CASES = tuple(f"Phantom_{seed:05d}" for seed in range(4))
REPORT = "Lesion in the left frontal lobe. Marked oedema."
SMALL = NetworkConfig(
    channels=(4, 6, 8), num_auxiliary=1, semantic_dim=12, num_heads=3, clip="tiny-random"
)
PLAIN = NetworkConfig(channels=(4, 8), num_auxiliary=0, semantics=False)
SETTINGS = PredictionSettings("phantom", 8.0, roi_size=(16, 20, 12), overlap=0.25)
LONG = "long" * 2500
ODD = (
    *(None, True, False, 0, -1, 1, 3, 0.5, -0.0, 1e308, 10**30, 2**31, 2**63),
    *(float("nan"), float("inf"), "", "word", "0", "nan", LONG, "é\n\t\x1b[31m", "\ud800", "../.."),
    *([], {}, [[]], [None], [1, "a"], {"a": {"b": []}}, [1] * 1000, [-1, 0, 1], "~", "%s{}"),
)
"""Values where others are expected."""
TEXTS = (
    *(b"", b"\xef\xbb\xbf" + REPORT.encode(), REPORT.encode("utf-16"), b"\xff\xfe\x00", bytes(9)),
    *(REPORT.encode("utf-32"), "Läsion".encode("latin-1"), b"word " * 10_000, b"x" * 20_000),
    *(b"a" * 1_500_000, b"\x1b[2J" + REPORT.encode(), b"line\r\n" * 50, "病变🧠\u202e".encode()),
    *(b"PK\x03\x04", b"{}", b"\n\n \t\n", b"\x7fELF" + bytes(range(256)), "e\u0301".encode() * 500),
)
"""Contents of a file of text."""


class Runs:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("executed",))


@dataclass(frozen=True)
class Input:
    """An input, and what may come of it.

    Attributes:
        what: it is, in words.
        call: arguments of a command, or a function of the library.
        expect: ``right`` must work; ``refused`` must not; ``same`` is refused or gives the right
            result of the door; ``either`` is refused or works.
        names: words of which an error must hold one.
    """

    what: str
    call: list[str] | Callable[[], Any]
    expect: str = "either"
    names: tuple[str, ...] = ()

    def run(self):
        """Return the exit code, and what came of it."""
        if callable(self.call):
            return 0, self.call()
        code = main(self.call)
        return code, None if code else results(Path())


@dataclass(frozen=True)
class Door:
    name: str
    count: int
    make: Callable[..., Input]


DOORS: dict[str, Door] = {}


def door(name, count):
    """Register a generator of inputs, which takes random numbers, seed, folder and world."""

    def add(make):
        DOORS[name] = Door(name, count, make)
        return make

    return add


class World:
    """What undamaged inputs are made of, written once."""

    def __init__(self, folder):
        os.environ |= {"HF_HUB_OFFLINE": "1", "CLIPSEG3D_CACHE": str(folder / "default_cache")}
        torch.set_num_threads(1)
        methods = CLIPSeg3DCLI.subcommands()
        CLIPSeg3DCLI.subcommands = staticmethod(lambda: {"fit": methods["fit"]})
        self.cases, self.net, self.clip = folder / "cases", folder / "net", folder / "clip"
        self.checkpoint, self.texts = folder / "weights.ckpt", folder / "texts.safetensors"
        self.plain, self.cache = folder / "plain.ckpt", folder / "cache"
        write_phantoms(self.cases, len(CASES), spacing_mm=8.0)
        self.right_masks = self.masks(folder / "masks")
        self.found = find_cases(self.cases, PHANTOM, spacing_mm=8.0)
        self.encoder = HuggingFaceCLIP.tiny_random()
        self.encoder.frozen_model.save_pretrained(self.clip)
        self.encoder.tokenizer.save_pretrained(self.clip)
        torch.manual_seed(0)
        network = build_clipseg3d(SMALL, encoder=self.encoder).eval()
        network.settings = SETTINGS
        network.save_pretrained(self.net)
        self.save_checkpoint(network, SMALL, self.checkpoint)
        self.save_checkpoint(build_clipseg3d(PLAIN), PLAIN, self.plain)
        TextBank(self.encoder, ("WT", "TC", "ET")).save(self.texts, [REPORT])
        build_cache(self.found, PHANTOM, self.cache)
        main(self.segment(self.cases / CASES[0], folder / "warm"))  # what is loaded once

    def save_checkpoint(self, network, config, path):
        """Write a checkpoint as training does."""
        weights = {f"network.{name}": w for name, w in network.state_dict().items()}
        values = {**asdict(SETTINGS), "network": asdict(config)}
        content = {"format": FORMAT, "hyper_parameters": values, "state_dict": weights}
        torch.save({**content, "encoders": network.encoder_identities()}, path)

    def segment(self, case, out="out", *, weights=None):
        """Return the arguments to segment a case."""
        return ["segment", str(case), "-o", str(out), "--weights", str(weights or self.plain)]

    def case(self, folder, name=CASES[0]):
        """Copy a case into a folder."""
        return Path(shutil.copytree(self.cases / name, folder / name))

    def masks(self, folder):
        """Write segmentations of all cases into a folder."""
        folder.mkdir()
        for name in CASES:
            shutil.copy(self.cases / name / f"{name}_seg.nii.gz", folder / f"{name}.nii.gz")
        return folder


def results(folder):
    """Return what a command has written into ``out``: label maps, or other files, by name."""
    files = sorted(path for path in folder.glob("out*/*") if path.is_file())
    return [
        (path.name, np.asarray(nib.load(path).dataobj).tobytes())
        if path.name.endswith(".nii.gz")
        else (path.name, path.read_bytes() if path.suffix == ".csv" else b"")
        for path in files
    ]


def damaged(rng, data, *, kinds=7):
    """Return bytes with a fault, and which."""
    data, where, kind = bytearray(data), rng.randrange(max(1, len(data))), rng.randrange(kinds)
    if kind <= 2 and data:
        data[where] ^= 1 << rng.randrange(8)
        return bytes(data), f"bit flipped in byte {where}"
    if kind == 3:
        return bytes(data[:where]), f"cut off at {where}"
    if kind == 4:
        data[where : where + rng.randrange(1, 64)] = bytes(64)
        return bytes(data), f"zeros at {where}"
    if kind == 5:
        for _ in range(20):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data), "20 random bytes"
    data[where:where] = rng.randbytes(rng.randrange(1, 100))
    return bytes(data), f"bytes inserted at {where}"


def harm(rng, path, **options):
    """Damage a file; return how."""
    data, what = damaged(rng, path.read_bytes(), **options)
    path.write_bytes(data)
    return f"{path.name}: {what}"


OTHER_BYTES = (b"", b"\0", b"hello", b"\x1f\x8b", b"PK\x03\x04" + bytes(400), bytes(5000))


def rewrite(path, voxels=None, affine=None, **header):
    """Write a NIfTI file again with other voxels, affine or fields of the header."""
    image = nib.load(path)
    voxels = np.asarray(image.dataobj) if voxels is None else voxels(np.array(image.dataobj))
    new = nib.Nifti1Image(voxels, image.affine if affine is None else affine, dtype=voxels.dtype)
    for name, value in header.items():
        new.header[name] = value
    nib.save(new, path)


def with_header(path, name, value):
    """Change a field of the header on disk, whatever nibabel thinks of it."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    header = np.frombuffer(data, nib.nifti1.header_dtype, count=1)
    header[name] = value
    path.write_bytes(gzip.compress(bytes(data), 1))


def with_voxels(value):
    """Return a change of volumes: a value in some voxels of the brain."""

    def change(v):
        v = v.astype(np.float32)
        v[v.shape[0] // 2, v.shape[1] // 2] = value
        return v

    return change


REFUSED = {
    "NaN in the brain": lambda r, p: rewrite(p, with_voxels(np.nan)),
    "infinity": lambda r, p: rewrite(p, with_voxels(np.inf)),
    "all NaN": lambda r, p: rewrite(p, lambda v: np.full(v.shape, np.nan, "f4")),
    "complex": lambda r, p: rewrite(p, lambda v: v.astype("c8")),
    "4D of two": lambda r, p: rewrite(p, lambda v: np.stack([v, v], -1)),
    "2D": lambda r, p: rewrite(p, lambda v: v[..., 0]),
    "axis of 0": lambda r, p: rewrite(p, lambda v: v[:0]),
    "one voxel": lambda r, p: rewrite(p, lambda v: v[:1, :1, :1]),
    "a slice less": lambda r, p: rewrite(p, lambda v: v[:-1]),
    "moved": lambda r, p: rewrite(p, affine=np.diag([-8.0, 8, 8, 1])),
    "affine of NaN": lambda r, p: with_header(p, "srow_x", [np.nan] * 4),
    "affine of 0": lambda r, p: with_header(p, "srow_y", [0] * 4),
    "not NIfTI": lambda r, p: p.write_bytes(r.choice(OTHER_BYTES)),
    "random bytes": lambda r, p: p.write_bytes(r.randbytes(r.randrange(5000))),
    "cut off": lambda r, p: p.write_bytes(p.read_bytes()[: r.randrange(400)]),
    "bomb": lambda r, p: p.write_bytes(p.read_bytes() + gzip.compress(bytes(300 << 20), 1)),
    "huge dims": lambda r, p: with_header(p, "dim", [3, *[32767] * 3, 1, 1, 1, 1]),
    "odd dims": lambda r, p: with_header(p, "dim", [r.randrange(-9, 9)] * 8),
    "wrong magic": lambda r, p: with_header(p, "magic", b"abc"),
    "unknown type": lambda r, p: with_header(p, "datatype", r.choice([0, 1, 128, 999])),
    "offset": lambda r, p: with_header(p, "vox_offset", r.choice([-1, 1e9, np.nan, 1e30])),
    "sparse": lambda r, p: sparse(p),
    "a folder": lambda r, p: (p.unlink(), p.mkdir()),
    "a pipe": lambda r, p: (p.unlink(), os.mkfifo(p)),
    "a link to itself": lambda r, p: (p.unlink(), p.symlink_to(p.name)),
    "missing": lambda r, p: p.unlink(),
}
SAME = {
    "float64": lambda r, p: rewrite(p, lambda v: v.astype("f8")),
    "big endian": lambda r, p: rewrite(p, lambda v: v.astype(">f4")),
    "4D of one": lambda r, p: rewrite(p, lambda v: v[..., None]),
    "damaged": lambda r, p: harm(r, p),
    "two files": lambda r, p: with_header(p, "magic", b"ni1"),
    "header size": lambda r, p: with_header(p, "sizeof_hdr", r.choice([0, 540, -1])),
}
EITHER = {
    "huge values": lambda r, p: rewrite(p, lambda v: v.astype("f4") * 1e35),
    "a fraction": lambda r, p: rewrite(p, lambda v: v * 0.5),
    "slope": lambda r, p: with_header(p, "scl_slope", r.choice([np.nan, np.inf, -2, 1e38])),
    "pixdim": lambda r, p: with_header(p, "pixdim", r.choice([0, -8, np.nan, 1e30])),
    "a flipped header": lambda r, p: flip_header(r, p),
}
VOLUMES = {
    **{kind: ("refused", change) for kind, change in REFUSED.items()},
    **{kind: ("same", change) for kind, change in SAME.items()},
    **{kind: ("either", change) for kind, change in EITHER.items()},
}
"""Kind of damage of a volume -> what may come of it, and the damage."""


def flip_header(rng, path):
    """Flip a bit of the header of a NIfTI file, under a valid check sum."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[rng.randrange(348)] ^= 1 << rng.randrange(8)
    path.write_bytes(gzip.compress(bytes(data), 1))


def sparse(path):
    """Write a file of 27 GB that takes no space, with a header that declares as much."""
    data = bytearray(gzip.decompress(path.read_bytes())[:352])
    header = np.frombuffer(data, nib.nifti1.header_dtype, count=1)
    header["dim"], header["datatype"], header["bitpix"] = [3, 3000, 3000, 3000, 1, 1, 1, 1], 2, 8
    path.unlink()
    with path.with_name(path.name[:-3]).open("wb") as file:
        file.write(data)
        os.truncate(file.fileno(), 27 * 10**9 + 352)


def damage_volume(rng, seed, path):
    """Damage a volume by one of the ways above; return how, and what may come of it."""
    if rng is None:
        return "undamaged", "either"
    kind = list(VOLUMES)[seed % len(VOLUMES)]
    expect, change = VOLUMES[kind]
    how = change(rng, path)
    return f"{path.name} {how if isinstance(how, str) else kind}", expect


@door("scans", 222)
def scans(rng, seed, folder, world):
    case = world.case(folder)
    sequence = "t1" if rng is None else rng.choice(("t1", "t1ce", "t2", "flair"))
    path = case / f"{CASES[0]}_{sequence}.nii.gz"
    what, expect = damage_volume(rng, seed, path)
    if what.endswith(("a slice less", "moved")):
        expect = "either"  # each sequence may have its own grid, if all show one place
    return Input(what, world.segment(case), expect, (path.name[:-3], "one voxel", CASES[0]))


def mask_door(name, count, *command):
    """Register a door of label maps, which are in the place of MASKS in a command."""

    @door(name, count)
    def make(rng, seed, folder, world):
        masks = world.masks(folder / "masks")
        what, expect = damage_volume(rng, seed, masks / f"{CASES[1]}.nii.gz")
        if command[0] == "tune-postprocessing" and "missing" in what:
            expect = "either"  # cases without a segmentation are ignored
        words = {"MASKS": str(masks), "CASES": str(world.cases), "OTHERS": str(world.right_masks)}
        (folder / "out").mkdir()
        return Input(what, [words.get(word, word) for word in command], expect, (CASES[1],))


SCORE = ("evaluate", "MASKS", "CASES", "--protocol", "brats2020", "--release", "phantom")
mask_door("masks to score", 111, *SCORE, "-o", "out/scores.csv")
mask_door("masks as references", 74, "evaluate", "OTHERS", "MASKS", *SCORE[3:])
mask_door("masks to submit", 74, "check-submission", "MASKS", "--reference", "CASES")
mask_door("masks to tune with", 37, "tune-postprocessing", "MASKS", "CASES", "-o", "rules.json")


@door("cases to check", 111)
def cases_to_check(rng, seed, folder, world):
    case = world.case(folder)
    kind = "t2" if seed % 3 == 0 else "seg"
    what, expect = damage_volume(rng, seed, case / f"{CASES[0]}_{kind}.nii.gz")
    call = ["check-data", str(folder), "--spacing", "8", "--release", "phantom", "--voxels"]
    return Input(what, call, expect, (CASES[0],))


def odd_text(rng, seed):
    """Return the bytes of an odd text."""
    if rng is None:
        return REPORT.encode()
    text = TEXTS[seed % len(TEXTS)]
    return text if seed <= 3 * len(TEXTS) else damaged(rng, REPORT.encode() + text[:100])[0]


@door("reports given as files", 60)
def report_file(rng, seed, folder, world):
    text, path = odd_text(rng, seed), folder / "report.txt"
    path.write_bytes(text)
    call = [*world.segment(world.cases / CASES[0], weights=world.checkpoint), "--text", str(path)]
    return Input(f"report {text[:30]!r}", call, "either", ("report.txt",))


@door("reports beside scans", 60)
def report_beside(rng, seed, folder, world):
    text, case = odd_text(rng, seed), world.case(folder)
    (case / f"{CASES[0]}_flair_text.txt").write_bytes(text)
    call = world.segment(case, weights=world.checkpoint)
    return Input(f"report {text[:30]!r}", call, "either", ("flair_text.txt",))


@door("reports to embed", 60)
def reports_to_embed(rng, seed, folder, world):
    text, path = odd_text(rng, seed), folder / ("reports.json" if seed % 2 else "report.txt")
    if path.suffix == ".json" and seed % 4 == 1:
        text = json.dumps({CASES[0]: rng.choice(ODD), "other": REPORT}).encode()
    path.write_bytes(text)
    call = ["embed-text", str(path), "-o", "out.safetensors", "--encoder", "tiny-random"]
    return Input(f"{path.name} {text[:30]!r}", call, "either", (path.name,))


@door("reports in a table", 60)
def report_table(rng, seed, folder, world):
    path = folder / ("reports.csv" if seed % 2 else "reports.json")
    rows = f"case,report\n{CASES[0]},{REPORT}\n"
    entries = {CASES[0]: {"report": REPORT}}
    if rng is not None:
        value = rng.choice(ODD)
        rows = rng.choice(
            (f"case,report\n{CASES[0]},{value}", f"{value}\n1,2", f'case,report\n"{value}')
        )
        entries = rng.choice(
            (value, {CASES[0]: value}, {str(value): REPORT}, {CASES[0]: {"report": value}})
        )
    text = rows if seed % 2 else json.dumps(entries)
    data = text.encode(errors="surrogatepass")
    path.write_bytes(data if rng is None or rng.random() < 0.6 else damaged(rng, data)[0])
    call = ["check-data", str(world.cases), "--spacing", "8", "--reports", str(path)]
    expect = "either"
    return Input(
        f"{path.name} {data[:60]!r}", [*call, "--release", "phantom"], expect, (path.name,)
    )


def odd_json(rng, value):
    """Return a JSON value with one value of its own replaced, removed, doubled or renamed."""
    spots = []

    def visit(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            spots.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    value = json.loads(json.dumps(value))
    visit(value)
    if not spots or rng.random() < 0.03:
        return rng.choice(ODD), "all of it"
    node, key = rng.choice(spots)
    kind = rng.randrange(10)
    if kind == 0:
        del node[key]
        return value, f"{key} removed"
    if kind == 1 and isinstance(node, dict):
        node[rng.choice(("x", "", LONG, f"{key} "))] = node[key]
        return value, f"{key} doubled"
    if kind == 2 and isinstance(node[key], int | float):
        node[key] = node[key] * rng.choice((-1, 0, 2, 1000, 10**9, 0.5))
    elif kind == 3 and isinstance(node[key], str):
        node[key] = rng.choice(
            (node[key] + " ", node[key].upper(), node[key][:-1], "../" + node[key])
        )
    else:
        node[key] = rng.choice(ODD)
    return value, f"{key}={str(node[key])[:40]!a}"


def json_bytes(rng, value):
    """Write an odd JSON value, or damage the file of the right one."""
    if rng is None:
        return json.dumps(value).encode(), "undamaged"
    if rng.random() < 0.25:
        return damaged(rng, json.dumps(value).encode())
    if rng.random() < 0.05:
        return rng.choice((b"[" * 100_000, b'{"a":' * 50_000, b"", *TEXTS[:5])), "odd bytes"
    odd, what = odd_json(rng, value)
    return json.dumps(odd).encode(), what


@door("splits", 120)
def splits(rng, seed, folder, world):
    path = folder / "splits.json"
    value: Any = {"seed": 0, "folds": [list(CASES[:2]), list(CASES[2:])], "test": []}
    if seed % 3 == 2:
        rows = [{"fold": i % 2, "label": f"x/{c}/{c}_seg.nii.gz"} for i, c in enumerate(CASES)]
        value = {"training": rows}
    data, what = json_bytes(rng, value)
    path.write_bytes(data)

    def call():
        read = Splits.read(path, world.found)
        parts = read.divide(world.found, fold=0)
        assert {case.case_id for part in parts for case in part} == set(CASES)

    return Input(f"splits {what}", call, "either", ("splits.json",))


@door("rules of post-processing", 100)
def rules(rng, seed, folder, world):
    path = folder / "rules.json"
    value = {
        "relative_components": {"WT": 0.1},
        "small_components": {"WT": 1.5, "TC": 1, "ET": 0.5},
        "enhancing_to_core": 2.0,
        "holes": {"WT": 1.5, "TC": 1.5},
        "learned": {"cases": 4},
    }
    if seed % 2:  # as they were written once
        del value["relative_components"]
        value |= {"spacing_mm": 8.0, "small_components": {"WT": 3}, "enhancing_to_core": 4}
        value["holes"] = {"WT": 3, "TC": 3}
    data, what = json_bytes(rng, value)
    path.write_bytes(data)
    call = [*world.segment(world.cases / CASES[0]), "--postprocessing", str(path)]
    return Input(f"rules {what}", call, "either", ("rules.json", "post-processing"))


def fit_config(world, folder):
    """Return the configuration of a fit of one step."""
    return {
        "seed_everything": 0,
        "model": {
            "network": {"channels": [4, 8], "num_auxiliary": 0, "semantics": False},
            "lr": 1e-3,
            "roi_size": [16, 16, 16],
            "overlap": 0.25,
            "report_dropout": 0.1,
            "plan": {"warmup": 1},
        },
        "data": {
            "class_path": "clipseg3d.PhantomDataModule",
            "init_args": {
                "root": str(world.cases),
                "num_cases": 4,
                "spacing_mm": 8.0,
                "num_folds": 2,
                "patch_size": [8, 8, 8],
                "crops_per_case": 1,
                "batch_size": 1,
                "num_workers": 0,
                "cache_dir": str(world.cache),
            },
        },
        "trainer": {
            "max_steps": 1,
            "accelerator": "cpu",
            "devices": 1,
            "gradient_clip_val": 12.0,
            "limit_val_batches": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder / "fits"),
        },
    }


@door("configurations of fit", 120)
def configurations(rng, seed, folder, world):
    value, path = fit_config(world, folder), folder / "fit.yaml"
    what = "undamaged"
    if rng is not None:
        odd, what = odd_json(rng, value)
        value = odd if not isinstance(odd, dict) else {**value, **odd}
    text = yaml.safe_dump(json.loads(json.dumps(value)))
    if rng is not None and seed % 6 == 0:
        hostile = ("!!python/object/apply:os.mkdir [executed]", "&a [*a]", "*b", "!x y", "{")
        text = f"{text}\nextra: {rng.choice(hostile)}\n"
    elif rng is not None and seed % 6 == 1:
        text, what = damaged(rng, text.encode())
        text = text.decode("latin-1")
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return Input(f"fit {what}", ["fit", "--config", str(path)])


HOSTILE = (
    *(lambda: pickle.dumps(Runs()), lambda: pickle.dumps({"state_dict": Runs()}, protocol=2)),
    *(lambda: torch_zip(Runs()), lambda: torch_zip({"state_dict": {}, "hyper_parameters": Runs()})),
    *(lambda: torch_zip(Runs(), _use_new_zipfile_serialization=False), lambda: torch_zip({})),
    *(lambda: b"cos\nmkdir\n(S'executed'\ntR.", lambda: torch_zip({"state_dict": {"a": object}})),
    *(lambda: torch_zip({"state_dict": [1]}), bytes, lambda: os.urandom(3000), lambda: bomb_zip()),
)
"""Files that are no checkpoint, some of which would run code."""


def torch_zip(content, **options):
    """Return a checkpoint of anything."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def bomb_zip():
    """Return an archive that is no checkpoint, and unpacks to 300 MB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(300 << 20))
    return file.getvalue()


def odd_checkpoint(rng, path):
    """Change a value of a checkpoint, whose check sums then are right."""
    content = torch.load(path, weights_only=True)
    weights = content["state_dict"]
    name = rng.choice(sorted(n for n in weights if weights[n].numel() > 1))
    kind = rng.randrange(6)
    if kind == 0:
        content["hyper_parameters"], what = odd_json(rng, content["hyper_parameters"])
    elif kind == 1:
        content["encoders"], what = odd_json(rng, content["encoders"])
    elif kind == 2:
        key = rng.choice(sorted(content))
        content[key] = what = rng.choice(ODD)
    elif kind == 3:
        weights[name], what = weights[name][:1].clone(), f"{name} cut"
    elif kind == 4:
        weights[name], what = torch.full_like(weights[name], float("nan")), f"{name} NaN"
    else:
        weights[name], what = rng.choice(("a", weights[name].bool(), None)), f"{name} replaced"
    torch.save(content, path)
    return str(what)[:60]


@door("checkpoints", 200)
def checkpoints(rng, seed, folder, world):
    path = Path(shutil.copy(world.checkpoint, folder / "w.ckpt"))
    what, expect = "undamaged", "either"
    if rng is not None and seed % 4 == 0:
        path.write_bytes(HOSTILE[seed // 4 % len(HOSTILE)]())
        what, expect = f"hostile {seed // 4 % len(HOSTILE)}", "refused"
    elif rng is not None and seed % 4 == 1:
        what, expect = odd_checkpoint(rng, path), "either"
    elif rng is not None:
        what, expect = harm(rng, path), "same"
    call = world.segment(world.cases / CASES[0], weights=path)
    return Input(what, call, expect, ("w.ckpt", "encoder"))


def same_weights(network):
    """Return what tells a network: its weights and settings."""
    weights = {name: w.numpy().tobytes() for name, w in network.state_dict().items()}
    return sorted(weights.items()), network.settings


def odd_safetensors(rng, path):
    """Change a tensor or the header of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = rng.choice(sorted(tensors))
    kind = rng.randrange(6)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[name] = torch.full_like(tensors[name].float(), float("nan"))
    elif kind == 2:
        tensors[name] = tensors[name].flatten()[:1].clone()
    elif kind == 3:
        tensors[name] = tensors[name].to(torch.float64)
    elif kind == 4:
        tensors["another"] = torch.zeros(1)
    elif metadata:
        key = rng.choice(sorted(metadata))
        metadata[key] = str(rng.choice(("", "x", "[]", "[1]", "{", "null")))
    save_file(tensors, path, metadata=metadata)
    return f"{name} changed by {kind}"


@door("weights of folders", 100)
def folder_weights(rng, seed, folder, world):
    path = Path(shutil.copytree(world.net, folder / "net"))
    what, expect = "undamaged", "either"
    if rng is not None:
        file = path / "model.safetensors"
        what, expect = (odd_safetensors if seed % 3 == 0 else harm)(rng, file), "same"
    names = ("model.safetensors", "config.json")
    clip = world.encoder
    return Input(what, lambda: same_weights(load_pretrained(path, clip=clip)), expect, names)


@door("config.json of folders", 180)
def folder_configs(rng, seed, folder, world):
    path = Path(shutil.copytree(world.net, folder / "net"))
    config = path / "config.json"
    data, what = json_bytes(rng, json.loads(config.read_text()))
    config.write_bytes(data)
    call = world.segment(world.cases / CASES[0], weights=path)
    expect = "either"
    return Input(what, call, expect, ("config.json", "net", "CLIP", "encoder", "spacing_mm"))


@door("CLIP folders", 150)
def clip_folders(rng, seed, folder, world):
    path = Path(shutil.copytree(world.clip, folder / "clip"))
    what, expect = "undamaged", "either"
    if rng is not None:
        file = rng.choice(sorted(path.iterdir()))
        if file.suffix == ".json" and rng.random() < 0.7:
            data, what = json_bytes(rng, json.loads(file.read_text()))
            file.write_bytes(data)
            what, expect = f"{file.name} {what}", "either"
        elif seed % 10 == 0:
            (path / "model.safetensors").unlink()
            (path / "pytorch_model.bin").write_bytes(rng.choice(HOSTILE[:6])())
            what, expect = "hostile pytorch_model.bin", "refused"
        else:
            what, expect = harm(rng, file), "either"

    def call():
        clip = load_encoder(str(path))
        image = clip.encode_image(torch.ones(1, 3, 64, 64))
        return clip.encode_text([REPORT]).tolist(), image.tolist()

    return Input(what, call, expect, ("clip",))


@door("caches of text", 90)
def text_caches(rng, seed, folder, world):
    path, what = Path(shutil.copy(world.texts, folder / "texts.safetensors")), "undamaged"
    if rng is not None:
        what = (odd_safetensors if seed % 3 == 0 else harm)(rng, path)

    def call():
        bank = TextBank(world.encoder, ("WT", "TC", "ET"), cache=path)
        return bank([REPORT])[0].tolist()

    return Input(what, call, "same", ("texts.safetensors",))


@door("caches of cases", 90)
def case_caches(rng, seed, folder, world):
    root, what = Path(shutil.copytree(world.cache, folder / "cache")), "undamaged"
    path = sorted(root.rglob("*.safetensors"))[0]
    expect = "same" if seed % 3 == 0 else "either"  # a bit of the voxels cannot be noticed
    if rng is not None:
        what = (odd_safetensors if seed % 3 == 0 else harm)(rng, path)

    def call():
        entry = build_cache(world.found, PHANTOM, root)[0]
        parts = [entry.image(), entry.label(), entry.foreground(), entry.statistics()]
        parts += entry.views()
        return [(part.dtype, part.shape, part.numpy().tobytes()) for part in parts]

    return Input(what, call, expect, (path.name[:13],))


NAMES = (
    *("ä病🧠", " a b ", "-o", "--help", "a\nb", "a\tb", "\x1b[31mred", "n" * 235, "a'b\"c", "a;b"),
    *(
        "$(touch executed)",
        "`mkdir executed`",
        "%s",
        "{0}",
        "*",
        "..a",
        "a.nii.gz",
        "a_t1",
        "a_seg",
    ),
    *("e\u0301", "\u202eabc", "a\\b", "#", "<b>", "&amp;", "\x7f", "~", "\udcff"),
)


@door("names of cases", 90)
def case_names(rng, seed, folder, world):
    name = "case" if rng is None else NAMES[seed % len(NAMES)]
    case = folder / (name if seed % 3 else "folder")
    case.mkdir()
    for path in (world.cases / CASES[0]).iterdir():
        shutil.copy(path, case / path.name.replace(CASES[0], name if seed % 3 != 1 else "c"))
    call = world.segment(case if seed % 2 else folder)
    call = [*call, "--html"] if seed % 5 == 0 else call
    return Input(f"{name!a}", call)


@door("names given on the command line", 90)
def given_names(rng, seed, folder, world):
    files = [
        part
        for sequence in ("t1", "t1ce", "t2", "flair")
        for part in (f"--{sequence}", str(world.cases / CASES[0] / f"{CASES[0]}_{sequence}.nii.gz"))
    ]
    name = "case" if rng is None else rng.choice((*NAMES, "", ".", "..", "a/b", "a\0b", LONG))
    odd = (
        f"--{rng.choice(('clip', 'weights', 'device', 'text', 'postprocessing', 't1'))}"
        if rng
        else ""
    )
    weights = str(world.plain)
    call = ["segment", *files, "-o", "out", "--weights", weights, "--name"]
    if rng is None or seed % 2:
        return Input(f"--name {name!a}", [*call, name])
    return Input(f"{odd} {name!a}", [*call, "case", odd, name])


@door("places to write", 90)
def places(rng, seed, folder, world):
    (folder / "file").write_text("a file")
    (folder / "locked").mkdir()
    (folder / "locked").chmod(0o500)
    (folder / "loop").symlink_to("loop")
    (folder / "gone").symlink_to("nowhere/at/all")
    spots = (
        "file",
        "file/x",
        "loop",
        "loop/x",
        "gone/x",
        "/proc/x",
        "/dev/null",
        "/dev/null/x",
        "",
    )
    spots += (".", "n" * 300, "a/" * 3000, "a\0b", "\udcff", "/sys/x/y", *NAMES)
    spot = "out" if rng is None else spots[seed // 2 % len(spots)]
    masks = world.masks(folder / "masks")
    score = ["evaluate", str(masks), str(masks), "--protocol", "brats2020", "--release", "phantom"]
    calls = (
        world.segment(world.cases / CASES[0], spot),
        ["phantom", "-n", "1", "--spacing", "8", "-o", spot],
        [*score, "-o", f"{spot}.csv"],
        ["export", str(world.checkpoint), "-o", spot],
        ["tune-postprocessing", str(masks), str(world.cases), "-o", f"{spot}.json"],
        [
            "embed-text",
            str(folder / "r.txt"),
            "--encoder",
            "tiny-random",
            "-o",
            f"{spot}.safetensors",
        ],
        ["check-data", str(world.cases), "--spacing", "8", "-o", f"{spot}.json"],
    )
    (folder / "r.txt").write_text(REPORT)
    call = calls[seed % len(calls)]
    return Input(f"{call[0]} -o {spot!a:.60}", call)


NUMBERS = (
    *("nan", "-nan", "inf", "-inf", "0", "-1", "-0.0", "1e308", "1e-308", "1e400", "9" * 40, "2.5"),
    *("word", "", " 1", "1,5", "0x10", "1_0", "٣", "1e", "--", "None", "true", "[1]", "1 2", "-"),
)


@door("numbers on the command line", 156)
def numbers(rng, seed, folder, world):
    number = "1" if rng is None else NUMBERS[seed % len(NUMBERS)]
    calls = (
        ["phantom", "-o", "out", "--spacing", "8", "-n", number],
        ["phantom", "-o", "out", "--spacing", number],
        ["phantom", "-o", "out", "--spacing", "8", "--seed", number],
        ["check-data", str(world.cases), "--release", "phantom", "--spacing", number],
        ["check-data", str(world.cases), "--release", number],
        ["evaluate", str(world.cases), str(world.cases), "--protocol", number],
    )
    call = calls[0 if rng is None else seed // len(NUMBERS) % len(calls)]
    call = [*call[:-2], f"{call[-2]}={number}"] if seed % 2 and call[-2].startswith("--") else call
    expect = "refused" if call[0] == "check-data" else "either"  # no number is the voxel size
    return Input(f"{call[0]} {call[-2:]}", call, expect)


FIT_OPTIONS = (
    *("model.lr", "model.overlap", "model.report_dropout", "model.roi_size", "seed_everything"),
    *("data.batch_size", "data.num_folds", "data.fold", "data.patch_size", "data.crops_per_case"),
    *("trainer.max_steps", "trainer.gradient_clip_val", "trainer.devices", "data.seed"),
    *("model.network.dropout", "data.num_workers", "trainer.limit_val_batches"),
)


@door("numbers of fit", 90)
def fit_numbers(rng, seed, folder, world):
    path = folder / "fit.yaml"
    path.write_text(yaml.safe_dump(fit_config(world, folder)))
    option = "" if rng is None else f"--{rng.choice(FIT_OPTIONS)}={rng.choice(NUMBERS)}"
    call = ["fit", "--config", str(path), *([option] if option else [])]
    names = (option.split("=")[0].rpartition(".")[2],)
    return Input(f"fit {option}", call, names)

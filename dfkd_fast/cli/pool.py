"""`dfkd-fast pool`: look at a pool on disk, check and repair it, take images out or in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dfkd_fast.config.flag_help import HELP, HelpPage
from dfkd_fast.config.flags import from_flags, parse
from dfkd_fast.config.image_size import Size
from dfkd_fast.config.setting import setting
from dfkd_fast.errors import UserError, one_of, unknown
from dfkd_fast.files.write import all_or_nothing
from dfkd_fast.messages.terminal import page, show

if TYPE_CHECKING:
    from dfkd_fast.pool.disk.files import PoolFiles

USAGE = """usage: dfkd-fast pool info DIR
       dfkd-fast pool verify DIR [--repair]
       dfkd-fast pool export DIR TARGET [--slice A:B]
       dfkd-fast pool import SOURCE DIR [--image-size H [W]]

DIR is a pool's folder, or the run's that it belongs to. verify reads everything; --repair drops the damaged blocks, and
only those. TARGET says by its ending what is written: a folder of PNG files, name.tar (WebDataset shards), name.npz,
name.safetensors, or name.png (a contact sheet). SOURCE is a folder of images (<class>/*.png, or without classes), of
WebDataset shards, or a .tar, .npz or .safetensors file."""

SHEET_COLUMNS, SHEET_ROWS = 16, 100


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Flags of `dfkd-fast pool verify`."""

    repair: bool = False
    """drop damaged blocks, so that the rest can be used"""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Flags of `dfkd-fast pool export`."""

    slice: str = ":"
    """images A to B of the pool, oldest first, as in Python: 0:100, or =-100: for the newest"""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Flags of `dfkd-fast pool import`."""

    image_size: Size | None = setting(None, at_least=1, at_most=2**15)
    """scale pictures to this height and width; one number for squares"""


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """`dfkd-fast pool info` has no flags."""


OPTIONS = {"info": InfoOptions(), "verify": VerifyOptions(), "export": ExportOptions(), "import": ImportOptions()}
PATHS = {"info": "DIR", "verify": "DIR", "export": "DIR TARGET", "import": "SOURCE DIR"}
PAGES = {name: HelpPage(usage=f"usage: dfkd-fast pool {name} {paths}") for name, paths in PATHS.items()}


def run(arguments: Sequence[str]) -> int:
    """Run one of the four; the exit status of verify is 1 where there is damage that was not repaired."""
    if not arguments or arguments[0] in HELP:
        page(USAGE)
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise unknown("pool", name, COMMANDS)
    asked = [word for word in rest if word in HELP]
    if asked:
        page(PAGES[name].text(OPTIONS[name], everything=asked[0] == HELP[-1]))
        return 0
    return COMMANDS[name](rest)


def info(arguments: Sequence[str]) -> int:
    """What a pool holds."""
    (folder,), flags = _split(arguments, "info")
    parse(InfoOptions, InfoOptions(), from_flags(flags), page=PAGES["info"])
    for pool in find_pools(folder):
        _print_info(pool)
    return 0


def verify(arguments: Sequence[str]) -> int:
    """Check every block; with --repair give the damaged ones up."""
    (folder,), flags = _split(arguments, "verify")
    options = parse(VerifyOptions, VerifyOptions(), from_flags(flags), page=PAGES["verify"])
    from dfkd_fast.pool.disk.files import PoolFiles
    from dfkd_fast.pool.disk.verify import find_damage, merge_damage, repair

    status = 0
    for pool in find_pools(folder):
        if options.repair:
            done = repair(pool)
            if done.from_copy:
                show(f"{pool}: the manifest was damaged; took its copy")
            dropped = f"dropped {len(done.damage)} blocks with {done.images:,} images, " if done.damage else ""
            show(f"{pool}: {dropped}{len(PoolFiles(pool)):,} images are whole")
            continue
        damage = find_damage(pool)
        for found in merge_damage(damage):
            show(found.error())
        status |= bool(damage)
        if not damage:
            show(f"{pool}: {len(PoolFiles(pool)):,} images, all as they were written")
    return status


def export(arguments: Sequence[str]) -> int:
    """Write a slice of a pool as something else."""
    (folder, target), flags = _split(arguments, "export")
    options = parse(ExportOptions, ExportOptions(), from_flags(flags), page=PAGES["export"])
    from dfkd_fast.pool.disk.files import PoolFiles
    from dfkd_fast.pool.exchange.exports import WRITERS

    pools = find_pools(folder)
    if len(pools) > 1:
        raise UserError(f"export {folder}: holds several pools; choose {one_of(map(str, pools))}")
    if target.suffix not in (*WRITERS, ".png"):
        raise unknown("export TARGET: ending", target.suffix, [".png", *filter(None, WRITERS), "none for a folder"])
    there = [target, *target.parent.glob(f"{target.stem}-*.tar" if target.suffix == ".tar" else target.name)]
    if any(path.exists() for path in there):
        raise UserError(f"export {there[-1]}: is there already; choose another name")
    files = PoolFiles(pools[0])
    oldest = files.manifest.live(files.manifest.first)
    start, stop = _slice(options.slice, len(files))
    if start == stop:
        raise UserError(f"--slice {options.slice}: holds none of the pool's {len(files):,} images; choose more")
    write = write_sheet if target.suffix == ".png" else WRITERS[target.suffix]
    with all_or_nothing(target, "export") as made:
        write(files, made, oldest + start, oldest + stop)
    show(f"wrote {stop - start:,} images of {pools[0]} to {target}")
    return 0


def import_(arguments: Sequence[str]) -> int:
    """Make a pool of other images."""
    (source, folder), flags = _split(arguments, "import")
    options = parse(ImportOptions, ImportOptions(), from_flags(flags), page=PAGES["import"])
    from dfkd_fast.pool.exchange.imports import import_pool

    count = import_pool(source, folder, image_size=options.image_size)
    show(f"wrote {count:,} images of {source} to {folder}")
    return 0


COMMANDS = {"info": info, "verify": verify, "export": export, "import": import_}


def find_pools(folder: Path) -> list[Path]:
    """The pools of a folder: itself, a run's `pool`, or one for each rank or resolution below."""
    from dfkd_fast.pool.disk.shards import pools_in

    found = pools_in(folder)
    if not found:
        raise UserError(f"pool {folder}: no pool there; name a run's folder or its `pool`")
    return found


def write_sheet(files: PoolFiles, target: Path, start: int, stop: int) -> None:
    """A contact sheet: the images in their order, 16 in a row."""
    import torch

    from dfkd_fast.reporting.visualize import save_grid

    most = SHEET_COLUMNS * SHEET_ROWS
    if stop - start > most:
        raise UserError(f"--slice: a contact sheet shows up to {most:,} images, not {stop - start:,}; choose fewer")
    images = torch.cat([block["images"].clone() for _, block in files.read(start, stop)])
    rows = torch.arange(len(images)) // SHEET_COLUMNS
    save_grid(target, images, rows, num_classes=int(rows[-1]) + 1, per_class=SHEET_COLUMNS)


def _print_info(folder: Path) -> None:
    import torch

    from dfkd_fast.pool.disk.files import PoolFiles

    files = PoolFiles(folder)
    manifest, count = files.manifest, len(files)
    show(f"{folder}: {count:,} images")
    for name, field in manifest.layout.fields.items():
        show(f"  {name:12}{field.dtype} {'x'.join(map(str, field.shape)) or 'scalar'}")
    first = manifest.live(manifest.first)
    labels = [torch.empty(0, dtype=torch.int64)]
    labels += [block["labels"].clone() for _, block in files.read(first, first + count, ["labels"])]
    counts = (torch.cat(labels) + 1).bincount(minlength=1)
    unlabelled, counts = int(counts[0]), counts[1:][counts[1:] > 0]
    if len(counts):
        show(f"  {'classes':12}{len(counts)}, {int(counts.min()):,} to {int(counts.max()):,} images each")
    if unlabelled:
        show(f"  {'unlabelled':12}{unlabelled:,}")
    segments = sorted(folder.glob("segment-*.bin"))
    show(f"  {'on disk':12}{sum(file.stat().st_size for file in segments) / 1e6:,.1f} MB in {len(segments)} segments")
    if manifest.dropped:
        show(f"  {'dropped':12}{len(manifest.dropped)} blocks, by a repair")


def _split(arguments: Sequence[str], command: str) -> tuple[list[Path], list[str]]:
    """Positional paths first or last, flags anywhere."""
    paths: list[str] = []
    flags: list[str] = []
    for token in arguments:
        is_value = bool(flags) and flags[-1].startswith("--") and "=" not in flags[-1] and flags[-1] != "--repair"
        is_second = flags[-2:-1] == ["--image-size"] and token.isdigit()  # the width
        (flags if token.startswith("-") or is_value or is_second else paths).append(token)
    if len(paths) != len(PATHS[command].split()):
        raise UserError(f"pool {command}: expected {PATHS[command]}, not {len(paths)} paths; see dfkd-fast pool --help")
    return [Path(path) for path in paths], flags


def _slice(text: str, count: int) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    try:
        chosen = slice(int(first) if first else None, int(last) if last else None)
    except ValueError:
        colon = ""
    if not colon:
        raise UserError(f"--slice {text}: expected A:B, such as 0:100 or :100")
    start, stop, _ = chosen.indices(count)
    return start, max(start, stop)

"""Layouts of a set of photographs on disk: which layout it is, where each class's pictures are, and what is missing."""

from __future__ import annotations

import csv
import io
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lifelong.data.files import members
from lifelong.data.pictures import workers
from lifelong.data.pictures.decoding import PICTURE, TABLE, Files, called

SPLITS = ("train", "val", "test")
_PICTURES = (".jpg", ".jpeg", ".png")
_PICKLES = (".pkl", ".pickle", ".p")
_CLASS = re.compile(r"(?:.*?/)??(?:(train|val|validation|test)/)?(n\d{8})/(?:images/)?[^/]+", re.IGNORECASE)
_NAMED = re.compile(r"(?:.*?/)??(train|val|validation|test)/([^/]+)/(?:images/)?[^/]+", re.IGNORECASE)
# Hidden files and folders, and those that file managers and archivers leave behind.
_TOOLS = re.compile(r"\..+|__MACOSX|@eaDir|\$RECYCLE\.BIN|lost\+found|Thumbs\.db|desktop\.ini", re.IGNORECASE)
_MANY = 2_000_000  # files in a folder, at most


@dataclass(frozen=True)
class Collection:
    """The description of a set of photographs.

    Attributes:
        name: its name as in papers.
        key: its name in the names of cache files and classes.
        side: width and height of the pictures in pixels.
        resize: whether pictures of other sizes are resized; otherwise they are refused.
        parts: number of classes of each part, in order.
        images: images of each class.
        places: names of the folders, or zip archives, in which it is searched.
        source: where it can be obtained.
        synsets: the part of each class by name; {} if the folder of a class decides.
        more: other numbers of images that a class may have; those beyond `images` are ignored.
    """

    name: str
    key: str
    side: int
    resize: bool
    parts: Mapping[str, int]
    images: int
    places: Sequence[str]
    source: str
    synsets: Mapping[str, str] = field(default_factory=dict)
    more: Sequence[int] = ()

    @property
    def count(self) -> int:
        """Number of classes of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class File:
    """A file in a folder or an archive: its name relative to the folder, and its place as in `decoding`."""

    name: str
    place: tuple[str, str | None]

    @property
    def kind(self) -> str:
        """The suffix of its name, in lower case."""
        return os.path.splitext(self.name)[1].lower()


Groups = dict[tuple[str | None, Any], list[tuple[tuple[str, str | None], str, Any]]]


def is_collection(root: Path) -> bool:
    """Whether a data folder is itself a collection, rather than the parent folder of one."""
    try:
        return any(each.name in ("train", "train.csv", "train.zip") or each.suffix in (*_PICKLES, ".parquet") or
                   (each.name == "data" and any(each.glob("*.parquet"))) or re.fullmatch(r"n\d{8}", each.name)
                   for each in root.iterdir())
    except OSError:
        return False


def walk(root: Path) -> Iterator[str]:
    """The files below a folder, sorted; every folder once, also if links lead to it.

    Hidden files and the leftovers of tools are skipped. The names are strings, because making 60,000 `Path`s takes a
    second.
    """
    seen, count = set(), 0
    for place, folders, names in os.walk(root, followlinks=True):
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(folder for folder in folders if not _TOOLS.fullmatch(folder))
        count += len(names)
        if count > _MANY:
            raise ValueError(f"{root} has more than {_MANY:,} files; give the folder that has only the pictures")
        yield from (os.path.join(place, name) for name in sorted(names) if not _TOOLS.fullmatch(name))


def classes(what: Collection, root: Path, files: Sequence[str]) -> list[tuple[str, str, list[Any]]]:
    """For each class its part, its name and all of its pictures.

    The part is empty if the layout does not define it. A picture is (place, kind, position in the place), as in
    `decoding`.

    Raises:
        ValueError: the files are no known layout of the collection, or it is not complete.
    """
    return _complete(what, root, _groups(what, root, _listed(root, files)))


# ---- what is there


def _listed(root: Path, files: Sequence[str]) -> list[File]:
    """All files, including those in zip archives, except archives that have been unpacked beside themselves."""
    found = []
    for path in files:
        name = (os.path.relpath(path, root) if path != str(root) else root.name).replace(os.sep, "/")
        if not path.lower().endswith(".zip"):
            found.append(File(name, (path, None)))
        elif not os.path.isdir(path[:-4]):
            try:
                with zipfile.ZipFile(path) as archive:
                    found += [File(f"{name[:-4]}/{member.filename}", (path, member.filename))
                              for member in members(archive, 3 * TABLE)]
            except (zipfile.BadZipFile, NotImplementedError, UnicodeError, ValueError) as problem:
                if isinstance(problem, ValueError) and path in str(problem):
                    raise
                raise ValueError(f"{path} is damaged ({problem}); download it again") from problem
    return [file for file in found if not any(map(_TOOLS.fullmatch, file.name.split("/")))]


def _groups(what: Collection, root: Path, files: Sequence[File]) -> Groups:
    """The pictures by split and class, from the first layout that matches."""
    pictures = [file for file in files if file.kind in _PICTURES]
    tables = {split: next((f for f in sorted(files, key=lambda f: len(f.name)) if re.fullmatch(
        rf"(.*/)?{split}\.csv", f.name)), None) for split in SPLITS}
    pickled = [f for f in files if f.kind in _PICKLES and not re.search(r"phase_(val|test)|labelsplit", f.name)]
    parquet = [f for f in files if f.kind == ".parquet"]
    if pictures and all(tables.values()):
        groups = _by_table(root, {split: file for split, file in tables.items() if file}, pictures)
    elif groups := _by_folder(files, pictures):
        pass
    elif parquet:
        groups = _described(what, parquet, "parquet")
    elif pickled:
        groups = _described(what, pickled, "pickle")
    if not groups:
        kinds = sorted({file.kind or "no suffix" for file in files})
        content = f"{len(files)} files ({', '.join(kinds[:5])})" if files else "no files"
        raise ValueError(f"{root} is not a known layout of {what.name}: it has {content}, but should have train.csv, "
                         f"val.csv and test.csv with a folder of images, or one folder per class, or pickles, or "
                         f"Parquet files, or zip archives of these; get it from {what.source}")
    return groups


def _by_table(root: Path, tables: Mapping[str, File], pictures: Sequence[File]) -> Groups:
    """The pictures in Ravi & Larochelle's layout: tables of file names and classes."""
    by_name: dict[str, list[File]] = {}
    for file in pictures:
        by_name.setdefault(file.name.rsplit("/", 1)[-1], []).append(file)
    reader, groups, absent, used = Files(), Groups(), [], set[str]()
    for split, table in tables.items():
        try:
            text = str(reader.read(table.place, PICTURE), "utf-8-sig")
            separator = max(",;\t", key=text.partition("\n")[0].count)
            rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=separator)]
        except (UnicodeError, csv.Error) as problem:
            raise ValueError(f"{called(table.place)} is not a table ({problem}); download it again") from problem
        for row in rows:
            if len(row) < 2 or row[:2] == ["filename", "label"]:
                continue
            named = by_name.get(row[0].rsplit("/", 1)[-1], [])
            if len(named) > 1:  # the name is unique only within its folder
                named = [file for file in named if f"/{file.name}".endswith("/" + row[0])]
            if not named:
                absent.append((called(table.place), row[0]))
                continue
            if len(named) > 1 or named[0].name in used:
                why = f"{root} has {len(named)} files of that name" if len(named) > 1 else "it was named before"
                raise ValueError(f"{called(table.place)} names {row[0]}, but {why}; download it again")
            used.add(named[0].name)
            groups.setdefault((split, row[1]), []).append((named[0].place, "picture", None))
    if absent:
        raise ValueError(f"{absent[0][0]} names {absent[0][1]}, which is not in {root}" + (
            f"; {len(absent) - 1} others are missing as well" if len(absent) > 1 else ""))
    return groups


def _by_folder(files: Sequence[File], pictures: Sequence[File]) -> Groups:
    """The pictures in one folder per class, within a folder per split or not.

    The classes of Tiny-ImageNet's val images are in a file of annotations.
    """
    groups = Groups()
    annotations = next((f for f in files if f.name.rsplit("/", 1)[-1] == "val_annotations.txt"), None)
    annotated = {}
    if annotations:
        for line in str(Files().read(annotations.place, PICTURE), "latin-1").splitlines():
            words = line.split("\t")
            if len(words) > 1:
                annotated[words[0]] = words[1]
    for file in sorted(pictures, key=lambda f: _natural(f.name)):
        match = _CLASS.fullmatch(file.name) or _NAMED.fullmatch(file.name)
        base = file.name.rsplit("/", 1)[-1]
        if match and match[2] != "images":
            groups.setdefault((_split(match[1]), match[2]), []).append((file.place, "picture", None))
        elif annotated.get(base) and re.fullmatch(r"(.*/)?val/images/[^/]+", file.name):
            groups.setdefault(("val", annotated[base]), []).append((file.place, "picture", None))
            del annotated[base]
    if annotated and groups and annotations and any("val/images/" in f.name for f in pictures):
        raise ValueError(f"{called(annotations.place)} names {min(annotated)}, which is missing; download it again")
    return groups


def _described(what: Collection, tables: Sequence[File], kind: str) -> Groups:
    """The pictures in pickles or Parquet files, which are opened by a child process only."""
    tables = sorted(tables, key=lambda f: _natural(f.name))
    groups = Groups()
    found = workers.describe(f"reading {what.name}", [file.place for file in tables], kind)
    entries = [(_split(split) or _split_of_name(file.name, kind), name, file, positions)
               for file, described in zip(tables, found, strict=True) for split, name, positions in described]
    names_of = {split: {name for other, name, _, _ in entries if other == split} for split, _, _, _ in entries}
    if kind == "parquet" and what.synsets and all(names == set(range(what.count)) for names in names_of.values()):
        # If every split has every class, as on the Hugging Face hub, the classes are numbered in the order of names.
        names = sorted(what.synsets)
        entries = [(split, names[name], file, positions) for split, name, file, positions in entries]
    for split, name, file, positions in entries:
        groups.setdefault((split, name), []).extend((file.place, kind, position) for position in positions)
    return groups


def _split_of_name(name: str, kind: str) -> str | None:
    """The split in the name of a file, or for Parquet files also in its folder; None if there is none."""
    words = re.findall(r"train|validation|val|test", (name if kind == "parquet" else name.rsplit("/", 1)[-1]).lower())
    return _split(words[-1]) if words else None


def _split(word: str | None) -> str | None:
    return "val" if word and word.lower().startswith("val") else word.lower() if word else None


def _natural(name: str) -> list[Any]:
    """A sorting key by which 2 comes before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# ---- completeness


def _complete(what: Collection, root: Path, groups: Groups) -> list[tuple[str, str, list[Any]]]:
    """For each class of the collection its part, its name and its pictures, sorted.

    Raises:
        ValueError: a class or a picture is missing, is too many, or is in two parts.
    """
    by_class: dict[Any, dict[str | None, list[Any]]] = {}
    numbered, numbers = any(type(name) is int for _, name in groups), set(range(what.count))
    shared = all({name for other, name in groups if other == split} == numbers for split, _ in groups)
    for (split, name), pictures in groups.items():
        # If the splits have different classes, each numbers its own from 0: class 3 of one is not class 3 of another.
        scope = split if numbered and not shared else None
        by_class.setdefault((scope, name), {}).setdefault(split, []).extend(pictures)
    sizes = {split: sum(scope == split for scope, _ in by_class) for split in {scope for scope, _ in by_class}}
    found = []
    for (scope, name), splits in by_class.items():
        part = _part(what, root, scope, name, splits, sizes)
        full_name = f"{what.key}/{part or scope or 'all'}/{name}" if numbered else f"imagenet/{name}"
        found.append((part, full_name, [picture for split in (None, *SPLITS) for picture in splits.get(split, [])]))
    _check_complete(what, root, found)
    for (_, full_name, pictures), splits in zip(found, by_class.values(), strict=True):
        if len(pictures) not in (what.images, *what.more):
            counts = (" and ".join(f"{len(splits[split])} in {split}" for split in SPLITS if split in splits)
                      or len(pictures))
            raise ValueError(f"{root}: class {full_name.split('/', 1)[1]} of {what.name} should have {what.images} "
                             f"images, but has {counts}; download it again")
    order = list(what.parts)
    return sorted(found, key=lambda entry: (order.index(entry[0]) if entry[0] else 0, _natural(entry[1])))


def _part(what: Collection, root: Path, scope: str | None, name: Any, splits: Iterable[str | None],
          sizes: Mapping[str | None, int]) -> str:
    """The part that a class belongs to; empty if it is unknown."""
    if what.synsets and isinstance(name, str):
        if name not in what.synsets:
            raise ValueError(f"{root}: {name[:60]!r} is not one of the {what.count} classes of {what.name}")
        return what.synsets[name]
    if len(what.parts) == 1:
        return next(iter(what.parts))
    # By the number of classes, because some published pickles call the 20 test classes val and the 16 val classes test.
    if isinstance(name, int):
        return next((part for part, count in what.parts.items() if count == sizes[scope]), "") if scope else ""
    present = [split for split in SPLITS if split in splits]
    if len(present) > 1:
        raise ValueError(f"{root}: class {name} is in {' and in '.join(present)}, but a class must not be both learned "
                         f"and meta-tested on")
    return present[0] if present else ""


def _check_complete(what: Collection, root: Path, found: Sequence[tuple[str, str, Any]]) -> None:
    present = {name.rsplit("/", 1)[-1] for _, name, _ in found}
    absent = sorted(set(what.synsets) - present)
    parts = {part: sum(of_class == part for of_class, _, _ in found) for part in what.parts}
    if len(found) == what.count and (all(part == "" for part, _, _ in found) or parts == dict(what.parts)):
        return
    missing = f"; {absent[0]} is missing" if absent and len(absent) < what.count and present & set(what.synsets) else ""
    counts = ", ".join(f"{count} {part}".strip() for part, count in parts.items()) if len(parts) > 1 else ""
    needed = ", ".join(f"{count} {part}".strip() for part, count in what.parts.items()) if len(parts) > 1 else ""
    raise ValueError(f"{root}: {what.name} has {what.count} classes{f' ({needed})' if needed else ''}, but there are "
                     f"{len(found)}{f' ({counts})' if counts else ''}{missing}; get it from {what.source}")

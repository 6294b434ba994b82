"""Layouts that people have a set of photographs in: which it is, what lies where, and what is missing."""

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
_MANY = 2_000_000  # files of a folder


@dataclass(frozen=True)
class Collection:
    """What a set of photographs is.

    Attributes:
        name: as papers write it.
        key: in names of files and classes.
        side: of the pictures, in pixels.
        resize: whether pictures of other sizes are resized; else they are refused.
        parts: how many classes each part has, in order.
        synsets: the part that each class belongs to; {}: the one that it lies in.
        images: of each class, in the order of its files.
        more: how many of each class a layout may have instead, the last ones not used.
        places: folders, or zip archives, that it is looked for in.
        source: where it can be had.
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
        """Classes of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class File:
    """A file in a folder or an archive: its name relative to the folder, and its place (see `pictures.decoding`)."""

    name: str
    place: tuple[str, str | None]

    @property
    def kind(self) -> str:
        """The ending of its name."""
        return os.path.splitext(self.name)[1].lower()


Groups = dict[tuple[str | None, Any], list[tuple[tuple[str, str | None], str, Any]]]


def looks(root: Path) -> bool:
    """Whether a data folder is itself such a collection."""
    try:
        return any(each.name in ("train", "train.csv", "train.zip") or each.suffix in (*_PICKLES, ".parquet") or
                   (each.name == "data" and any(each.glob("*.parquet"))) or re.fullmatch(r"n\d{8}", each.name)
                   for each in root.iterdir())
    except OSError:
        return False


def walk(root: Path) -> Iterator[str]:
    """The files below a folder in order, links followed once; as text, for 60,000 paths take a second to make."""
    seen, count = set(), 0
    for place, folders, names in os.walk(root, followlinks=True):
        known = os.stat(place)
        if (known.st_dev, known.st_ino) in seen:
            folders.clear()
            continue
        seen.add((known.st_dev, known.st_ino))
        folders.sort()
        count += len(names)
        if count > _MANY:
            raise ValueError(f"{root} holds more than {_MANY:,} files: name the folder of the pictures alone")
        yield from (os.path.join(place, name) for name in sorted(names) if not name.startswith("."))


def classes(what: Collection, root: Path, files: Sequence[str]) -> list[tuple[str, str, list[Any]]]:
    """For each class its part (empty where nothing tells), its name and its pictures, which are all there: place, kind
    and where in the place (see `pictures.decoding`).

    Raises:
        ValueError: where the files are no layout of the collection, or it is not complete.
    """
    return _complete(what, root, _groups(what, root, _listed(root, files)))


# ---- what is there


def _listed(root: Path, files: Sequence[str]) -> list[File]:
    """Every file, and every file in every archive, whose folder of the same name does not lie beside it."""
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
                raise ValueError(f"{path} is damaged ({problem}); get it anew") from problem
    return [file for file in found if "__MACOSX/" not in file.name and "/._" not in file.name]


def _groups(what: Collection, root: Path, files: Sequence[File]) -> Groups:
    """By split and class, where the pictures lie: the first layout that is there."""
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
        kinds = sorted({file.kind or "no ending" for file in files})
        there = f"{len(files)} files ({', '.join(kinds[:5])})" if files else "no files"
        raise ValueError(f"{root} is no layout of {what.name}: it has {there}, and needs train.csv, val.csv and "
                         f"test.csv with a folder of images, or a folder for each class, or pickles, or Parquet "
                         f"files, or zips of these; get it from {what.source}")
    return groups


def _by_table(root: Path, tables: Mapping[str, File], pictures: Sequence[File]) -> Groups:
    """Ravi & Larochelle's tables of file names and classes."""
    there: dict[str, list[File]] = {}
    for file in pictures:
        there.setdefault(file.name.rsplit("/", 1)[-1], []).append(file)
    reader, groups, absent, used = Files(), Groups(), [], set[str]()
    for split, table in tables.items():
        try:
            rows = list(csv.reader(io.StringIO(str(reader.read(table.place, PICTURE), "utf-8"))))
        except (UnicodeError, csv.Error) as problem:
            raise ValueError(f"{called(table.place)} is no table ({problem}); get it anew") from problem
        for row in rows:
            if len(row) < 2 or row[:2] == ["filename", "label"]:
                continue
            named = there.get(row[0].rsplit("/", 1)[-1], [])
            if len(named) > 1:  # a name of its own in its folder alone
                named = [file for file in named if f"/{file.name}".endswith("/" + row[0])]
            if not named:
                absent.append((called(table.place), row[0]))
                continue
            if len(named) > 1 or named[0].name in used:
                why = f"there are {len(named)} of that name" if len(named) > 1 else "it was named before"
                raise ValueError(f"{called(table.place)} names {row[0]}, and {why} in {root}: get it anew")
            used.add(named[0].name)
            groups.setdefault((split, row[1]), []).append((named[0].place, "picture", None))
    if absent:
        raise ValueError(f"{absent[0][0]} names {absent[0][1]}, which is not in {root}" + (
            f", nor are {len(absent) - 1} others" if len(absent) > 1 else ""))
    return groups


def _by_folder(files: Sequence[File], pictures: Sequence[File]) -> Groups:
    """A folder for each class, in one for each split or not; and Tiny-ImageNet's file of what its val images show."""
    groups = Groups()
    told = next((f for f in files if f.name.rsplit("/", 1)[-1] == "val_annotations.txt"), None)
    shown = {}
    if told:
        for line in str(Files().read(told.place, PICTURE), "latin-1").splitlines():
            words = line.split("\t")
            if len(words) > 1:
                shown[words[0]] = words[1]
    for file in sorted(pictures, key=lambda f: _natural(f.name)):
        match = _CLASS.fullmatch(file.name) or _NAMED.fullmatch(file.name)
        base = file.name.rsplit("/", 1)[-1]
        if match and match[2] != "images":
            groups.setdefault((_split(match[1]), match[2]), []).append((file.place, "picture", None))
        elif shown.get(base) and re.fullmatch(r"(.*/)?val/images/[^/]+", file.name):
            groups.setdefault(("val", shown[base]), []).append((file.place, "picture", None))
            del shown[base]
    if shown and groups and told and any("val/images/" in f.name for f in pictures):
        raise ValueError(f"{called(told.place)} names {min(shown)}, which is not there; get it anew")
    return groups


def _described(what: Collection, tables: Sequence[File], kind: str) -> Groups:
    """Pickles or Parquet files, which only a child process opens."""
    tables = sorted(tables, key=lambda f: _natural(f.name))
    groups = Groups()
    found = workers.describe(f"reading {what.name}", [file.place for file in tables], kind)
    numbered = [(_split(split) or _told(file.name, kind), name, file, at)
                for file, entries in zip(tables, found, strict=True) for split, name, at in entries]
    every = {split: {name for own, name, _, _ in numbered if own == split} for split, _, _, _ in numbered}
    if kind == "parquet" and what.synsets and all(own == set(range(what.count)) for own in every.values()):
        # Where every split shows every class, as on the hub, its numbers are the places of the sorted names.
        names = sorted(what.synsets)
        numbered = [(split, names[name], file, at) for split, name, file, at in numbered]
    for split, name, file, at in numbered:
        groups.setdefault((split, name), []).extend((file.place, kind, one) for one in at)
    return groups


def _told(name: str, kind: str) -> str | None:
    """The split that a file's name tells of: a Parquet file's folder may, too."""
    words = re.findall(r"train|validation|val|test", (name if kind == "parquet" else name.rsplit("/", 1)[-1]).lower())
    return _split(words[-1]) if words else None


def _split(word: str | None) -> str | None:
    return "val" if word and word.lower().startswith("val") else word.lower() if word else None


def _natural(name: str) -> list[Any]:
    """Sorts 2 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# ---- what should be there


def _complete(what: Collection, root: Path, groups: Groups) -> list[tuple[str, str, list[Any]]]:
    """For each class of the collection its part, its name and where its pictures lie, in order.

    Raises:
        ValueError: where a class or a picture is missing, is too many, or lies in two parts.
    """
    splits: dict[Any, dict[str | None, list[Any]]] = {}
    numbers, every = any(type(name) is int for _, name in groups), set(range(what.count))
    shared = all({name for own, name in groups if own == split} == every for split, _ in groups)
    for (split, name), refs in groups.items():
        # Where splits have classes of their own, numbers begin anew: 3 of one is another class than 3 of the next.
        own = split if numbers and not shared else None
        splits.setdefault((own, name), {}).setdefault(split, []).extend(refs)
    sizes = {split: sum(own == split for own, _ in splits) for split in {own for own, _ in splits}}
    found = []
    for (own, name), parts in splits.items():
        part = _part(what, root, own, name, parts, sizes)
        title = f"{what.key}/{part or own or 'all'}/{name}" if numbers else f"imagenet/{name}"
        found.append((part, title, [ref for split in (None, *SPLITS) for ref in parts.get(split, [])]))
    _check_complete(what, root, found)
    for (_, title, refs), parts in zip(found, splits.values(), strict=True):
        if len(refs) not in (what.images, *what.more):
            each = " and ".join(f"{len(parts[split])} in {split}" for split in SPLITS if split in parts) or len(refs)
            raise ValueError(f"{root}: class {title.split('/', 1)[1]} of {what.name} should have {what.images} images, "
                             f"and has {each}; get it anew")
    order = list(what.parts)
    return sorted(found, key=lambda entry: (order.index(entry[0]) if entry[0] else 0, _natural(entry[1])))


def _part(what: Collection, root: Path, own: str | None, name: Any, parts: Iterable[str | None],
          sizes: Mapping[str | None, int]) -> str:
    """The part that a class belongs to; empty where nothing tells."""
    if what.synsets and isinstance(name, str):
        if name not in what.synsets:
            raise ValueError(f"{root}: {name[:60]!r} is none of the {what.count} classes of {what.name}")
        return what.synsets[name]
    if len(what.parts) == 1:
        return next(iter(what.parts))
    # By size, for of the pickles that circulate some call the 20 classes val and the 16 test.
    if isinstance(name, int):
        return next((part for part, count in what.parts.items() if count == sizes[own]), "") if own else ""
    lies = [split for split in SPLITS if split in parts]
    if len(lies) > 1:
        raise ValueError(f"{root}: class {name} lies in {' and in '.join(lies)}, but no class may be both learned and "
                         f"meta-tested on")
    return lies[0] if lies else ""


def _check_complete(what: Collection, root: Path, found: Sequence[tuple[str, str, Any]]) -> None:
    there = {name.rsplit("/", 1)[-1] for _, name, _ in found}
    missing = sorted(set(what.synsets) - there)
    parts = {part: sum(own == part for own, _, _ in found) for part in what.parts}
    if len(found) == what.count and (all(own == "" for own, _, _ in found) or parts == dict(what.parts)):
        return
    shown = f"; {missing[0]} is missing" if missing and len(missing) < what.count and there & set(what.synsets) else ""
    each = ", ".join(f"{count} {part}".strip() for part, count in parts.items()) if len(parts) > 1 else ""
    needed = ", ".join(f"{count} {part}".strip() for part, count in what.parts.items()) if len(parts) > 1 else ""
    raise ValueError(f"{root}: {what.name} has {what.count} classes{f' ({needed})' if needed else ''}, and there are "
                     f"{len(found)}{f' ({each})' if each else ''}{shown}; get it from {what.source}")

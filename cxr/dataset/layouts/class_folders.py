"""Sets that are laid out as <set>/<part>/<class folder>/<image>, such as chest_xray/train/NORMAL/IM-0115-0001.jpeg."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cxr.common.classes import Label
from cxr.common.errors import SourceError
from cxr.dataset.layouts.raw_set import Acquisition, Annotation, Rejection, files_below

UNKNOWN_FOLDER = "unknown class folder"
UNKNOWN_NAME = "unknown class in the file name"


@dataclass(frozen=True)
class NameFacts:
    """What class folder and file name say about an image; `patient` is unique within its part."""

    label: Label
    patient: str
    acquisition: Acquisition | None = None


@dataclass(frozen=True)
class ClassFolders:
    """A layout of parts and class folders.

    source_name     name of a source with this layout
    marker          name of the set's folder
    parts           official parts, such as "train"
    class_folders   folders inside each part
    facts_of        from class folder and file name without suffix to what they say
    published       number of images of each part in the published set; empty if unknown
    """

    source_name: str
    marker: str
    parts: tuple[str, ...]
    class_folders: tuple[str, ...]
    facts_of: Callable[[str, str], NameFacts | Rejection]
    published: Mapping[str, int] = field(default_factory=dict)

    covers_location = False

    @property
    def expected(self) -> str:
        """The layout on one line, for messages."""
        return f"{{{','.join(self.parts)}}}/{{{','.join(self.class_folders)}}}"

    def open(self, location: Path) -> "ClassFolderSet":
        """Find the set in `location`: see `cxr.dataset.layouts.raw_set.Layout`."""
        folder = self.find(location)
        paths = [str(path) for path in files_below(folder)]
        if not paths:
            raise self._not_found(location)
        return ClassFolderSet(self, folder, paths)

    def find(self, location: Path) -> Path:
        """Return the folder that holds the parts: `location` itself or the set's folder below it.

        Raises:
            SourceError: neither holds one of the parts; names the expected layout.
        """
        for folder in (location / self.marker, location):
            parts = [inside / part for inside in (folder, folder / self.marker) for part in self.parts]
            if any(part.is_dir() for part in parts):
                return folder.resolve()
        raise self._not_found(location)

    def annotate(self, path: PurePosixPath) -> Annotation | Rejection:
        """Return the annotation from a path relative to the set's folder, or why the path has none."""
        folders = list(path.parts[:-1])
        while folders and folders[0] == self.marker:  # some zips hold the set a second time inside itself
            folders.pop(0)
        if len(folders) != 2 or folders[0] not in self.parts or folders[1] not in self.class_folders:
            found = "/".join(path.parts[:-1]) or "."
            return Rejection(UNKNOWN_FOLDER, f"the file is in {found}; expected {self.expected}")
        part, class_folder = folders
        facts = self.facts_of(class_folder, path.stem)
        if isinstance(facts, Rejection):
            return facts
        return Annotation(facts.label, part, f"{part}/{facts.patient}", facts.acquisition)

    def _not_found(self, location: Path) -> SourceError:
        return SourceError(
            f"{location}: found no images; expected {self.marker}/{self.expected} below it; "
            "unpack the set's zip there, or name another folder, zip or address"
        )


@dataclass(frozen=True)
class ClassFolderSet:
    """A set with the layout `layout` in `folder`."""

    layout: ClassFolders
    folder: Path
    paths: Sequence[str]

    def annotate(self, path: PurePosixPath, data: bytes) -> Annotation | Rejection:
        """Return the annotation from the path."""
        del data
        return self.layout.annotate(path)

    def stored_bytes(self, path: PurePosixPath, data: bytes, *, max_pixels: int) -> bytes:
        """Return the file unchanged."""
        del path, max_pixels
        return data

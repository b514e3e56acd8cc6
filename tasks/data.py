"""Download both public sets of real images and lay them out for `make run DATA=...`.

Kermany's chest X-rays (1.2 GB) come from Mendeley Data, doi 10.17632/rscbjbr9sj.2, without an account. The COVID-19
image dataset comes from Kaggle, with your own Kaggle token. Writes the zips to paths.downloads and the sets to its
folder sets/. An interrupted download resumes when the command is run again.

    ./run data
    ./run data --only kermany     only the first set, without a token
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from cxr.common.cli import answer_help, command_parser, run_command

KERMANY_URL = (
    "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
    "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded"
)
# As stated in three independent public repositories; Mendeley Data does not publish it.
KERMANY_SHA256 = "13efc055629733dbab07877f8b3c9f81097840dbcdaa326a8542322c2281ce36"
KAGGLE_API = "https://www.kaggle.com/api/v1"
KAGGLE_SET = "pranavraikokte/covid19-image-dataset"


def command_line() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (%(default)s)")
    parser.add_argument("--only", choices=("kermany", "covid19"), help="download one set")
    parser.add_argument("--kermany-url", default=KERMANY_URL, help="address of ChestXRay2017.zip (%(default)s)")
    parser.add_argument("--kermany-sha256", default=KERMANY_SHA256, help="its digest; `any`: unchecked (%(default)s)")
    parser.add_argument("--kaggle-api", default=KAGGLE_API, help="(%(default)s)")
    return parser


if __name__ == "__main__":
    answer_help(command_line())

from cxr.common.archives import DamagedArchiveError, unpack
from cxr.common.download import download
from cxr.common.errors import SourceError
from cxr.common.files import move_folder
from cxr.common.locks import downloads_lock
from cxr.common.params import read_params
from cxr.dataset.layouts.class_folders import ClassFolders
from cxr.dataset.layouts.table import COVID19, KERMANY

NO_TOKEN = (
    f"Kaggle's {KAGGLE_SET} needs a Kaggle token, and none was found: create one at "
    "https://www.kaggle.com/settings (API, Create New Token), then put kaggle.json into ~/.kaggle/ "
    "or set KAGGLE_API_TOKEN; without an account: ./run data --only kermany"
)


@dataclass(frozen=True)
class Origin:
    """Where to download the zip of one set."""

    archive: str
    url: str
    layout: ClassFolders
    sha256: str | None
    headers: dict[str, str]


def _origins(arguments: argparse.Namespace, sets: Path) -> list[Origin]:
    """Return the requested sets that are not in `sets`; an existing folder is complete, because it is renamed last."""
    origins = []
    for name, layout in (("kermany", KERMANY), ("covid19", COVID19)):
        folder = sets / layout.marker
        if arguments.only not in (None, name):
            continue
        if folder.is_dir():
            print(f"{folder} exists already; remove it to download it again")
        elif name == "kermany":
            sha256 = None if arguments.kermany_sha256 == "any" else arguments.kermany_sha256
            origins.append(Origin("ChestXRay2017.zip", arguments.kermany_url, layout, sha256, {}))
        else:
            url = f"{arguments.kaggle_api}/datasets/download/{KAGGLE_SET}"
            headers = {"Authorization": kaggle_authorization()}  # fails before the first gigabyte is downloaded
            origins.append(Origin("covid19-image-dataset.zip", url, layout, None, headers))
    return origins


def kaggle_authorization() -> str:
    """Return the Authorization header with the user's Kaggle token.

    Searches the same places as Kaggle's client: KAGGLE_API_TOKEN, KAGGLE_USERNAME with KAGGLE_KEY, then
    access_token and kaggle.json in KAGGLE_CONFIG_DIR or ~/.kaggle.

    Raises:
        SourceError: there is no token, or kaggle.json is invalid.
    """
    token = os.environ.get("KAGGLE_API_TOKEN")
    username, key = os.environ.get("KAGGLE_USERNAME"), os.environ.get("KAGGLE_KEY")
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR") or Path.home() / ".kaggle")
    if not token and not (username and key):
        if (folder / "access_token").is_file():
            token = (folder / "access_token").read_text(encoding="utf-8").strip()
        elif (folder / "kaggle.json").is_file():
            username, key = _read_kaggle_json(folder / "kaggle.json")
    if token:
        return f"Bearer {token}"
    if username and key:
        return "Basic " + base64.b64encode(f"{username}:{key}".encode()).decode()
    raise SourceError(NO_TOKEN)


def _read_kaggle_json(path: Path) -> tuple[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return str(content["username"]), str(content["key"])
    except (OSError, ValueError, KeyError, TypeError):
        raise SourceError(
            f"{path} is not a Kaggle token: expected a JSON object with username and key; create a new one at "
            "https://www.kaggle.com/settings"
        ) from None


def _fetch_set(origin: Origin, downloads: Path, folder: Path) -> None:
    archive = downloads / origin.archive
    digest = download(origin.url, archive, sha256=origin.sha256, headers=origin.headers)
    print(f"{archive} has the sha256 {digest}")
    try:
        unpacked = unpack(archive, downloads)
    except DamagedArchiveError:
        archive.unlink()  # the next run downloads it again
        raise
    origin.layout.find(unpacked)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # First away from the name by which `unpack` finds it again: a killed run must not leave it there without the set.
    aside = downloads / f".{folder.name}.unpacked"
    move_folder(unpacked, aside)
    origin.layout.find(aside).replace(folder)
    shutil.rmtree(aside, ignore_errors=True)


def main() -> None:
    """Download the sets that the command line names."""
    arguments = command_line().parse_args()
    downloads = read_params(arguments.params).paths.downloads
    sets = downloads / "sets"
    with downloads_lock(downloads):
        for origin in _origins(arguments, sets):
            _fetch_set(origin, downloads, sets / origin.layout.marker)
    print(f"The images are in {sets}. Next: make run DATA={sets}")


if __name__ == "__main__":
    run_command(main)

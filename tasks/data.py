"""Download both public sets of real images from their homes, and lay them out for `make run DATA=...`.

Kermany's chest X-rays (1.2 GB) come from Mendeley Data, doi 10.17632/rscbjbr9sj.2, without an account;
the COVID-19 image dataset from Kaggle, with your own Kaggle token. Writes the zips to paths.downloads
and the sets to its folder sets/. A cut download goes on where it stopped: run it again.

    python -m tasks.data
    python -m tasks.data --only kermany     the first set alone, without a token
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cxr.common.cli import command_parser, run_command
from cxr.common.errors import SourceError

if TYPE_CHECKING:
    from cxr.dataset.layouts import Layout

KERMANY_URL = (
    "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
    "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded"
)
# As three unrelated public repositories state it; not published by Mendeley Data itself.
KERMANY_SHA256 = "13efc055629733dbab07877f8b3c9f81097840dbcdaa326a8542322c2281ce36"
KAGGLE_API = "https://www.kaggle.com/api/v1"
KAGGLE_SET = "pranavraikokte/covid19-image-dataset"
NO_TOKEN = (
    f"Kaggle's {KAGGLE_SET} needs a Kaggle token and none was found: make one at "
    "https://www.kaggle.com/settings (API, Create New Token), then put the kaggle.json it gives you into ~/.kaggle/ "
    "or set KAGGLE_API_TOKEN; without an account: python -m tasks.data --only kermany"
)


@dataclass(frozen=True)
class Origin:
    """Where one set's zip comes from."""

    archive: str
    url: str
    layout: Layout
    sha256: str | None
    headers: dict[str, str]


def main() -> None:
    """Download what `arguments.only` names, or both sets."""
    arguments = _arguments()

    from cxr.common.params import read_params

    downloads = read_params(arguments.params).paths.downloads
    sets = downloads / "sets"
    for origin in _origins(arguments, sets):
        _bring(origin, downloads, sets / origin.layout.folder)
    print(f"The images are in {sets}. Next: make run DATA={sets}")


def _arguments() -> argparse.Namespace:
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (%(default)s)")
    parser.add_argument("--only", choices=("kermany", "covid19"), help="one set instead of both")
    parser.add_argument("--kermany-url", default=KERMANY_URL, help="of ChestXRay2017.zip (%(default)s)")
    parser.add_argument(
        "--kermany-sha256", default=KERMANY_SHA256, help="its digest, `any` for unchecked (%(default)s)"
    )
    parser.add_argument("--kaggle-api", default=KAGGLE_API, help="(%(default)s)")
    return parser.parse_args()


def _origins(arguments: argparse.Namespace, sets: Path) -> list[Origin]:
    """Return what is wanted and not there yet; a set's folder that is there is complete, since it appears whole."""
    from cxr.dataset.layouts import LAYOUTS

    origins = []
    for name, layout in (("kermany", LAYOUTS["chest_xray"]), ("covid19", LAYOUTS["covid19"])):
        folder = sets / layout.folder
        if arguments.only not in (None, name):
            continue
        if folder.is_dir():
            print(f"{folder} is there already; remove it to fetch it again")
        elif name == "kermany":
            sha256 = None if arguments.kermany_sha256 == "any" else arguments.kermany_sha256
            origins.append(Origin("ChestXRay2017.zip", arguments.kermany_url, layout, sha256, {}))
        else:
            url = f"{arguments.kaggle_api}/datasets/download/{KAGGLE_SET}"
            headers = {"Authorization": kaggle_authorization()}  # asked for before the first gigabyte is fetched
            origins.append(Origin("covid19-image-dataset.zip", url, layout, None, headers))
    return origins


def kaggle_authorization() -> str:
    """Return the Authorization header made of the user's Kaggle token.

    Looks where Kaggle's own client looks: KAGGLE_API_TOKEN, KAGGLE_USERNAME with KAGGLE_KEY, then
    access_token and kaggle.json in KAGGLE_CONFIG_DIR or ~/.kaggle.

    Raises:
        SourceError: there is no token, or kaggle.json is not what Kaggle wrote.
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
            f"{path} is not a Kaggle token: expected a JSON object with username and key; make a new one at "
            "https://www.kaggle.com/settings"
        ) from None


def _bring(origin: Origin, downloads: Path, folder: Path) -> None:
    import shutil

    from cxr.common.archives import DamagedArchiveError, unpack
    from cxr.common.download import download
    from cxr.dataset.layouts import find_set

    archive = downloads / origin.archive
    digest = download(origin.url, archive, sha256=origin.sha256, headers=origin.headers)
    print(f"{archive} has the sha256 {digest}")
    try:
        unpacked = unpack(archive, downloads)
    except DamagedArchiveError:
        archive.unlink()  # or every later run would stumble over it
        raise
    found = find_set(unpacked, origin.layout)
    folder.parent.mkdir(parents=True, exist_ok=True)
    found.replace(folder)
    shutil.rmtree(unpacked, ignore_errors=True)


if __name__ == "__main__":
    run_command(main)

"""Blocks of the order of acquisition: each series of a source cut into parts of about equal numbers of images.

Images of one time often share device, exposure and reader. A model that is tested on a block that it was not trained on
shows what it owes to them. Blocks are contiguous: no number of a later block of a series is below one of an earlier
block, and images with the same number are in the same block.
"""

import pandas as pd

NO_BLOCK = -1


def acquisition_blocks(manifest: pd.DataFrame, *, blocks: int) -> pd.Series:
    """Return the block (0 to `blocks` - 1, the earliest first) of each row, or NO_BLOCK without an order; int64.

    Blocks depend on all images of the manifest, and not on task or split.

    Args:
        manifest: rows as in cxr.dataset.manifest.MANIFEST_COLUMNS.
        blocks: parts of each series of each source. A series with fewer numbers leaves some of them empty.
    """
    block = pd.Series(NO_BLOCK, index=manifest.index, dtype="int64")
    ordered = manifest[manifest["acquisition_number"].notna()]
    for _, series in ordered.groupby(["source", "acquisition_series"]):
        images = series.groupby("acquisition_number").size().sort_index()
        middle = images.cumsum() - images / 2
        block_of = (middle / len(series) * blocks).astype("int64")
        block[series.index] = block_of.loc[series["acquisition_number"]].to_numpy()
    return block

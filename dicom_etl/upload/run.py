"""A run of the upload: first what datasets share, then each dataset, and finally the deletion of orphaned resources.

Not here: the uploads of shared resources (`shared`) and of a dataset (`datasets`).
"""

from __future__ import annotations

from collections.abc import Sequence

from dicom_etl.lake.locks import LockHeldError
from dicom_etl.upload.datasets import DatasetUpload
from dicom_etl.upload.items import DatasetResources, NotBuiltError
from dicom_etl.upload.results import UploadSummary
from dicom_etl.upload.scheduling import UploadRun
from dicom_etl.upload.shared import SharedUpload


async def upload_datasets(run: UploadRun, datasets: Sequence[DatasetResources]) -> list[UploadSummary]:
    """Upload datasets, one after the other; returns a summary of each.

    Raises:
        LockHeldError, NotBuiltError: the only dataset is being written, or was withdrawn meanwhile. If there are
            several, the others go on, and the summary has the reason.
    """
    shared = SharedUpload(run, datasets)
    await shared.upload()
    uploads = [DatasetUpload(run, resources, shared) for resources in datasets]
    for upload in uploads:
        try:
            await upload.upload()
        except (NotBuiltError, LockHeldError) as error:
            if len(uploads) == 1:
                raise
            upload.stopped = str(error)
    if run.target.options.prune:
        try:
            await shared.prune()
        except LockHeldError as error:  # the datasets are uploaded; the next run deletes what they shared
            for upload in uploads:
                upload.stopped = upload.stopped or str(error)
    return [await upload.summarize() for upload in uploads]

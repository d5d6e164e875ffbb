"""withdraw: a subject, or a whole dataset, is removed from server, ledger and lake -> `withdrawn`.

Not here: the steps (`withdrawal.run`), and the end of a withdrawal (`withdrawal.record`).
"""

from __future__ import annotations

from dicom_etl.lake.tables import Lake
from dicom_etl.settings import Settings, SettingsError
from dicom_etl.withdrawal.run import WithdrawalResult, WithdrawalRun, require_contents


def withdraw(
    dataset: str, subject: str | None, lake: Lake, settings: Settings, *, dry_run: bool = False
) -> WithdrawalResult:
    """Remove a subject (or unit), or with None the whole dataset, and keep it out of the lake.

    Args:
        dataset: its name.
        subject: the subject's or unit's name.
        lake: to remove it from.
        settings: name the server to remove it from.
        dry_run: only count what would be removed.

    Raises:
        SettingsError: there is no such dataset or subject.
        LockHeldError: another run writes the dataset.
    """
    if subject == "":  # an empty variable of a script must not mean everything
        raise SettingsError("the name of the subject is empty")
    if dry_run:
        return WithdrawalRun(lake, settings, dataset, subject).plan()
    require_contents(lake, dataset, subject, settings.resource_ids())  # before a lock file of that name is created
    with lake.lock(dataset, f"withdrawal from {dataset}"):
        return WithdrawalRun(lake, settings, dataset, subject).execute()

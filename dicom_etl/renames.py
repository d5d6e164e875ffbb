"""Names of earlier versions and their new names, so that an old name is refused with the new one.

Only names that a person writes: settings (in TOML, and in environment variables), options, commands, finding codes,
states of uploads and columns. Data, and one function that makes the sentence.
"""

from __future__ import annotations

from collections.abc import Mapping

SETTINGS = {
    "site": "namespace",
    "as_of": "reference_date",
    "watch": "watch_folders",
    "fhir.client_ids": "fhir.client_assigned_ids",
    "fhir.foreign_studies": "fhir.existing_study",
    "fhir.in_flight": "fhir.max_concurrent_requests",
    "fhir.bundle_resources": "fhir.max_bundle_entries",
    "fhir.bundle_bytes": "fhir.max_bundle_bytes",
    "fhir.alone_bytes": "fhir.single_request_bytes",
    "fhir.authorization": "fhir.auth",
    "fhir.user": "fhir.username",
}
OPTIONS = {"--accept-vanished": "--accept-missing", "--readmit": "--undo"}
COMMANDS = {"forget": "withdraw", "outcomes": "uploads"}
UPLOAD_STATES = {"gave-up": "failed", "retrying": "unconfirmed", "gone": "orphaned"}
FINDING_CODES = {
    # crawl
    "sds-layout": "sds-layout-deviation",
    "not-a-file": "special-file-skipped",
    "link-outside": "link-outside-dataset",
    "junk-skipped": "system-files-skipped",
    "subject-vanished": "subject-missing",
    "files-vanished": "files-missing",
    # extract
    "empty-file": "file-empty",
    "not-dicom": "file-not-dicom",
    "other-file": "non-dicom-file",
    "header-cut": "header-truncated",
    "unreadable": "header-unreadable",
    "pixel-data-cut": "pixel-data-truncated",
    "value-unusable": "value-invalid",
    "text-undecodable": "charset-error",
    "file-gone": "file-missing",
    "duplicate-same": "duplicate-identical",
    # build
    "person-unknown": "patient-unresolved",
    "patient-id-gaps": "patient-id-incomplete",
    "instance-left-out": "instance-excluded",
    "values-disagree": "values-conflict",
    "value-left-out": "value-omitted",
    "no-time-zone": "time-zone-missing",
    "date-stands-in": "date-substituted",
    "laterality-mixed": "laterality-conflict",
    "from-sheet": "value-from-sheet",
    "sheet-disagrees": "sheet-conflict",
    "scheme-unknown": "coding-scheme-unknown",
    "corrected": "value-corrected",
    "correction-useless": "correction-unmatched",
    "crosswalk-useless": "crosswalk-unmatched",
    # upload
    "upload-gave-up": "upload-failed",
    "upload-shrinks": "update-removes-content",
    "left-on-server": "orphaned-on-server",
    "held-on-server": "held-study-on-server",
    "patient-contradicts": "patient-conflict",
    "patient-on-server": "patient-conflict",
    "patient-linked": "external-patient-used",
    "patient-appeared": "duplicate-patient-on-server",
    "written-over": "concurrent-overwrite",
    "study-on-server": "study-exists-on-server",
    "study-adopted": "study-merged",
    # measure
    "count-disagrees": "count-conflict",
}
COLUMNS: dict[str, dict[str, str]] = {  # table of the lake or CSV file -> old name -> new name
    "completeness": {"n_some": "n_partial"},
    "corrections": {"why": "reason"},
    "identities": {"owner": "building_unit"},
    "measures": {"status": "result"},
    "upload_ledger": {
        "key": "business_key",
        "id_on_server": "server_id",
        "linked": "is_external",
        "status": "http_status",
        "error": "reason_text",
    },
    "withdrawn": {"site": "namespace", "left": "pending_deletions"},
}


def describe_rename(renames: Mapping[str, str], name: str, kind: str) -> str | None:
    """The sentence that refuses a name of an earlier version; None where it is not one.

    Args:
        renames: old name -> new name: one of the tables of this module.
        name: as a person wrote it.
        kind: of the name, as a message calls it.

    Returns:
        for example `option --accept-vanished is now --accept-missing`.
    """
    new = renames.get(name)
    return f"{kind} {name} is now {new}" if new else None

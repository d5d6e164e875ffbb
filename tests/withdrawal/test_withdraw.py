"""A withdrawn subject or dataset is removed from server, ledger and lake, and does not come back."""

from __future__ import annotations

import pytest

from dicom_etl.fhir_connection import get_server_name
from dicom_etl.identity.ids import ResourceIds
from dicom_etl.lake.schemas import (
    COMMITS,
    SHEETS,
    UNIT_RESOURCE_TYPES,
    WITHDRAWN,
)
from dicom_etl.sources import SourceError
from dicom_etl.stages.crawl import DatasetStoppedError
from dicom_etl.stages.upload import upload
from dicom_etl.stages.withdraw import withdraw
from dicom_etl.withdrawal.record import undo_withdrawal
from tests.support.datasets import uid, write_sheet
from tests.support.server_content import put
from tests.support.upload_lakes import ledger_rows, shared_ledger_rows
from tests.withdrawal.withdrawal_case import (
    AUTHORITY,
    WithdrawalCase,
    find_files_containing,
    hash_lake,
    list_terms_of_ada,
    make_two_subjects,
    read_stored_rows,
    read_unit_rows,
)


class TestSubject:
    def test_only_the_subject_is_removed_from_server_ledger_and_lake(self, case: WithdrawalCase) -> None:
        tree = make_two_subjects(case)
        case.run(tree, quality=True)
        hers = [case.study(tree, "one"), case.study(tree, "two"), case.patient(tree, "ID-ADA")]
        his = [case.study(tree, "bob"), case.patient(tree, "ID-BOB"), case.endpoint(tree)]
        assert case.status(*hers, *his) == [200] * 6
        assert len({line.partition(":")[0] for line in find_files_containing(case.lake, *list_terms_of_ada(tree))}) > 15
        before, his_rows = hash_lake(case.lake), read_unit_rows(tree, "sub-bob")

        done = case.withdraw(tree, "sub-ada")

        assert (done.files, done.studies, done.remaining, done.notes, done.exit_code) == (3, 2, (), (), 0)
        name = get_server_name(case.server.url)
        assert done.resources == {name: {"ImagingStudy": 2, "Patient": 1}}
        assert case.status(*hers, *his) == [410] * 3 + [200] * 3
        assert find_files_containing(case.lake, *list_terms_of_ada(tree)) == []
        after = hash_lake(case.lake)
        assert read_unit_rows(tree, "sub-bob") == his_rows
        changed = {n for n, digest in after.items() if before.get(n) != digest}
        per_dataset = {f"{table}/{tree.name}.parquet" for table in ("inventory", "sheets", "identities", "withdrawn")}
        shard = {f"{table}/{tree.name}/0000.parquet" for table in ("headers", "files", "tag_profiles", "fhir_elements")}
        shard |= {f"{table}/{stage}/{tree.name}/0000.parquet" for table in ("findings", "commits") for stage in COMMITS}
        shard |= {f"fhir/{kind}/{tree.name}/0000.ndjson" for kind in UNIT_RESOURCE_TYPES}
        # findings about the UID that both had, and the state of the dataset
        of_dataset = {f"findings/{stage}/{tree.name}/dataset.parquet" for stage in COMMITS}
        exported = {f"upload_ledger/{name}/{tree.name}.parquet"}
        assert changed == per_dataset | shard | of_dataset | exported
        ledger = ledger_rows(case.lake, case.server.url, tree.name, "sub-bob")
        assert ledger.keys() == {case.study(tree, "bob"), case.patient(tree, "ID-BOB")}

    def test_the_record_has_counts_and_no_names(self, case: WithdrawalCase) -> None:
        tree = make_two_subjects(case)
        case.run(tree)

        case.withdraw(tree, "sub-ada")

        [row] = case.record(tree)
        assert row.pop("time") is not None
        assert row == {
            "dataset": tree.name,
            "namespace": case.namespace,
            "digest": row["digest"],
            "id_key": ResourceIds.from_key(case.namespace, None).key_fingerprint,
            "files": 3,
            "studies": 2,
            "patients": 1,
            "imaging_studies": 2,
            "endpoints": 0,
            "servers": get_server_name(case.server.url),
            "pending_deletions": None,
        }
        assert len(row["digest"]) == 64

    def test_it_comes_back_only_after_the_withdrawal_is_undone(self, case: WithdrawalCase) -> None:
        tree = make_two_subjects(case)
        case.run(tree)
        his = read_stored_rows(case, tree, "sub-bob")
        case.withdraw(tree, "sub-ada")
        hers = [case.study(tree, "one"), case.study(tree, "two"), case.patient(tree, "ID-ADA")]

        case.run(tree, quality=True)

        assert find_files_containing(case.lake, *list_terms_of_ada(tree)) == []
        assert case.status(*hers) == [410] * 3
        [excluded] = [row for row in tree.findings("crawl") if row["code"] == "subject-withdrawn"]
        assert (excluded["count"], excluded["severity"]) == (3, "info")
        assert case.status(case.study(tree, "bob")) == [200]
        now = read_stored_rows(case, tree, "sub-bob")
        assert now.keys() == his.keys()
        assert now[case.patient(tree, "ID-BOB")] == his[case.patient(tree, "ID-BOB")]

        undo_withdrawal(tree.name, "sub-ada", case.lake)
        case.run(tree)

        assert case.status(*hers) == [200] * 3
        assert not case.lake.exists(WITHDRAWN.path(dataset=tree.name))
        assert "subject-withdrawn" not in tree.codes("crawl")

    def test_cells_of_sheets_about_other_subjects_stay(self, case: WithdrawalCase) -> None:
        tree = make_two_subjects(case)
        tree.run()
        withdraw(tree.name, "sub-ada", case.lake, case.at(None))
        by_withdrawal = case.lake.read(SHEETS, dataset=tree.name).to_pylist()

        tree.crawl()

        assert case.lake.read(SHEETS, dataset=tree.name).to_pylist() == by_withdrawal
        assert {(r["sheet"], r["subject"], r["field"], r["value"]) for r in by_withdrawal} == {
            ("subjects", "sub-bob", "subject id", "sub-bob"),
            ("subjects", "sub-bob", "sex", "M"),
            ("samples", "sub-bob", "sample id", "sam-1"),
            ("samples", "sub-bob", "subject id", "sub-bob"),
        }

    def test_findings_of_the_crawl_do_not_mention_it(self, case: WithdrawalCase) -> None:
        tree = make_two_subjects(case)
        tree.run()
        withdraw(tree.name, "sub-ada", case.lake, case.at(None))
        (tree.root / "primary/sub-ada/link").symlink_to("nowhere")
        (tree.root / "primary/sub-bob/link").symlink_to("nowhere")
        (tree.root / "primary/sub-ada.zip").write_bytes(b"PK\3\4 damaged")

        tree.crawl()

        assert find_files_containing(case.lake, "sub-ada") == []
        assert [row["path"] for row in tree.findings("crawl") if row["code"] == "link-broken"] == [
            "primary/sub-bob/link"
        ]

    def test_only_a_withdrawn_subject_may_be_missing(self, case: WithdrawalCase) -> None:
        tree = make_two_subjects(case)
        tree.run()
        withdraw(tree.name, "sub-ada", case.lake, case.at(None))
        for file in (tree.root / "primary/sub-ada").rglob("*.dcm"):
            file.unlink()
        tree.crawl()
        (tree.root / "primary/sub-bob").rename(tree.root / "primary/sub-eve")
        with pytest.raises(DatasetStoppedError, match="sub-bob"):
            tree.crawl()

    def test_the_endpoint_is_deleted_with_the_last_subject(self, case: WithdrawalCase) -> None:
        tree = make_two_subjects(case)
        case.run(tree)
        case.withdraw(tree, "sub-bob")
        assert case.status(case.endpoint(tree)) == [200]

        case.withdraw(tree, "sub-ada")

        assert case.status(case.endpoint(tree), case.study(tree, "one")) == [410, 410]
        with pytest.raises(SourceError, match="all its files belong to withdrawn subjects"):
            tree.crawl()


class TestSharedResources:
    def test_a_patient_of_another_dataset_stays(self, case: WithdrawalCase) -> None:
        a, b = (case.tree(name, assigning_authority=AUTHORITY) for name in "ab")
        person = f"P-{case.namespace[-8:]}"
        a.write("sub-1/1.dcm", PatientID=person, PatientName="Married^Ada")
        a.write("sub-2/1.dcm", PatientID=f"{person}-2")
        b.write("sub-x/1.dcm", PatientID=person, PatientName="Maiden^Ada")
        case.run(a, b)
        shared = case.shared_patient(person)

        done = case.withdraw(a, "sub-1")

        assert case.status(case.study(a, "sub-1"), shared, case.study(b, "sub-x")) == [410, 200, 200]
        assert done.exit_code == 0
        [sentence] = done.notes
        assert f"studies of {b.name} refer to them" in sentence
        case.run(a, b)
        assert find_files_containing(case.lake, "Married", "sub-1") == []
        assert case.status(shared) == [200]
        names = case.text(shared)
        assert "Maiden" in names
        assert "Married" not in names

        case.withdraw(b, "sub-x")
        assert case.status(shared) == [410]

    def test_a_study_of_two_subjects_is_rebuilt_without_it(self, case: WithdrawalCase) -> None:
        tree = case.tree("ds")
        case.crosswalk = case.folder / "crosswalk.csv"
        lines = [
            {"dataset": tree.name, "subject": subject, "system": AUTHORITY, "value": f"X-{case.namespace[-8:]}"}
            for subject in ("sub-a", "sub-b")
        ]
        write_sheet(case.crosswalk, lines)
        for subject in ("sub-a", "sub-b"):
            tree.write(f"{subject}/1.dcm", study=f"{tree.name}/both", PatientID="X")
        case.run(tree)
        assert uid(f"{tree.name}/sub-b/1.dcm") in case.text(case.study(tree, "both"))

        done = case.withdraw(tree, "sub-b")

        assert case.status(case.study(tree, "both")) == [410]
        assert any("the crosswalk file still has lines about it" in sentence for sentence in done.notes)
        case.run(tree)
        assert find_files_containing(case.lake, "sub-b", uid(f"{tree.name}/sub-b/1.dcm")) == []
        assert case.status(case.study(tree, "both")) == [200]
        assert uid(f"{tree.name}/sub-b/1.dcm") not in case.text(case.study(tree, "both"))

    def test_a_patient_with_other_references_is_deleted_later(self, case: WithdrawalCase) -> None:
        tree = make_two_subjects(case)
        case.run(tree)
        patient = case.patient(tree, "ID-ADA")
        observation = {"resourceType": "Observation", "id": f"o-{case.namespace[-8:]}", "status": "final"}
        put(case.server.url, observation | {"code": {"text": "weight"}, "subject": {"reference": patient}})

        done = case.withdraw(tree, "sub-ada")

        assert case.status(patient, case.study(tree, "one")) == [200, 410]
        assert done.exit_code == 1
        assert [sentence.split()[:3] for sentence in done.remaining] == [[patient, "stays", "on"]]
        assert find_files_containing(case.lake, *list_terms_of_ada(tree)) == []
        put(case.server.url, observation | {"code": {"text": "weight"}})
        assert case.withdraw(tree, "sub-ada").exit_code == 0
        assert case.status(patient) == [410]
        assert (case.record(tree)[0]["patients"], case.record(tree)[0]["pending_deletions"]) == (1, None)

    def test_external_resources_stay_and_are_reported(self, case: WithdrawalCase) -> None:
        tree = case.tree("ds", assigning_authority=AUTHORITY)
        person, external, study = (f"{kind}-{case.namespace[-8:]}" for kind in ("P", "external", "study"))
        identifier = [{"system": AUTHORITY, "value": person}]
        put(case.server.url, {"resourceType": "Patient", "id": external, "identifier": identifier})
        known = {"system": "urn:dicom:uid", "value": f"urn:oid:{uid(f'{tree.name}/sub-1')}"}
        external_study = {"resourceType": "ImagingStudy", "id": study, "identifier": [known], "status": "available"}
        put(case.server.url, external_study | {"subject": {"reference": f"Patient/{external}"}})
        tree.write("sub-1/1.dcm", PatientID=person)
        tree.write("sub-1/2.dcm", PatientID=person, study=f"{tree.name}/new")
        tree.settings = case.settings
        tree.run()
        settings = case.at(case.server.url, existing_study="merge")
        upload([tree.name], case.lake, settings)
        assert uid(f"{tree.name}/sub-1/1.dcm") in case.text(f"ImagingStudy/{study}")

        done = withdraw(tree.name, "sub-1", case.lake, settings)

        assert case.status(case.study(tree, "new"), f"Patient/{external}", f"ImagingStudy/{study}") == [410, 200, 200]
        assert done.exit_code == 1
        # the external study refers to the Endpoint of the lake
        assert [sentence.partition(" on ")[0] for sentence in done.remaining] == [
            f"{case.endpoint(tree)} stays",
            f"ImagingStudy/{study}",
        ]
        assert find_files_containing(case.lake, "sub-1", person, external, uid(f"{tree.name}/sub-1")) == []


class TestDataset:
    def test_a_dataset_is_removed_and_skipped_until_it_is_undone(self, case: WithdrawalCase) -> None:
        tree, other = make_two_subjects(case), make_two_subjects(case, "other")
        case.run(tree, other, quality=True)
        before = {n: digest for n, digest in hash_lake(case.lake).items() if other.name in n}

        done = case.withdraw(tree)

        hers = [case.study(tree, n) for n in ("one", "two", "bob")] + [case.endpoint(tree)]
        assert case.status(*hers, case.study(other, "one"), case.endpoint(other)) == [410] * 4 + [200] * 2
        assert done.resources == {get_server_name(case.server.url): {"Endpoint": 1, "ImagingStudy": 3, "Patient": 2}}
        assert [line.partition(":")[0] for line in find_files_containing(case.lake, tree.name)] == [
            f"locks/{tree.name}.lock",
            f"withdrawn/{tree.name}.parquet",
        ]
        assert {n: digest for n, digest in hash_lake(case.lake).items() if other.name in n} == before
        shared = shared_ledger_rows(case.lake, case.server.url).values()
        assert {row["dataset"] for row in shared} == {other.name}
        [row] = case.record(tree)
        assert (row["digest"], row["files"], row["studies"]) == (None, 5, 3)
        with pytest.raises(SourceError, match="was withdrawn and is not loaded"):
            tree.crawl()
        undo_withdrawal(tree.name, None, case.lake)
        case.run(tree)
        assert case.status(*hers) == [200] * 4

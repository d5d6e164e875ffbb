"""Check of privacy: no identifying tag has a usable value.

Not here: which tags are identifying (`identity.masking`).
"""

from __future__ import annotations

from dataclasses import replace

from pydicom.datadict import keyword_for_tag

from dicom_etl.identity.masking import IDENTIFYING_KEYWORDS
from dicom_etl.quality.check_table import Measure, quality_checks
from dicom_etl.quality.checks.counting import MeasuredDataset
from dicom_etl.quality.tag_states import FILLED

__all__ = ["count_identifying_tags"]


def count_identifying_tags(dataset: MeasuredDataset) -> list[Measure]:
    """Check `identifying-tags`: instances without a filled one, then one measure for each such tag."""
    database, check = dataset.database, quality_checks()["identifying-tags"]
    tags = [row["tag"] for row in database.fetch_rows("SELECT DISTINCT tag FROM states WHERE creator IS NULL")]
    identifying = [tag for tag in tags if "x" not in tag and keyword_for_tag(int(tag, 16)) in IDENTIFYING_KEYWORDS]
    quoted = ", ".join(f"'{tag}'" for tag in identifying) or "NULL"
    is_filled = f"state = {FILLED} AND tag IN ({quoted})"
    (instances,) = database.fetch_rows(f"""
        WITH failing AS (SELECT DISTINCT state_profile FROM states WHERE {is_filled})
        SELECT coalesce(sum(n), 0)::BIGINT AS n,
               coalesce(sum(n) FILTER (WHERE state_profile NOT IN (FROM failing)), 0)::BIGINT AS n_pass
        FROM profile_counts
    """)
    total, n_pass = instances["n"], instances["n_pass"]
    result = check.evaluate(total, n_pass)
    measure = Measure(check.check, check.category, "instance", total, n_pass, total - n_pass, result)
    filled_tags = database.fetch_rows(f"""
        SELECT tag, sum(n)::BIGINT AS n FROM profile_counts JOIN states USING (state_profile)
        WHERE {is_filled} GROUP BY tag ORDER BY tag
    """)
    return [
        measure,
        *(
            replace(
                measure,
                n_pass=total - row["n"],
                n_fail=row["n"],
                result=check.evaluate(total, total - row["n"]),
                tag=row["tag"],
                reason="filled",
            )
            for row in filled_tags
        ),
    ]

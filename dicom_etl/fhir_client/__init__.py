"""Client of FHIR servers: transport, authentication, retries, concurrency limit, Bundles, searches, redaction.

It uses neither the settings nor the lake nor the ledger: `dicom_etl.upload` decides what is sent. The modules
`transport`, `auth`, `session`, `retry` and `concurrency` do not depend on FHIR and serve other HTTP clients as well.

Where an unusual answer of a server is handled:

    encoding, size, time limit          `transport`
    status, a single resource           `answers`
    statuses that are retried           `errors`, `retry`
    transactions, pages, histories      `bundles`
    links from page to page             `search`
    ids, versions, ETags, locations     `models`
    CapabilityStatement                 `capabilities`
    text that is shown in messages      `redaction`
    what an answer does not say         `dicom_etl.upload.confirmation`
"""

from dicom_etl.fhir_client.auth import Authentication, Basic, BearerToken, ClientCredentials, FixedHeader
from dicom_etl.fhir_client.capabilities import Capabilities, check_server
from dicom_etl.fhir_client.client import FhirClient
from dicom_etl.fhir_client.errors import (
    AccessDeniedError,
    BusyError,
    ConflictError,
    FhirError,
    InvalidAnswerError,
    NotFoundError,
    PermanentError,
    RejectedError,
    ServerFailureError,
    TimedOutError,
    TransientError,
    UnreachableError,
    UnsuitableServerError,
)
from dicom_etl.fhir_client.models import ServerResource, WriteRequest, WriteResult
from dicom_etl.fhir_client.search import escape_token
from dicom_etl.fhir_client.transport import CertificateFileError
from dicom_etl.fhir_client.urls import parse_credentials, strip_credentials

__all__ = [
    "AccessDeniedError",
    "Authentication",
    "Basic",
    "BearerToken",
    "BusyError",
    "Capabilities",
    "CertificateFileError",
    "ClientCredentials",
    "ConflictError",
    "FhirClient",
    "FhirError",
    "FixedHeader",
    "InvalidAnswerError",
    "NotFoundError",
    "PermanentError",
    "RejectedError",
    "ServerFailureError",
    "ServerResource",
    "TimedOutError",
    "TransientError",
    "UnreachableError",
    "UnsuitableServerError",
    "WriteRequest",
    "WriteResult",
    "check_server",
    "escape_token",
    "parse_credentials",
    "strip_credentials",
]

"""A client of FHIR servers: transport, authentication, retries, concurrency limit, Bundles, searches, redaction.

Nothing here knows the settings, the lake or the ledger: what is uploaded, and whether, is decided elsewhere. The
modules `transport`, `auth`, `session`, `retry` and `limit` know nothing of FHIR and serve other HTTP clients as well.
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
from dicom_etl.fhir_client.paging import escape_token
from dicom_etl.fhir_client.resources import ServerResource, WriteRequest, WriteResult
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

"""Secrets and identifying values that tests plant and then look for, and the text of a server that repeats them."""

from __future__ import annotations

from tests.support.proxy import ReceivedRequest

TOKEN, PASSWORD = "tok-Zanzibarium-4711", "pw:Quetzalcoatl & 0815"
CLIENT_SECRET, API_KEY = "cs-Xylophonique/1312", "ak-Brobdingnag-2718"
GIVEN_TOKEN = "at-Llanfairpwll-3141"  # by the token endpoint
SECRETS = (TOKEN, PASSWORD, CLIENT_SECRET, API_KEY, GIVEN_TOKEN)
# what requests contain by each method of authentication; basic: me and the password in base64
SENT = {"bearer": TOKEN, "basic": "bWU6cHc6UXVldHphbGNvYXRsICYgMDgxNQ==", "oauth2": GIVEN_TOKEN, "api-key": API_KEY}
# parts of the secrets and of the patient's values; compared without case
PLANTED = (
    *("zanzibarium", "quetzalcoatl", "xylophonique", "brobdingnag", "llanfairpwll"),
    *("ossianowicz", "thessalonia", "kalypso", "19370519", "1937-05-19", "pythagora"),
)


def repeat_request(request: ReceivedRequest) -> str:
    """The text of a server that repeats a request: all of its content, the patient's values in several forms."""
    body = request.body.decode()
    name = "Patient Thessalonia OSSIANOWICZ (MRN-Kalypso-90210, Ossianowicz^Thessalonia), born 1937-05-19 or 19370519"
    accession = "accession Pythagora-55, 'Pythagora-55'"
    values = [name] * ("Ossianowicz" in body) + [accession] * ("Pythagora" in body)
    return f"HAPI-1821: Invalid code: {'; '.join(values)}; {request.path} {request.headers} {body}"

"""Identity: patient matching, the crosswalk, resource ids, encoding of names in paths, and masking.

Not here: reading identifying values from headers (`headers`), and the Patient resource (`fhir.patient`).
"""

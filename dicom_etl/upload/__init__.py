"""Upload of FHIR resources from the lake to a server, with a ledger of what the server has.

Here: what is decided about each resource, what is sent and in which order, what an answer means for the ledger, what is
deleted, and the comparison of ledger and server. Not here: requests and their retries (`fhir_client`), how resources
are made (`construction`), and settings (`stages.upload`, `stages.verify`).

A study passes through these modules:

1. `run` uploads what datasets share (`shared`), then each dataset (`datasets`), in groups of units.
2. `items` reads the study from the lake as an upload item; its references get the ids that the server uses.
3. `scheduling` skips it if the ledger shows that the server has it; else `batching` puts it into a batch.
4. `transfer` takes the batch: `lookup` reads resources of this lake, `studies` (or `patients`) looks for those of other
   clients and decides, `batching` sends, `confirmation` checks what the answer leaves open.
5. `ledger` has the state after each of these steps; `results` makes findings and the table `upload_ledger` from it.

`deletion` removes what the lake no longer produces, `verification` compares, `tasks` runs coroutines together.
"""

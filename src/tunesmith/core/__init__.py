"""The kernel, with no word about language models.

    Recipe (what is wanted) -> Plan (what will run, and why) -> Run (one execution) -> artifacts in the Store

`spec` settings and identity · `stage` what a stage is · `recipe` one YAML file, with `marked` (lines), `overrides`
and `settings` (errors in words) · `fields` what a key takes · `plan` order, cache, reasons · `run` execution ·
`store` artifacts, with `disk` (locks, whole writes) and `hashes` · `runs` records of executions · `refs` names for
artifacts · `events` what happened · `provenance` circumstance · `gc` what nobody needs.
"""

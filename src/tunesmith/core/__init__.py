"""The kernel, with no word about language models.

    Recipe (what is wanted) -> Plan (what will run, and why) -> Run (one execution) -> artifacts in the Store

`spec` settings and identity · `stage` what a stage is · `recipe` one YAML file · `plan` order, cache, reasons ·
`run` execution · `store` artifacts · `runs` records of executions · `refs` names for artifacts · `events` what
happened · `gc` what nobody needs.
"""

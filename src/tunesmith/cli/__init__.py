"""The command line: one file a verb, each a skin over a function of `api`. No logic lives here."""

"""Data: from the files that users bring to rows that can be trusted, each with its reason to be there."""

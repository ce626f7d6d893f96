"""Text to tokens and back: contract, chat templates, loss masks, parsing. No torch in here."""

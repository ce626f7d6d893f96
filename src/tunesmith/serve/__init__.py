"""The OpenAI-compatible server: it reads a bundle, proves its contract, answers, and writes traces."""

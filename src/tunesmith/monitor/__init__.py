"""Figures, drift and alerts over traces, and the candidates for the next data version. Knows no server."""

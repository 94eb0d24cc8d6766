"""Runs as one page: their curves, samples, fits, judgements and settings, alone or compared (docs/report.md)."""

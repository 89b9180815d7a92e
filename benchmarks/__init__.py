"""Measure nbstreamq and the tools that people would use instead; see docs/performance.md."""

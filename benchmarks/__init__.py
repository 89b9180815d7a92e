"""What nbstreamq costs, beside what people would use instead; see docs/performance.md."""

"""Reports of a run for machines: JUnit."""

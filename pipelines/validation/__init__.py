"""May this data enter? Great Expectations suites, the checkpoint, and quarantine."""

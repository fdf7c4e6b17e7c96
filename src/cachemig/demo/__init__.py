"""What `cachemig demo` and the tests run against: throw-away servers, synthetic recordings, a simulated application."""

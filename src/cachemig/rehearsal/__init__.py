"""A whole migration on throw-away servers, down and up the ladder, told by the commands themselves."""

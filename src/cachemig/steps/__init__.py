"""One module per command. A step yields Progress while it runs and returns its result; it prints nothing."""

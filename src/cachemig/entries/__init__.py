"""The entry: what one key's value is, how it is encoded, checked and compared. Pure; nothing here does I/O."""

"""The rules, a file per family of codes."""

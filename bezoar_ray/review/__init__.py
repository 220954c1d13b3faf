"""People review rows, and are compared with the judge."""

"""What every layer may use: errors, files, tables. Needs torch at most."""

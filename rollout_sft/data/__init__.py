"""From files and data sets to samples."""

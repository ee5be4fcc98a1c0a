"""Reports metrics, the log line, the summary of a run, and how full its windows are."""

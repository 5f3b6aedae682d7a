"""Pictures and labels: readers for each data set's own files, and people cut out as training batches."""

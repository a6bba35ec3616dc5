"""Where images come from: files, folders, data sets, and their caches."""

"""The command, the explorer, the pages that watch a run, and the benchmark."""

"""Many fine-tuning runs that belong together: the analyses of the AD-DROP paper."""

"""HTTP surfaces, one file each."""

"""What definitions mean: pure functions over Arrow and Polars. No clock, no I/O, no Ray."""

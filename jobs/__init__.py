"""What runs continuously or to an end: ingest, pipelines, the archive copy, backfills; and who keeps them running."""

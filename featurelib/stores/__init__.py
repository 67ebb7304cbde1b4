"""Where things live: the hot log, the online store, the archive, the registry and the audit."""

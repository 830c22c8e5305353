"""The driver: configuration, graph, launch, completion records, status. No torch."""
